//! What can be wrong with a profile, each with its remedy.

use std::fmt;

use crate::error::Error;

/// Where in a profile something is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProfilePlace {
    /// The profile's own fields.
    Profile,
    /// The fields of `calibration`.
    Calibration,
    /// One layer of `heads`.
    Layer(usize),
    /// One head of one layer.
    Head {
        /// The layer, counted from 0.
        layer: usize,
        /// The query head, counted from 0.
        head: usize,
    },
}

impl fmt::Display for ProfilePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ProfilePlace::Profile => write!(f, "the profile"),
            ProfilePlace::Calibration => write!(f, "`calibration`"),
            ProfilePlace::Layer(layer) => write!(f, "layer {layer}"),
            ProfilePlace::Head { layer, head } => write!(f, "layer {layer}, head {head}"),
        }
    }
}

/// A profile that cannot be read, written or used.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ProfileError {
    /// The file cannot be read or written.
    #[error("{path}: {why}")]
    File {
        /// The file.
        path: String,
        /// What the system says.
        why: String,
    },
    /// The text is not JSON, or nested too deeply.
    #[error("not a JSON document: {why}")]
    Json {
        /// What is wrong, and where.
        why: String,
    },
    /// JSON that is no profile.
    #[error("not a profile: `format` must be \"{FORMAT}\"", FORMAT = super::FORMAT)]
    Format,
    /// A version that this library does not know.
    #[error(
        "the profile has version {given}, and this library reads version {VERSION}: use a newer sample-attention, or calibrate again",
        VERSION = super::VERSION
    )]
    Version {
        /// The profile's.
        given: u64,
    },
    /// A field is missing.
    #[error("{place} has no field `{field}`: add it, or calibrate again")]
    MissingField {
        /// Where.
        place: ProfilePlace,
        /// Its name.
        field: &'static str,
    },
    /// A field that the format does not have there.
    #[error("{place} has an unknown field `{field}`: remove it; known here: {known}")]
    UnknownField {
        /// Where.
        place: ProfilePlace,
        /// Its name.
        field: String,
        /// What the format has there.
        known: String,
    },
    /// A field is there twice.
    #[error("{place} has the field `{field}` twice: keep one")]
    DuplicateField {
        /// Where.
        place: ProfilePlace,
        /// Its name.
        field: String,
    },
    /// A value of another type, or beyond its range.
    #[error("{place}: `{field}` must be {expected}")]
    Value {
        /// Where.
        place: ProfilePlace,
        /// The field.
        field: &'static str,
        /// What it must be.
        expected: &'static str,
    },
    /// A kind of head that the format does not have.
    #[error(
        "layer {layer}, head {head} has the unknown kind `{kind}`: use dense, local, rows, blocks, residual or paper"
    )]
    UnknownKind {
        /// The layer.
        layer: usize,
        /// The query head.
        head: usize,
        /// The given kind.
        kind: String,
    },
    /// A parameter out of its range.
    #[error("layer {layer}, head {head}: {error}")]
    Policy {
        /// The layer.
        layer: usize,
        /// The query head.
        head: usize,
        /// What is wrong with its policy.
        error: Error,
    },
    /// A number of layers other than the one stated.
    #[error(
        "`heads` has {given} layers, but `layers` says {expected}: every layer needs a list of its heads"
    )]
    LayerCount {
        /// Lists of heads.
        given: usize,
        /// The stated number.
        expected: usize,
    },
    /// A number of heads other than the one stated.
    #[error(
        "layer {layer} has {given} heads, but `q_heads` says {expected}: give each query head an entry"
    )]
    HeadCount {
        /// The layer.
        layer: usize,
        /// Its entries.
        given: usize,
        /// The stated number.
        expected: usize,
    },
    /// A layer that the profile does not have.
    #[error("there is no layer {layer} in the profile, which has {layers}, counted from 0")]
    NoLayer {
        /// The given layer.
        layer: usize,
        /// Layers of the profile.
        layers: usize,
    },
    /// The profile is of a model with other heads.
    #[error(
        "the profile is of a model with {profile} query heads, and this one has {model}: calibrate this model"
    )]
    QHeads {
        /// The profile's.
        profile: usize,
        /// The problem's.
        model: usize,
    },
}
