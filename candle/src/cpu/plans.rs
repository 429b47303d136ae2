//! Plans, made once for all layers and calls of the same shape.

use std::collections::VecDeque;
use std::sync::Arc;

use candle_core::{Error, Result};
use sample_attention::{HeadPlan, Inputs, Outputs, Plan, Problem, Report};

use crate::policies::Visible;

/// What a plan is of.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Key {
    pub(super) problem: Problem,
    pub(super) visible: Visible,
    /// Of the rayon pool that the call is made in, all of which it may use.
    pub(super) threads: usize,
}

/// A plan of the library.
#[derive(Debug)]
pub(crate) enum CpuPlan {
    Alike(Plan),
    PerHead(HeadPlan),
}

impl CpuPlan {
    pub(super) fn new(key: &Key) -> Result<Self> {
        let plan = match &key.visible {
            Visible::Dense { .. } => Plan::dense(key.problem).map(CpuPlan::Alike),
            Visible::Same(policy) => Plan::new(key.problem, *policy).map(CpuPlan::Alike),
            Visible::PerHead(policies) => {
                HeadPlan::new(key.problem, policies).map(CpuPlan::PerHead)
            }
        };
        plan.map_err(Error::wrap)
    }

    pub(super) fn workspace_bytes(&self) -> usize {
        match self {
            CpuPlan::Alike(plan) => plan.workspace_bytes(),
            CpuPlan::PerHead(plan) => plan.workspace_bytes(),
        }
    }

    pub(super) fn run(
        &self,
        inputs: &Inputs<'_>,
        outputs: Outputs<'_>,
        workspace: &mut [u8],
    ) -> Result<Report> {
        match self {
            CpuPlan::Alike(plan) => plan.run(inputs, outputs, workspace),
            CpuPlan::PerHead(plan) => plan.run(inputs, outputs, workspace),
        }
        .map_err(Error::wrap)
    }
}

/// The plans that were used last.
#[derive(Debug, Default)]
pub(crate) struct Plans {
    /// The latest in front.
    known: VecDeque<(Key, Arc<CpuPlan>)>,
}

/// As many as a batch of decoding sequences and a prompt in chunks have at a time; looking through them costs less than a microsecond.
const CAPACITY: usize = 64;

impl Plans {
    pub(crate) fn get(&mut self, key: &Key) -> Option<Arc<CpuPlan>> {
        let at = self.known.iter().position(|(known, _)| known == key)?;
        let found = self.known.remove(at)?;
        let plan = found.1.clone();
        self.known.push_front(found);
        Some(plan)
    }

    pub(crate) fn insert(&mut self, key: Key, plan: Arc<CpuPlan>) {
        self.known.push_front((key, plan));
        self.known.truncate(CAPACITY);
    }
}
