//! Plans, made once for all layers and calls of the same shape.

use std::collections::VecDeque;
use std::sync::Arc;

use candle_core::{Error, Result, bail};
use sample_attention::{
    HeadPlan, Inputs, Outputs, Plan, Problem, Report, VarlenBounds, VarlenInputs, VarlenPlan,
};

use crate::policies::Visible;

/// What a plan is of.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Key {
    sizes: Sizes,
    visible: Visible,
    /// Of the rayon pool that the call is made in, all of which it may use.
    threads: usize,
}

/// The sizes of a call.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Sizes {
    Batch(Problem),
    Packed(VarlenBounds),
}

impl Key {
    pub(super) fn new(sizes: Sizes, visible: &Visible) -> Self {
        Key {
            sizes,
            visible: visible.clone(),
            threads: rayon::current_num_threads(),
        }
    }
}

/// A plan of the library.
#[derive(Debug)]
pub(crate) enum CpuPlan {
    Alike(Plan),
    PerHead(HeadPlan),
    Packed(VarlenPlan),
}

impl CpuPlan {
    pub(crate) fn new(key: &Key) -> Result<Self> {
        let plan = match (&key.sizes, &key.visible) {
            (&Sizes::Batch(problem), Visible::Dense { .. }) => {
                Plan::dense(problem).map(CpuPlan::Alike)
            }
            (&Sizes::Batch(problem), Visible::Same(policy)) => {
                Plan::new(problem, *policy).map(CpuPlan::Alike)
            }
            (&Sizes::Batch(problem), Visible::PerHead(policies)) => {
                HeadPlan::new(problem, policies).map(CpuPlan::PerHead)
            }
            (&Sizes::Packed(bounds), Visible::Dense { .. }) => {
                VarlenPlan::dense(bounds).map(CpuPlan::Packed)
            }
            (&Sizes::Packed(bounds), Visible::Same(policy)) => {
                VarlenPlan::new(bounds, *policy).map(CpuPlan::Packed)
            }
            (&Sizes::Packed(bounds), Visible::PerHead(policies)) => {
                VarlenPlan::per_head(bounds, policies).map(CpuPlan::Packed)
            }
        };
        plan.map_err(Error::wrap)
    }

    pub(super) fn workspace_bytes(&self) -> usize {
        match self {
            CpuPlan::Alike(plan) => plan.workspace_bytes(),
            CpuPlan::PerHead(plan) => plan.workspace_bytes(),
            CpuPlan::Packed(plan) => plan.workspace_bytes(),
        }
    }

    /// Runs a plan of a batch.
    pub(super) fn run(
        &self,
        inputs: &Inputs<'_>,
        outputs: Outputs<'_>,
        workspace: &mut [u8],
    ) -> Result<Report> {
        match self {
            CpuPlan::Alike(plan) => plan.run(inputs, outputs, workspace),
            CpuPlan::PerHead(plan) => plan.run(inputs, outputs, workspace),
            CpuPlan::Packed(_) => bail!("the plan is one of packed sequences"),
        }
        .map_err(Error::wrap)
    }

    /// Runs a plan of packed sequences.
    pub(super) fn run_packed(
        &self,
        inputs: &VarlenInputs<'_>,
        outputs: Outputs<'_>,
        workspace: &mut [u8],
    ) -> Result<Report> {
        match self {
            CpuPlan::Packed(plan) => plan.run(inputs, outputs, workspace).map_err(Error::wrap),
            CpuPlan::Alike(_) | CpuPlan::PerHead(_) => bail!("the plan is one of a batch"),
        }
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
