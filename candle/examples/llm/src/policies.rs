//! What the layers attend to in the sparse prefill.

use std::path::Path;

use candle_sample_attention::profile::Profile;
use candle_sample_attention::{HeadPolicy, Policies, Policy};

use crate::config::Config;
use crate::failure::Failure;

/// A policy for each layer, or for each of its heads.
#[derive(Clone)]
pub struct LayerPolicies {
    layers: Vec<LayerPolicy>,
    /// In words, for the report.
    pub name: String,
}

#[derive(Clone)]
enum LayerPolicy {
    Same(Policy),
    PerHead(Vec<HeadPolicy>),
}

impl LayerPolicies {
    /// All layers and heads alike.
    pub fn alike(policy: Policy, layers: usize) -> Self {
        let name = format!(
            "{}, coverage {}, one row in {}, window {:?}, sinks {}, tail {}",
            policy.budget.name(),
            policy.coverage,
            policy.row_stride,
            policy.window,
            policy.sinks,
            policy.tail
        );
        LayerPolicies {
            layers: vec![LayerPolicy::Same(policy); layers],
            name,
        }
    }

    /// Those of a profile's file.
    ///
    /// # Errors
    /// A file that is no profile, or one of another model.
    pub fn of_profile(path: &Path, config: &Config) -> Result<Self, Failure> {
        let of_file = |error: &dyn std::fmt::Display| Failure::of(path.display(), error);
        let profile = Profile::read(path).map_err(|error| of_file(&error))?;
        if profile.layers() != config.num_hidden_layers {
            return Err(of_file(&format_args!(
                "the profile has {} layers, and the model {}",
                profile.layers(),
                config.num_hidden_layers
            )));
        }
        let layers = (0..profile.layers()).map(|layer| {
            let heads = profile.layer_of(layer, config.num_attention_heads);
            let heads = heads.map_err(|error| of_file(&error))?;
            Ok(LayerPolicy::PerHead(heads.to_vec()))
        });
        Ok(LayerPolicies {
            layers: layers.collect::<Result<_, Failure>>()?,
            name: format!("a profile for {}, {}", profile.model(), path.display()),
        })
    }

    /// The same for chunks before the last: the question stands at the end of the prompt.
    pub fn without_tail(&self) -> Self {
        let mut policies = self.clone();
        for layer in &mut policies.layers {
            match layer {
                LayerPolicy::Same(policy) => policy.tail = 0,
                LayerPolicy::PerHead(heads) => {
                    for head in heads {
                        if let HeadPolicy::Selected(policy) = head {
                            policy.tail = 0;
                        }
                    }
                }
            }
        }
        policies
    }

    pub fn of(&self, layer: usize) -> Policies<'_> {
        match &self.layers[layer] {
            LayerPolicy::Same(policy) => Policies::Same(policy),
            LayerPolicy::PerHead(heads) => Policies::PerHead(heads),
        }
    }
}
