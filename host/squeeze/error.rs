//! What can be wrong with an index or a call over one.

use crate::dtype::Dtype;

/// The module's result type.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An index that cannot be made or read, or a call over one that cannot be carried out. Nothing has been written when one is returned.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A key or value of the fixed context is NaN or infinite.
    #[error(
        "{tensor} of key/value head {head} at position {position} is not finite; an index takes finite keys and values only, so mend or leave out that position"
    )]
    NonFinite {
        /// `k` or `v`.
        tensor: &'static str,
        /// Key/value head.
        head: usize,
        /// Position in the fixed context.
        position: usize,
    },
    /// A field of [`IndexOptions`](super::IndexOptions) is out of range.
    #[error("{field} is {given}; it must be {range}")]
    Option {
        /// The field.
        field: &'static str,
        /// Its value.
        given: f64,
        /// What is taken.
        range: &'static str,
    },
    /// A tensor of the fixed context has more than one sequence.
    #[error(
        "the fixed context has batch {given}; an index holds one sequence, which any number of requests share, so build one for each"
    )]
    Batch {
        /// Sequences given.
        given: usize,
    },
    /// Keys and values that do not fit each other or the index.
    #[error(
        "{tensor} has shape {given:?}, but {expected:?} is needed (1, heads, length, head_dim)"
    )]
    Shape {
        /// Which tensor.
        tensor: &'static str,
        /// What fits.
        expected: [usize; 4],
        /// What was given.
        given: [usize; 4],
    },
    /// Keys or values of another element type than the index or the other tensor.
    #[error("{tensor} is {given}, but {expected} is needed; convert the tensor")]
    Dtype {
        /// Which tensor.
        tensor: &'static str,
        /// What fits.
        expected: Dtype,
        /// What was given.
        given: Dtype,
    },
    /// A rule of look-up is out of range.
    #[error("{field} of the look-up is {given}; it must be {range}")]
    Rule {
        /// The field of [`Centroids`](super::Centroids).
        field: &'static str,
        /// Its value.
        given: f64,
        /// What is taken.
        range: &'static str,
    },
    /// A rule that was not calibrated.
    #[error(
        "the look-up has no threshold yet: calibrate it (Squeeze::observe, Observed::threshold_for_share, Centroids::with_keep), or give Keep::Threshold"
    )]
    Uncalibrated,
    /// A rule that the index has no statistics for.
    #[error("the index has no {what}; build it with {remedy}")]
    Missing {
        /// What the rule needs.
        what: &'static str,
        /// The option that makes it.
        remedy: &'static str,
    },
    /// Nothing to calibrate on.
    #[error("no scores were observed; observe the queries of an index that has clusters first")]
    NothingObserved,
    /// A file that cannot be read or written.
    #[error("{path}: {why}")]
    Io {
        /// The file.
        path: String,
        /// What the system says.
        why: String,
    },
    /// A file that holds no index of this library.
    #[error("{path} is no index of sample-attention: {why}")]
    Foreign {
        /// The file.
        path: String,
        /// What is missing.
        why: String,
    },
    /// An index of another version of the format.
    #[error(
        "{path} has version {given} of the index format, and this library reads {expected}: build the index again"
    )]
    Version {
        /// The file.
        path: String,
        /// The version of the file.
        given: String,
        /// The version that is read.
        expected: u32,
    },
    /// An index whose parts do not fit each other.
    #[error("{path} is damaged: {why}; build the index again")]
    Damaged {
        /// The file.
        path: String,
        /// What does not fit.
        why: String,
    },
    /// What dense attention and tensors say.
    #[error(transparent)]
    Attention(#[from] crate::error::Error),
}
