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
    Arguments, Device, GpuPlan, Launch, Lengths, Lists, Outcome, Target, TensorMap,
    TensorMapLayout, Watch,
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

    /// Runs a plan of [`GpuPlan::for_bounds`] on a packed batch: queries [1, q_heads, total_q, head_dim], keys and values
    /// [1, kv_heads, total_k, head_dim], or [pages, kv_heads, page tokens, head_dim] with a table.
    ///
    /// # Errors
    /// Tensors that do not fit the plan, [`Error::PackedLength`], [`Error::PageNumber`] and [`Error::KernelFault`]; nothing has been
    /// written then.
    pub fn run_packed(
        &self,
        plan: &GpuPlan,
        packed: &Packed<'_>,
        inputs: &Inputs<'_>,
        mut outputs: Outputs<'_>,
    ) -> Result<()> {
        packed.check(plan, inputs)?;
        refuse_sinks(inputs)?;
        let mut gpu = Gpu::new();
        let [_, q_heads, q_tokens, _] = inputs.q.shape();
        let kv_shape = inputs.k.shape();
        let q = upload(&mut gpu, "q", &inputs.q)?;
        let [k, v] = [("k", &inputs.k), ("v", &inputs.v)]
            .map(|(name, tensor)| upload(&mut gpu, name, tensor));
        let (k, v) = (k?, v?);
        let o = OutputMemory::new(&mut gpu, &mut outputs.o);
        let lse = gpu.alloc::<f32>("lse", q_heads * q_tokens);
        let words = plan.workspace_bytes().div_ceil(8) as usize;
        let workspace = gpu.alloc::<u64>("workspace", words);
        let table = packed
            .pages
            .map(|(table, stride)| (gpu.upload("block_table", table).address(), stride));
        let keys = |rows| match table {
            None => KvTensor::strided(rows),
            Some((block_table, table_stride)) => KvTensor {
                block_table,
                table_stride,
                page_log2: kv_shape[2].ilog2(),
                ..KvTensor::strided(rows)
            },
        };
        let arguments = Arguments {
            q,
            k: keys(k),
            v: keys(v),
            kv_extents: [kv_shape[0], kv_shape[1], kv_shape[2]].map(|size| size as u32),
            q_tokens: q_tokens as u32,
            o: o.tensor(),
            o_dtype: outputs.o.dtype(),
            lse: lse.address(),
            lengths: Lengths {
                cu_q: gpu.upload("cu_q", packed.cu_q).address(),
                cu_k: gpu.upload("cu_k", packed.cu_k).address(),
                k_lens_each: packed.k_lens_each,
            },
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
            watch: &mut (),
        };
        plan.run(&mut executor, &arguments)
            .map_err(|fault| Error::KernelFault {
                fault: fault.to_string(),
            })?;
        o.download(&executor.gpu, &mut outputs.o);
        if let Some(to) = outputs.lse {
            to.copy_from_slice(&executor.gpu.read(&lse));
        }
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
        refuse_sinks(inputs)?;
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

/// The kernels have none.
fn refuse_sinks(inputs: &Inputs<'_>) -> Result<()> {
    match inputs.sink_logits {
        Some(_) => Err(Error::KernelModel {
            what: "sink_logits",
        }),
        None => Ok(()),
    }
}

/// The lengths of a packed batch, and the pages of its keys and values.
#[derive(Clone, Copy, Debug)]
pub struct Packed<'a> {
    /// \[sequences + 1\]: cumulative queries.
    pub cu_q: &'a [u32],
    /// \[sequences + 1\]: cumulative keys; with `k_lens_each` \[sequences\], one length each, for pages alone.
    pub cu_k: &'a [u32],
    /// Whether `cu_k` holds one length a sequence.
    pub k_lens_each: bool,
    /// The page numbers of each sequence, and how many entries it is to the next sequence's; `None` where keys are packed.
    pub pages: Option<(&'a [u32], u32)>,
}

impl Packed<'_> {
    /// Keys of a sequence.
    fn k_len(&self, sequence: usize) -> u32 {
        if self.k_lens_each {
            self.cu_k[sequence]
        } else {
            self.cu_k[sequence + 1].saturating_sub(self.cu_k[sequence])
        }
    }

    fn check(&self, plan: &GpuPlan, inputs: &Inputs<'_>) -> Result<()> {
        let problem = plan.problem();
        let wrong = |name, sequence, given| Error::PackedLength {
            name,
            sequence,
            given,
        };
        let k_lens = problem.batch + usize::from(!self.k_lens_each);
        if self.cu_q.len() != problem.batch + 1 || self.cu_k.len() != k_lens {
            return Err(wrong(
                "the number of lengths",
                problem.batch,
                self.cu_q.len() as u32,
            ));
        }
        let [pages, _, page_tokens, _] = inputs.k.shape();
        for sequence in 0..problem.batch {
            let [from, to] = [self.cu_q[sequence], self.cu_q[sequence + 1]];
            let is_long = (to.saturating_sub(from)) as usize > problem.q_len;
            if to < from || is_long || to as usize > inputs.q.shape()[2] {
                return Err(wrong("cu_q", sequence, to));
            }
            let k_len = self.k_len(sequence);
            let falls = !self.k_lens_each && self.cu_k[sequence + 1] < self.cu_k[sequence];
            let is_outside = self.pages.is_none() && self.cu_k[sequence + 1] as usize > page_tokens;
            if falls || is_outside || k_len as usize > problem.k_len {
                return Err(wrong("cu_k", sequence, k_len));
            }
            let Some((table, stride)) = self.pages else {
                continue;
            };
            if !matches!(page_tokens, 16 | 32 | 64 | 128) {
                return Err(Error::PageTokens { given: page_tokens });
            }
            for entry in 0..(k_len as usize).div_ceil(page_tokens) {
                let page = table.get(sequence * stride as usize + entry).copied();
                let page = page.unwrap_or(u32::MAX);
                if page as usize >= pages {
                    return Err(Error::PageNumber {
                        sequence,
                        slot: entry,
                        page: page.into(),
                        pages,
                    });
                }
            }
        }
        Ok(())
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
