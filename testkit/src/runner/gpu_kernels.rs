//! What every backend of the GPU kernels has in common, whatever runs them.

use sample_attention::pipeline::GpuPlan;
use sample_attention::{Dtype, Problem, Result};

use super::Attend;

/// Whether there are kernels for the problem.
pub(super) fn support(problem: &Problem) -> bool {
    problem.dtype != Dtype::F32 && [64, 128].contains(&problem.head_dim)
}

/// The plan of a case, in waves of at most `wave_bytes` bytes.
pub(super) fn plan(problem: &Problem, attend: &Attend, wave_bytes: Option<u64>) -> Result<GpuPlan> {
    let plan = match attend {
        Attend::Policy(policy) => GpuPlan::new(*problem, *policy)?,
        Attend::Dense => GpuPlan::dense(*problem)?,
        Attend::Own(selection) => GpuPlan::given(*problem, selection.sinks())?,
    };
    Ok(match wave_bytes {
        Some(bytes) => plan.with_wave_bytes(bytes),
        None => plan,
    })
}
