//! How the heads are treated: all by one policy, or each by its own.

use sample_attention::profile::{Profile, ProfileError};
use sample_attention::{HeadPolicy, Policy, Problem, Window};

use crate::args::{ProfileChoice, Request};
use crate::failure::{Failure, one_line};
use crate::input::Input;
use crate::table::policy_text;

/// How the heads are treated.
pub enum Treatment {
    Dense,
    Alike(Policy),
    Each(LayerPolicies),
}

/// One layer of a profile.
pub struct LayerPolicies {
    /// Name of the profile's file.
    pub file: String,
    pub model: String,
    pub layer: usize,
    pub layers: usize,
    /// By query head.
    pub heads: Vec<HeadPolicy>,
}

impl Treatment {
    /// What the request asks for of this input.
    pub fn of(request: &Request, input: &Input) -> Result<Self, Failure> {
        match &request.profile {
            _ if request.dense => Ok(Treatment::Dense),
            None => Ok(Treatment::Alike(request.policy)),
            Some(choice) => LayerPolicies::of(choice, input).map(Treatment::Each),
        }
    }

    /// The policy of a query head.
    pub fn head(&self, q_head: usize) -> HeadPolicy {
        match self {
            Treatment::Dense => HeadPolicy::Dense,
            Treatment::Alike(policy) => HeadPolicy::Selected(*policy),
            Treatment::Each(layer) => layer.heads[q_head],
        }
    }

    /// What is asked for, in a line.
    pub fn in_words(&self) -> String {
        match self {
            Treatment::Dense => "dense".to_owned(),
            Treatment::Alike(policy) => policy_text(policy),
            Treatment::Each(layer) => format!(
                "profile {} of {}, layer {} of {}",
                layer.file, layer.model, layer.layer, layer.layers
            ),
        }
    }

    /// The one policy of all heads, if that is how they are treated.
    pub fn policy(&self) -> Option<&Policy> {
        match self {
            Treatment::Alike(policy) => Some(policy),
            Treatment::Dense | Treatment::Each(_) => None,
        }
    }
}

impl LayerPolicies {
    fn of(choice: &ProfileChoice, input: &Input) -> Result<Self, Failure> {
        let option = format!("--profile {}", choice.path.display());
        let named = |error: &ProfileError| match error {
            // It names the file itself.
            ProfileError::File { why, .. } => Failure::of(&option, why),
            error => Failure::of(&option, error),
        };
        let profile = Profile::read(&choice.path).map_err(|error| named(&error))?;
        let noted = input
            .note("layer")
            .and_then(|note| note.trim().parse().ok());
        let layer = match (choice.layer.or(noted), profile.layers()) {
            (Some(layer), _) => layer,
            (None, 1) => 0,
            (None, layers) => {
                let why = format!(
                    "it has {layers} layers, and the input does not say of which it is: give --layer"
                );
                return Err(Failure::of(&option, why));
            }
        };
        let heads = profile.layer_of(layer, input.problem().q_heads);
        let file = choice.path.file_name().unwrap_or_default();
        Ok(LayerPolicies {
            heads: heads.map_err(|error| named(&error))?.to_vec(),
            file: one_line(&file.to_string_lossy()),
            model: one_line(profile.model()),
            layer,
            layers: profile.layers(),
        })
    }
}

/// A head's policy in a few words, for captions.
pub fn head_text(policy: &HeadPolicy) -> String {
    let window = |window: &Window| match window {
        Window::Tokens(tokens) => format!("window {tokens}"),
        Window::Ratio(ratio) => format!("window {} %", 100.0 * ratio),
    };
    match policy {
        HeadPolicy::Local { window: size, .. } => format!("local, {}", window(size)),
        HeadPolicy::Selected(policy) => format!(
            "{} {}, 1 row in {}, {}",
            policy.budget.name(),
            policy.coverage,
            policy.row_stride,
            window(&policy.window)
        ),
        other => other.kind().to_owned(),
    }
}

/// Key blocks that the window puts into a query block's list; none where there is no window.
pub fn window_blocks(policy: &HeadPolicy, problem: &Problem) -> usize {
    let window = match policy {
        HeadPolicy::Local { window, .. } => *window,
        HeadPolicy::Selected(policy) => policy.window,
        _ => return 0,
    };
    let tokens = match window {
        Window::Tokens(tokens) => tokens,
        Window::Ratio(ratio) => (f64::from(ratio) * problem.k_len as f64).ceil() as usize,
    };
    1 + (tokens.clamp(1, problem.k_len) - 1).div_ceil(sample_attention::BLOCK)
}
