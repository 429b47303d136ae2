//! The native backend: the four stages on rayon threads with SIMD.
//!
//! Levels, each built on the one below: stages (`sampling`, `reduction`, `top_k`,
//! `sparse_flash`, and `few_queries` in its place) → `tile`, the arithmetic of up to 128 keys against 32 queries → `simd`, the instruction sets.
//! `rows` converts between the caller's buffers and tiles, `units` cuts the selection up, `workers` hands out tasks.

mod accumulator;
mod arena;
mod batch;
mod break_even;
mod call;
mod carved;
mod coverage;
mod few_queries;
mod merge;
mod per_row;
mod plan;
mod planned;
mod query_block;
mod reduction;
mod rows;
mod sampling;
mod scratch;
mod simd;
mod sparse_flash;
mod stages;
mod tile;
mod top_k;
mod totals;
mod units;
mod varlen;
mod workers;
mod workspace;

pub use crate::stage::{SampledRow, UnitMass};
pub use merge::merge;
pub use plan::Plan;
pub use planned::MAX_THREADS;
pub use reduction::MASS_ONE;
pub use simd::InstructionSet;
pub(crate) use simd::{Kernel, Lanes, PANEL, Simd};
pub use stages::Stages;
pub(crate) use tile::{KEY_GROUP, Rows, scores};
#[cfg(test)]
pub(crate) use units::{Unit, Units};
pub use varlen::VarlenPlan;
pub(crate) use workers::for_each_task;

use crate::error::{Error, Result};
use crate::report::Coverage;
use crate::selection::Selection;
use crate::tensor::{Inputs, Outputs};
use call::Call;
use planned::Planned;
use scratch::Scratch;
use sparse_flash::Mask;

/// Attention over the caller's own selection.
pub(crate) fn attend(
    plan: &Planned,
    inputs: &Inputs<'_>,
    selection: &Selection,
    outputs: Outputs<'_>,
    workspace: &mut [u8],
) -> Result<()> {
    inputs.check(&plan.problem)?;
    if plan.problem.window_left.is_some() && !plan.problem.causal {
        return Err(Error::SelectionWindow);
    }
    let mut workspace = carved::workspace(plan, workspace, None)?;
    let mask = Mask::Selection(selection.as_ref());
    let memory = (&mut workspace.scratches[..], &mut *workspace.partials);
    stages::attend(plan, inputs, mask, outputs, memory, &())
}

/// See [`Plan::true_coverage`].
pub(crate) fn true_coverage(
    plan: &Planned,
    inputs: &Inputs<'_>,
    lse: &[f32],
    workspace: &mut [u8],
) -> Result<Vec<Coverage>> {
    let problem = &plan.problem;
    inputs.check(problem)?;
    problem.check_lse(lse.len())?;
    let mut scratches = scratches(plan, workspace)?;
    Ok(coverage::true_coverage(
        Call::of_inputs(problem, inputs),
        lse,
        &mut scratches,
    ))
}

/// The scratches alone, for work that selects nothing.
fn scratches<'a>(plan: &Planned, bytes: &'a mut [u8]) -> Result<Vec<Scratch<'a>>> {
    Ok(carved::workspace(plan, bytes, None)?.scratches)
}
