//! The GPU kernels on an emulated GPU: the pipeline's launches, run on the CPU instruction by instruction.
//!
//! It shows on any machine what the kernels compute, and finds what they do wrong: accesses out of bounds, reads of memory
//! that nothing wrote (as NaN), deadlocks, divergence and races in shared memory. It is some ten thousand times slower than a
//! GPU, and slower than the CPU backend by far.
//!
//! ```
//! use sample_attention::emulator::Emulator;
//! use sample_attention::pipeline::GpuPlan;
//! use sample_attention::{Budget, Dtype, Fallback, Inputs, Outputs, Policy, Problem, TensorView, TensorViewMut};
//! # use half::bf16;
//! let problem = Problem::causal(200, 64, Dtype::Bf16);
//! let plan = GpuPlan::new(problem, Policy::of(Budget::Blocks).with_fallback(Fallback::Never))?;
//! let data = vec![bf16::ONE; 200 * 64];
//! let view = TensorView::bhsd(&data, problem.q_shape())?;
//! let mut o = vec![bf16::ZERO; data.len()];
//! let outputs = Outputs::new(TensorViewMut::bhsd(&mut o, problem.q_shape())?);
//! let run = Emulator::FAST.run(&plan, &Inputs::new(view, view, view), outputs)?;
//! assert_eq!(run.report.heads[0].blocks_kept, 3);
//! assert!(o.iter().all(|&x| x == bf16::ONE));
//! # Ok::<(), sample_attention::Error>(())
//! ```

mod memory;

use std::time::Instant;

use sample_attention_device::abi::KvTensor;
use sample_attention_device::gpu::emu::{self, Buffer, Fault, Gpu};

use crate::error::{Error, Result};
use crate::pipeline::{
    Arguments, Device, GpuPlan, Launch, Lengths, Lists, Outcome, Target, TensorMap, TensorMapLayout, Watch,
};
use crate::report::StageTimes;
use crate::selection::Selection;
use crate::tensor::{Inputs, Outputs};
use memory::{OutputMemory, upload};

/// How the emulator runs launches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Emulator {
    mode: emu::Mode,
    target: Target,
}

/// Few, so that a block of a persistent kernel has several tasks even in small problems.
const MULTIPROCESSORS: u32 = 4;

impl Emulator {
    /// Threads in their natural order, blocks of them on all cores, no search for races.
    pub const FAST: Self = Emulator {
        mode: emu::Mode::Fast,
        target: Target::Sm80,
    };

    /// Races in shared memory are errors; threads run in an order that the seed draws and replays. Several times slower.
    pub const fn checked(seed: u64) -> Self {
        Emulator {
            mode: emu::Mode::Checked { seed },
            target: Target::Sm80,
        }
    }

    /// The same with the kernels of another target; [`Target::Sm80`] unless told.
    pub const fn with_target(self, target: Target) -> Self {
        Emulator { target, ..self }
    }

    /// Selects and attends.
    ///
    /// # Errors
    /// Tensors that do not fit the problem, [`Error::ListsMissing`] for a plan of [`GpuPlan::given`], whose lists
    /// [`Emulator::attend`] takes, and [`Error::KernelFault`]; nothing has been written then.
    pub fn run(
        &self,
        plan: &GpuPlan,
        inputs: &Inputs<'_>,
        outputs: Outputs<'_>,
    ) -> Result<Outcome> {
        self.run_watched(plan, inputs, outputs, &mut ())
    }

    /// As [`Emulator::run`], watched.
    ///
    /// # Errors
    /// As [`Emulator::run`].
    pub fn run_watched(
        &self,
        plan: &GpuPlan,
        inputs: &Inputs<'_>,
        outputs: Outputs<'_>,
        watch: &mut dyn Watch,
    ) -> Result<Outcome> {
        if plan.given_sinks().is_some() {
            return Err(Error::ListsMissing);
        }
        self.execute(plan, None, inputs, outputs, watch)
    }

    /// Attends to a selection that the caller made.
    ///
    /// # Errors
    /// As [`Emulator::run`], and [`Error::SelectionShape`].
    pub fn attend(
        &self,
        plan: &GpuPlan,
        inputs: &Inputs<'_>,
        selection: &Selection,
        outputs: Outputs<'_>,
    ) -> Result<()> {
        let plan = GpuPlan::given(*plan.problem(), selection.sinks())?;
        let lists = Lists::of(&plan, selection)?;
        self.execute(&plan, Some(&lists), inputs, outputs, &mut ())?;
        Ok(())
    }

    fn execute(
        &self,
        plan: &GpuPlan,
        lists: Option<&Lists>,
        inputs: &Inputs<'_>,
        mut outputs: Outputs<'_>,
        watch: &mut dyn Watch,
    ) -> Result<Outcome> {
        let problem = plan.problem();
        inputs.check(problem)?;
        outputs.check(problem)?;
        let mut gpu = Gpu::new();
        let q = upload(&mut gpu, "q", &inputs.q)?;
        let k = upload(&mut gpu, "k", &inputs.k)?;
        let v = upload(&mut gpu, "v", &inputs.v)?;
        let o = OutputMemory::new(&mut gpu, &mut outputs.o);
        let lse = gpu.alloc::<f32>("lse", problem.lse_len());
        let words = plan.workspace_bytes().div_ceil(8) as usize;
        let workspace = gpu.alloc::<u64>("workspace", words);
        let arguments = Arguments {
            q,
            k: KvTensor::strided(k),
            v: KvTensor::strided(v),
            kv_extents: [problem.batch, problem.kv_heads, problem.k_len].map(|size| size as u32),
            q_tokens: problem.q_len as u32,
            o: o.tensor(),
            o_dtype: outputs.o.dtype(),
            lse: lse.address(),
            lengths: Lengths::EQUAL,
            workspace: workspace.address().cast(),
        };
        let mut executor = Executor {
            plan,
            mode: self.mode,
            target: self.target,
            gpu,
            workspace,
            times: StageTimes::default(),
            launched: 0,
            launches: 0,
            watch,
        };
        let to_error = |fault: Fault| Error::KernelFault {
            fault: fault.to_string(),
        };
        executor.launches = plan
            .launches(&mut executor, &arguments)
            .map_err(to_error)?
            .len();
        if let Some(lists) = lists {
            executor.write_lists(lists);
        }
        plan.run(&mut executor, &arguments).map_err(to_error)?;
        let run = plan.outcome(executor.times, |offset_bytes, to| {
            read_words(&executor.gpu, &workspace, offset_bytes, to);
            Ok::<(), Error>(())
        })?;
        o.download(&executor.gpu, &mut outputs.o);
        if let Some(to) = outputs.lse {
            to.copy_from_slice(&executor.gpu.read(&lse));
        }
        Ok(run)
    }
}

/// A run on an emulated device.
struct Executor<'a> {
    plan: &'a GpuPlan,
    mode: emu::Mode,
    target: Target,
    gpu: Gpu,
    workspace: Buffer<u64>,
    times: StageTimes,
    launched: usize,
    launches: usize,
    watch: &'a mut dyn Watch,
}

impl Device for Executor<'_> {
    type Error = Fault;

    fn target(&self) -> Target {
        self.target
    }

    fn multiprocessors(&self) -> u32 {
        MULTIPROCESSORS
    }

    fn tensor_map(&mut self, layout: &TensorMapLayout) -> Result<TensorMap, Fault> {
        Ok(emu::tensor_map(layout).expect("checked operands are what tensor maps take"))
    }

    fn launch(&mut self, launch: &Launch) -> Result<(), Fault> {
        let shape = emu::Launch::new(launch.shape.grid, launch.shape.block)
            .shared_bytes(launch.shape.shared_bytes)
            .mode(self.mode);
        let started = Instant::now();
        launch.call.emulate(&mut self.gpu, &shape)?;
        self.times.add(launch.stage, started.elapsed());
        self.launched += 1;
        self.watch
            .launched(launch.stage, self.launched, self.launches);
        let read = |offset_bytes, to: &mut [u8]| {
            read_words(&self.gpu, &self.workspace, offset_bytes, to);
            Ok(())
        };
        self.plan.tell(launch, read, self.watch)
    }
}

impl Executor<'_> {
    fn write_lists(&mut self, lists: &Lists) {
        for (region, data) in lists.regions(self.plan.workspace()) {
            let buffer = self.workspace.part(region.offset_bytes, data.len());
            self.gpu.write(&buffer, data);
        }
    }
}

/// Copies words of the workspace, which all of its regions are made of.
fn read_words(gpu: &Gpu, workspace: &Buffer<u64>, offset_bytes: u64, to: &mut [u8]) {
    let words = workspace.part::<u32>(offset_bytes, to.len() / size_of::<u32>());
    to.copy_from_slice(bytemuck::cast_slice(&gpu.read(&words)));
}
