//! The backends behind one call.

use sample_attention::cpu::InstructionSet;
use sample_attention::cuda::Device;
#[cfg(feature = "emulator")]
use sample_attention::emulator::Emulator;
use sample_attention::pipeline::GpuPlan;
#[cfg(feature = "emulator")]
use sample_attention::pipeline::Watch;
use sample_attention::{HeadPlan, Inputs, Outputs, Plan, Problem, Report, Result, Selection};
#[cfg(feature = "emulator")]
use sample_attention::{Progress, Stage};

use crate::args::Backend;
use crate::failure::Failure;
use crate::gpu::GpuRun;
use crate::progress::Bar;
use crate::treatment::Treatment;

/// What plans run on.
#[allow(clippy::large_enum_variant, reason = "there is one of them")]
pub enum Machine {
    Cpu,
    #[cfg(feature = "emulator")]
    Emulator,
    Gpu(Device),
}

impl Machine {
    /// The backend, opened: a GPU that cannot be had is refused before anything is read or made.
    pub fn open(backend: Backend) -> std::result::Result<Self, Failure> {
        match backend {
            Backend::Cpu => Ok(Machine::Cpu),
            #[cfg(feature = "emulator")]
            Backend::Emulator => Ok(Machine::Emulator),
            #[cfg(not(feature = "emulator"))]
            Backend::Emulator => Err(Failure::of(
                "--backend emulator",
                "this program was not compiled with the feature `emulator`; build it with --features emulator",
            )),
            Backend::Cuda { ordinal } => Ok(Machine::Gpu(Device::new(ordinal)?)),
        }
    }

    /// The instructions that it computes with, and on what.
    pub fn instruction_set(&self) -> String {
        match self {
            Machine::Cpu => InstructionSet::widest().to_string(),
            #[cfg(feature = "emulator")]
            Machine::Emulator => "emulated mma.sync".to_owned(),
            Machine::Gpu(device) => format!(
                "{} on GPU {}, {}",
                device.target().name(),
                device.ordinal(),
                device.name()
            ),
        }
    }
}

/// A plan on a machine.
#[allow(clippy::large_enum_variant, reason = "there are few of them")]
pub enum Engine<'a> {
    Cpu(Plan),
    CpuHeads(HeadPlan),
    #[cfg(feature = "emulator")]
    Emulator(GpuPlan),
    Gpu(GpuRun<'a>),
}

impl<'a> Engine<'a> {
    /// The plan on this machine, if it has kernels for it.
    pub fn new(
        machine: &'a Machine,
        problem: Problem,
        treatment: &Treatment,
        inputs: &Inputs<'_>,
    ) -> Result<Self> {
        Ok(match machine {
            Machine::Cpu => match treatment {
                Treatment::Dense => Engine::Cpu(Plan::dense(problem)?),
                Treatment::Alike(policy) => Engine::Cpu(Plan::new(problem, *policy)?),
                Treatment::Each(layer) => Engine::CpuHeads(HeadPlan::new(problem, &layer.heads)?),
            },
            #[cfg(feature = "emulator")]
            Machine::Emulator => Engine::Emulator(kernels(problem, treatment)?),
            Machine::Gpu(device) => {
                let plan = kernels(problem, treatment)?;
                Engine::Gpu(GpuRun::new(device, plan, inputs)?)
            }
        })
    }

    /// Bytes that a run works in on this machine's CPU.
    pub fn workspace_bytes(&self) -> usize {
        match self {
            Engine::Cpu(plan) => plan.workspace_bytes(),
            Engine::CpuHeads(plan) => plan.workspace_bytes(),
            #[cfg(feature = "emulator")]
            Engine::Emulator(_) => 0,
            Engine::Gpu(_) => 0,
        }
    }

    /// Memory of the emulated device: the tensors, with O as f32, and the workspace.
    #[cfg(feature = "emulator")]
    pub fn emulated_bytes(&self, problem: &Problem) -> u128 {
        let Engine::Emulator(plan) = self else {
            return 0;
        };
        let elements = |shape: [usize; 4]| shape.iter().map(|&size| size as u128).product::<u128>();
        let inputs = 2 * elements(problem.q_shape()) + 4 * elements(problem.kv_shape());
        let outputs = 4 * elements(problem.q_shape()) + 4 * problem.lse_len() as u128;
        inputs + outputs + u128::from(plan.workspace_bytes())
    }

    /// Without an emulator there is none.
    #[cfg(not(feature = "emulator"))]
    pub fn emulated_bytes(&self, _problem: &Problem) -> u128 {
        0
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
            Engine::CpuHeads(plan) => {
                let (report, selection) = plan.run_selecting(inputs, outputs, workspace)?;
                Ok((report, Some(selection)))
            }
            #[cfg(feature = "emulator")]
            Engine::Emulator(plan) => {
                let run = Emulator::FAST.run_watched(plan, inputs, outputs, &mut Launches(bar))?;
                Ok((run.report, run.selection))
            }
            Engine::Gpu(run) => run.run(outputs),
        }
    }
}

/// The plan as launches.
fn kernels(problem: Problem, treatment: &Treatment) -> Result<GpuPlan> {
    match treatment {
        Treatment::Dense => GpuPlan::dense(problem),
        Treatment::Alike(policy) => GpuPlan::new(problem, *policy),
        Treatment::Each(layer) => GpuPlan::per_head(problem, &layer.heads),
    }
}

/// Shows launches as progress.
#[cfg(feature = "emulator")]
struct Launches<'a>(&'a Bar);

#[cfg(feature = "emulator")]
impl Watch for Launches<'_> {
    fn launched(&mut self, stage: Stage, done: usize, total: usize) {
        self.0.advance(stage, done, total);
    }
}
