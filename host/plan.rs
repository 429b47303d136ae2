//! What a problem and a policy come to, whatever the backend.

use crate::error::{Error, Result};
use crate::policy::{Fallback, Policy};
use crate::problem::Problem;
use crate::report::HeadPath;

/// What a plan's runs do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Path {
    Dense,
    BelowBreakEven,
    Select,
}

impl Path {
    /// What reports call it, for heads that do not fall back.
    pub(crate) fn of_heads(self) -> HeadPath {
        match self {
            Path::Dense => HeadPath::Dense,
            Path::BelowBreakEven => HeadPath::BelowBreakEven,
            Path::Select => HeadPath::Sparse,
        }
    }
}

/// What a plan's runs do on a backend where selecting `pays` for some problems and policies.
///
/// # Errors
/// Any field of the problem or the policy out of range, and [`Error::SparseNeedsCausal`].
pub(crate) fn path(
    problem: &Problem,
    policy: &Policy,
    pays: impl FnOnce(&Problem, &Policy) -> bool,
) -> Result<Path> {
    problem.validate()?;
    policy.validate()?;
    if !problem.causal {
        return Err(Error::SparseNeedsCausal);
    }
    Ok(match policy.fallback {
        Fallback::Auto if !pays(problem, policy) => Path::BelowBreakEven,
        Fallback::Auto | Fallback::Never => Path::Select,
    })
}
