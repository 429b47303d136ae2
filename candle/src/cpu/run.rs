//! One run of a call: what it reads, and what it leaves.

use sample_attention::{Dtype, Report};

use super::scalar::Scalar;
use crate::call::{Attention, Views};
use crate::workspace::Workspace;

/// What a run leaves.
pub(super) struct Computed<T> {
    /// As q, contiguous.
    pub(super) o: Vec<T>,
    pub(super) lse: Option<Vec<f32>>,
    /// `None` where there was nothing to attend to.
    pub(super) report: Option<Report>,
}

/// One call, with everything that it reads.
pub(super) struct Run<'a, T> {
    pub(super) attention: &'a Attention,
    pub(super) workspace: &'a Workspace,
    pub(super) q: &'a [T],
    pub(super) k: &'a [T],
    pub(super) v: &'a [T],
    pub(super) views: &'a Views,
    pub(super) wants_lse: bool,
}

/// The library's name of an element type.
pub(super) fn dtype<T: Scalar>() -> Dtype {
    <T as sample_attention::Element>::DTYPE
}
