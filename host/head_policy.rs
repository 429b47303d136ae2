//! How one query head is treated, apart from the rest of its layer.

use crate::geometry::row_offset;
use crate::policy::{Budget, Policy, Window};

/// How one query head is treated.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum HeadPolicy {
    /// Attends to every visible key. Nothing is sampled.
    Dense,
    /// Attends to a local window and the sinks. Nothing is sampled.
    Local {
        /// Most recent keys that every query keeps, in whole blocks as with a [`Policy`].
        window: Window,
        /// First keys of the sequence that every query keeps.
        sinks: usize,
    },
    /// Attends to what a policy selects.
    Selected(Policy),
}

impl HeadPolicy {
    /// The policy for a problem of one head that samples the rows which this one samples in query head `q_head`.
    pub(crate) fn at_head(self, q_head: usize) -> Self {
        match self {
            HeadPolicy::Selected(policy)
                if policy.budget == Budget::Rows && policy.row_stride > 0 =>
            {
                let offset = row_offset(policy.row_stride, policy.row_offset, q_head);
                HeadPolicy::Selected(policy.with_row_offset(offset))
            }
            _ => self,
        }
    }

    /// The head's kind in reports and profiles: `dense`, `local` or the budget's name.
    pub fn kind(&self) -> &'static str {
        match self {
            HeadPolicy::Dense => "dense",
            HeadPolicy::Local { .. } => "local",
            HeadPolicy::Selected(policy) => policy.budget.name(),
        }
    }
}
