//! What a plan works out once: what its runs do, on how many threads, in how much memory.

use super::simd::InstructionSet;
use super::units::Units;
use super::workspace;
use crate::error::{Error, Result};
use crate::plan::Path;
use crate::policy::{Fallback, Policy};
use crate::problem::Problem;
use crate::report::HeadPath;
use crate::selection::SelectionShape;

/// The most tasks that a plan runs at a time: more than a machine has hardware threads.
pub const MAX_THREADS: usize = 1024;

/// A problem that is planned for, and the policy of its selection.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Planned {
    pub(super) problem: Problem,
    pub(super) policy: Option<Policy>,
    path: Path,
    pub(super) threads: usize,
    pub(super) instruction_set: InstructionSet,
    /// Where the path is to select.
    units: Option<Units>,
    pub(super) workspace_bytes: usize,
}

impl Planned {
    /// Of a valid problem and policy.
    ///
    /// # Errors
    /// [`Error::NoThreads`], [`Error::SelectionTooLarge`] and [`Error::WorkspaceTooLarge`].
    pub(super) fn new(
        problem: Problem,
        policy: Option<Policy>,
        path: Path,
        threads: usize,
    ) -> Result<Self> {
        if threads == 0 {
            return Err(Error::NoThreads);
        }
        let threads = threads.min(MAX_THREADS);
        let units = match policy {
            Some(policy) if path == Path::Select => {
                SelectionShape::checked(&problem)?;
                Some(Units::new(&problem, &policy, threads))
            }
            _ => None,
        };
        let workspace_bytes = workspace::bytes(&problem, units.as_ref(), threads).ok_or(
            Error::WorkspaceTooLarge {
                heads: problem.heads(),
                k_len: problem.k_len,
                threads,
            },
        )?;
        Ok(Planned {
            problem,
            policy,
            path,
            threads,
            instruction_set: InstructionSet::widest(),
            units,
            workspace_bytes,
        })
    }

    pub(super) fn with_threads(self, threads: usize) -> Result<Self> {
        let planned = Planned::new(self.problem, self.policy, self.path, threads)?;
        Ok(Planned {
            instruction_set: self.instruction_set,
            ..planned
        })
    }

    pub(super) fn with_instruction_set(self, instruction_set: InstructionSet) -> Result<Self> {
        Ok(Planned {
            instruction_set: instruction_set.checked()?,
            ..self
        })
    }

    pub(super) fn units(&self) -> Option<&Units> {
        self.units.as_ref()
    }

    /// How the report calls the path of heads that do not fall back.
    pub(super) fn head_path(&self) -> HeadPath {
        self.path.of_heads()
    }

    pub(super) fn fallback(&self) -> Option<Fallback> {
        self.policy.map(|policy| policy.fallback)
    }

    /// Share of the sampled mass to reach; everything for a dense plan.
    pub(super) fn coverage(&self) -> f32 {
        self.policy.map_or(1.0, |policy| policy.coverage)
    }
}
