//! How one query head is treated, apart from the rest of its layer.

use crate::policy::{Policy, Window};

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
    /// The head's kind in reports and profiles: `dense`, `local` or the budget's name.
    pub fn kind(&self) -> &'static str {
        match self {
            HeadPolicy::Dense => "dense",
            HeadPolicy::Local { .. } => "local",
            HeadPolicy::Selected(policy) => policy.budget.name(),
        }
    }
}
