//! The backends behind one call.

use sample_attention::emulator::Emulator;
use sample_attention::pipeline::{GpuPlan, Watch};
use sample_attention::{
    Inputs, Outputs, Plan, Problem, Progress, Report, Result, Selection, Stage,
};

use crate::args::Backend;
use crate::progress::Bar;

/// A plan on a backend.
#[allow(clippy::large_enum_variant, reason = "there are two of them")]
pub enum Engine {
    Cpu(Plan),
    Emulator(GpuPlan),
}

impl Engine {
    /// The plan on this backend, if it has kernels for it.
    pub fn new(backend: Backend, plan: &Plan) -> Result<Self> {
        match (backend, plan.policy()) {
            (Backend::Cpu, _) => Ok(Engine::Cpu(plan.clone())),
            (Backend::Emulator, Some(policy)) => {
                GpuPlan::new(*plan.problem(), *policy).map(Engine::Emulator)
            }
            (Backend::Emulator, None) => GpuPlan::dense(*plan.problem()).map(Engine::Emulator),
        }
    }

    /// Memory of the emulated device: the tensors, with O as f32, and the workspace.
    pub fn device_bytes(&self, problem: &Problem) -> u128 {
        let Engine::Emulator(plan) = self else {
            return 0;
        };
        let elements = |shape: [usize; 4]| shape.iter().map(|&size| size as u128).product::<u128>();
        let inputs = 2 * elements(problem.q_shape()) + 4 * elements(problem.kv_shape());
        let outputs = 4 * elements(problem.q_shape()) + 4 * problem.lse_len() as u128;
        inputs + outputs + u128::from(plan.workspace_bytes())
    }

    /// One run; `workspace` is the CPU backend's.
    pub fn run(
        &self,
        inputs: &Inputs<'_>,
        outputs: Outputs<'_>,
        workspace: &mut [u8],
        bar: &Bar,
    ) -> Result<(Report, Option<Selection>)> {
        match self {
            Engine::Cpu(plan) => {
                let mut stages = plan.stages_watched(inputs, workspace, bar)?;
                let report = stages.run(outputs)?;
                Ok((report, stages.selection()))
            }
            Engine::Emulator(plan) => {
                let run = Emulator::FAST.run_watched(plan, inputs, outputs, &mut Launches(bar))?;
                Ok((run.report, run.selection))
            }
        }
    }
}

/// Shows launches as progress.
struct Launches<'a>(&'a Bar);

impl Watch for Launches<'_> {
    fn launched(&mut self, stage: Stage, done: usize, total: usize) {
        self.0.advance(stage, done, total);
    }
}
