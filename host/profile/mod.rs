//! Profiles: a policy for every head of every layer of a model, and the file that holds them.
//!
//! # The format
//! A JSON object, version 1:
//!
//! | field | value |
//! |---|---|
//! | `format` | `"sample-attention profile"` |
//! | `version` | 1. A reader refuses versions that it does not know |
//! | `model` | text: the model that was calibrated |
//! | `layers`, `q_heads` | whole numbers from 1 on: the model's layers, and query heads of each |
//! | `calibration` | an object, or null where nothing was calibrated: `texts` (text: what was read), `lengths` (tokens of the texts), `price` (bits of divergence: see [`calibrate`](crate::calibrate)) |
//! | `heads` | `layers` lists of `q_heads` objects each |
//!
//! A head has a `kind` and the kind's parameters; those in parentheses may be left out, and have the value given here then:
//!
//! | `kind` | parameters |
//! |---|---|
//! | `dense` | none |
//! | `local` | `window`, `sinks` |
//! | `rows` | `coverage`, `row_stride`, `window`, `sinks`, (`row_offset` 0), (`tail` 0), (`tail_stride` 4), (`fallback` `"auto"`) |
//! | `blocks` | `coverage`, `row_stride`, `window`, `sinks`, (`stride_doubles_from` null: never), (`fallback` `"auto"`) |
//! | `residual`, `paper` | `coverage`, `row_stride`, `window`, `sinks`, (`fallback` `"auto"`) |
//!
//! They are the fields of [`Policy`] in its units; in place of `window`, in tokens, there may be `window_ratio`, a
//! share of all keys. Any other field is an error, and so is a field that is there twice.

mod document;
mod error;
mod files;
mod format;
mod read;
mod write;

pub use error::{ProfileError, ProfilePlace};
pub use format::{FORMAT, VERSION};

use crate::head_policy::HeadPolicy;
use crate::policy::{Budget, Fallback, Policy, Window};

/// A policy for every query head of every layer of a model. The module's documentation has the format of its files.
///
/// ```
/// use sample_attention::profile::Profile;
/// use sample_attention::{HeadPolicy, Policy, Window};
/// let local = HeadPolicy::Local { window: Window::Tokens(256), sinks: 16 };
/// let profile = Profile::new("a model of two layers", vec![
///     vec![HeadPolicy::Dense, local],
///     vec![local, HeadPolicy::Selected(Policy::default())],
/// ])?;
/// let read = Profile::from_json(&profile.to_json())?;
/// assert_eq!(read, profile);
/// assert_eq!(read.layer(1)?[0], local); // for HeadPlan::new and GpuPlan::per_head
/// # Ok::<(), sample_attention::profile::ProfileError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    model: String,
    q_heads: usize,
    heads: Vec<Vec<HeadPolicy>>,
    calibration: Option<Calibrated>,
}

/// How a profile was found.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Calibrated {
    /// What was read, in words.
    pub texts: String,
    /// Tokens of the texts: a profile keeps too little of longer ones.
    pub lengths: Vec<usize>,
    /// Bits of divergence that making one dense head free was worth. Finite, not negative.
    pub price: f64,
}

impl Calibrated {
    /// All of it.
    pub fn new(texts: impl Into<String>, lengths: Vec<usize>, price: f64) -> Self {
        Calibrated {
            texts: texts.into(),
            lengths,
            price,
        }
    }
}

impl Profile {
    /// A profile with `heads[layer][q_head]`. Fields of a [`Policy`] that its budget does not use take their defaults.
    ///
    /// # Errors
    /// No layers or no heads, layers of different numbers of heads, and policies out of range.
    pub fn new(
        model: impl Into<String>,
        heads: Vec<Vec<HeadPolicy>>,
    ) -> Result<Self, ProfileError> {
        let q_heads = heads.first().map_or(0, Vec::len);
        for (name, count) in [("layers", heads.len()), ("q_heads", q_heads)] {
            if count == 0 {
                return Err(ProfileError::not_a_count(ProfilePlace::Profile, name));
            }
        }
        let mut profile = Profile {
            model: model.into(),
            q_heads,
            heads,
            calibration: None,
        };
        profile.validate()?;
        profile.heads.iter_mut().flatten().for_each(normalize);
        Ok(profile)
    }

    /// The same with a note of how it was found.
    ///
    /// # Errors
    /// A price that is NaN, infinite or negative.
    pub fn with_calibration(self, calibration: Calibrated) -> Result<Self, ProfileError> {
        if !(calibration.price.is_finite() && calibration.price >= 0.0) {
            return Err(ProfileError::not_a_price());
        }
        Ok(Profile {
            calibration: Some(calibration),
            ..self
        })
    }

    fn validate(&self) -> Result<(), ProfileError> {
        for (layer, heads) in self.heads.iter().enumerate() {
            if heads.len() != self.q_heads {
                return Err(ProfileError::HeadCount {
                    layer,
                    given: heads.len(),
                    expected: self.q_heads,
                });
            }
            for (head, policy) in heads.iter().enumerate() {
                policy
                    .validate()
                    .map_err(|error| ProfileError::Policy { layer, head, error })?;
            }
        }
        Ok(())
    }

    /// The model that it is of, in words.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// Layers.
    pub fn layers(&self) -> usize {
        self.heads.len()
    }

    /// Query heads of each layer.
    pub fn q_heads(&self) -> usize {
        self.q_heads
    }

    /// How it was found, where that is known.
    pub fn calibration(&self) -> Option<&Calibrated> {
        self.calibration.as_ref()
    }

    /// The policy of each query head of a layer, counted from 0: what [`HeadPlan::new`](crate::HeadPlan::new) and
    /// [`GpuPlan::per_head`](crate::pipeline::GpuPlan::per_head) take.
    ///
    /// # Errors
    /// [`ProfileError::NoLayer`].
    pub fn layer(&self, layer: usize) -> Result<&[HeadPolicy], ProfileError> {
        let heads = self.heads.get(layer).map(Vec::as_slice);
        heads.ok_or(ProfileError::NoLayer {
            layer,
            layers: self.layers(),
        })
    }

    /// The same, for a model with `q_heads` query heads.
    ///
    /// # Errors
    /// [`ProfileError::QHeads`] and [`ProfileError::NoLayer`].
    pub fn layer_of(&self, layer: usize, q_heads: usize) -> Result<&[HeadPolicy], ProfileError> {
        if self.q_heads != q_heads {
            return Err(ProfileError::QHeads {
                profile: self.q_heads,
                model: q_heads,
            });
        }
        self.layer(layer)
    }
}

/// Gives the fields that the budget does not use their defaults, so that what is written holds all of a policy.
fn normalize(head: &mut HeadPolicy) {
    let HeadPolicy::Selected(policy) = head else {
        return;
    };
    let unused = unstated();
    if policy.budget != Budget::Rows {
        policy.row_offset = unused.row_offset;
        (policy.tail, policy.tail_stride) = (unused.tail, unused.tail_stride);
    }
    if policy.budget != Budget::Blocks {
        policy.stride_doubles_from = unused.stride_doubles_from;
    }
}

/// A policy with what the format gives optional fields that are left out: part of the format, whatever the defaults become.
fn unstated() -> Policy {
    Policy {
        row_offset: 0,
        tail: 0,
        tail_stride: 4,
        stride_doubles_from: usize::MAX,
        fallback: Fallback::Auto,
        ..Policy::default()
    }
}
