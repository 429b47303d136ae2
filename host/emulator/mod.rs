//! The GPU kernels on an emulated GPU: the pipeline's launches, run on the CPU instruction by instruction.
//!
//! It shows on any machine what the kernels compute, and finds what they do wrong: accesses out of bounds, reads of memory
//! that nothing wrote (as NaN), deadlocks, divergence and races in shared memory. It is some ten thousand times slower than a
//! GPU, and slower than the CPU backend by far.
//!
//! ```
//! use sample_attention::emulator::Emulator;
//! use sample_attention::pipeline::GpuPlan;
//! use sample_attention::{Dtype, Fallback, Inputs, Outputs, Policy, Problem, TensorView, TensorViewMut};
//! # use half::bf16;
//! let problem = Problem::causal(200, 64, Dtype::Bf16);
//! let plan = GpuPlan::new(problem, Policy { fallback: Fallback::Never, ..Policy::default() })?;
//! let data = vec![bf16::ONE; 200 * 64];
//! let view = TensorView::bhsd(&data, problem.q_shape())?;
//! let mut o = vec![bf16::ZERO; data.len()];
//! let outputs = Outputs { o: TensorViewMut::bhsd(&mut o, problem.q_shape())?, lse: None };
//! let run = Emulator::FAST.run(&plan, &Inputs { q: view, k: view, v: view }, outputs)?;
//! assert_eq!(run.report.heads[0].blocks_kept, 3);
//! assert!(o.iter().all(|&x| x == bf16::ONE));
//! # Ok::<(), sample_attention::Error>(())
//! ```

mod memory;

use std::time::Instant;

use sample_attention_device::geometry::Units;
use sample_attention_device::gpu::emu::{self, Buffer, Fault, Gpu};
use sample_attention_device::reduction::MASS_ONE;
use sample_attention_device::top_k;

use crate::cpu::{SampledRow, UnitMass};
use crate::error::{Error, Result};
use crate::pipeline::{Arguments, Call, Device, GpuPlan, Launch, Lists, Region};
use crate::policy::Budget;
use crate::report::{Report, SelectedHead, Stage, StageTimes};
use crate::selection::Selection;
use crate::tensor::{Inputs, Outputs};
use memory::{OutputMemory, upload};

/// How the emulator runs launches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Emulator {
    mode: emu::Mode,
}

/// What a run found.
#[derive(Clone, Debug, PartialEq)]
pub struct EmulatedRun {
    /// What each head kept. The times are the emulator's, and say nothing about a GPU's.
    pub report: Report,
    /// What was selected; `None` where the plan runs dense.
    pub selection: Option<Selection>,
}

/// Told of every launch that ended, and of what its stage left in memory.
pub trait Watch {
    /// `done` of `total` launches have ended.
    fn launched(&mut self, _stage: Stage, _done: usize, _total: usize) {}

    /// A wave's rows were sampled.
    fn sampled(&mut self, _rows: Vec<SampledRow>) {}

    /// A unit's masses were added up.
    fn reduced(&mut self, _unit: UnitMass<'_>) {}
}

/// Watches nothing.
impl Watch for () {}

impl Emulator {
    /// Threads in their natural order, blocks of them on all cores, no search for races.
    pub const FAST: Self = Emulator {
        mode: emu::Mode::Fast,
    };

    /// Races in shared memory are errors; threads run in an order that the seed draws and replays. Several times slower.
    pub const fn checked(seed: u64) -> Self {
        Emulator {
            mode: emu::Mode::Checked { seed },
        }
    }

    /// Selects and attends. A plan of [`GpuPlan::given`] has no lists here: see [`Emulator::attend`].
    ///
    /// # Errors
    /// Tensors that do not fit the problem, and [`Error::KernelFault`]; nothing has been written then.
    pub fn run(
        &self,
        plan: &GpuPlan,
        inputs: &Inputs<'_>,
        outputs: Outputs<'_>,
    ) -> Result<EmulatedRun> {
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
    ) -> Result<EmulatedRun> {
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
        selection.check(plan.problem())?;
        let plan = GpuPlan::given(*plan.problem(), selection.sinks())?;
        let lists = Lists::of(plan.sizes(), selection);
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
    ) -> Result<EmulatedRun> {
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
            k,
            v,
            o: o.tensor(),
            o_dtype: outputs.o.dtype(),
            lse: lse.address(),
            workspace: workspace.address().cast(),
        };
        let mut executor = Executor {
            plan,
            mode: self.mode,
            gpu,
            workspace,
            times: StageTimes::default(),
            launched: 0,
            launches: plan.launches(&arguments).len(),
            watch,
        };
        if let Some(lists) = lists {
            executor.write_lists(lists);
        }
        plan.run(&mut executor, &arguments)
            .map_err(|fault| Error::KernelFault {
                fault: fault.to_string(),
            })?;
        let run = executor.found()?;
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
    gpu: Gpu,
    workspace: Buffer<u64>,
    times: StageTimes,
    launched: usize,
    launches: usize,
    watch: &'a mut dyn Watch,
}

impl Device for Executor<'_> {
    type Error = Fault;

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
        match &launch.call {
            Call::Sampling(_, params) => self.tell_sampled(&params.units),
            Call::ReductionBlocks(_, params) => self.tell_reduced(&params.units),
            Call::ReductionKeys(_, params) => self.tell_reduced(&params.units),
            _ => {}
        }
        Ok(())
    }
}

impl Executor<'_> {
    fn region<T>(&self, region: &Region<T>) -> Buffer<T> {
        self.workspace
            .part(region.offset_bytes, region.len as usize)
    }

    fn write_lists(&mut self, lists: &Lists) {
        let regions = self.plan.workspace();
        for (region, data) in [
            (&regions.lists, &lists.lists),
            (&regions.list_counts, &lists.list_counts),
            (&regions.stripes, &lists.stripes),
            (&regions.stripe_counts, &lists.stripe_counts),
            (&regions.dense, &lists.dense),
        ] {
            let buffer = self.region(region);
            self.gpu.write(&buffer, data);
        }
    }

    fn read_lists(&self) -> Lists {
        let regions = self.plan.workspace();
        let read = |region: &Region<u32>| self.gpu.read(&self.region(region));
        Lists {
            lists: read(&regions.lists),
            list_counts: read(&regions.list_counts),
            stripes: read(&regions.stripes),
            stripe_counts: read(&regions.stripe_counts),
            dense: read(&regions.dense),
        }
    }

    fn tell_sampled(&mut self, units: &Units) {
        let sizes = units.sizes;
        let row_lse = self.gpu.read(&self.region(&self.plan.workspace().row_lse));
        let of_unit = row_lse.chunks(units.row_capacity as usize);
        let rows = (0..units.count)
            .zip(of_unit)
            .flat_map(|(slot, row_lse)| {
                let unit = units.unit(units.first + slot);
                let rows = units.rows(unit);
                (0..rows.len()).zip(row_lse).map(move |(rank, &lse)| {
                    let row = rows.position(rank) + sizes.q_len - sizes.k_len;
                    SampledRow {
                        batch: (unit.head / sizes.q_heads) as usize,
                        q_head: (unit.head % sizes.q_heads) as usize,
                        row: row as usize,
                        lse: f64::from(lse) * std::f64::consts::LN_2,
                    }
                })
            })
            .collect();
        self.watch.sampled(rows);
    }

    fn tell_reduced(&mut self, units: &Units) {
        let plan = self.plan;
        let Some(policy) = plan.plan().policy() else {
            return;
        };
        let regions = plan.workspace();
        let mass = self.gpu.read(&self.region(&regions.mass));
        let covered = self.gpu.read(&self.region(&regions.covered));
        let (candidates, candidates_per_row, tasks) = match policy.budget {
            Budget::Blocks => (
                units.pair_capacity(),
                units.sizes.key_blocks(),
                units.unit_blocks,
            ),
            Budget::Residual | Budget::Paper => (
                units.key_capacity(),
                units.key_capacity(),
                units.sizes.key_blocks(),
            ),
        };
        let of_units = mass
            .chunks(candidates as usize)
            .zip(covered.chunks(tasks as usize));
        for (slot, (mass, covered)) in (0..units.count).zip(of_units) {
            let unit = units.unit(units.first + slot);
            let rows = units.rows(unit).len();
            let covered = covered.iter().sum();
            let goal = top_k::goal(policy.coverage, rows);
            self.watch.reduced(UnitMass {
                batch: (unit.head / units.sizes.q_heads) as usize,
                q_head: (unit.head % units.sizes.q_heads) as usize,
                first_query_block: unit.first_block as usize,
                rows: rows as usize,
                covered,
                need: match policy.budget {
                    Budget::Paper => goal,
                    Budget::Blocks | Budget::Residual => goal.saturating_sub(covered),
                },
                candidates_per_row: candidates_per_row as usize,
                mass,
            });
        }
    }

    /// Report and selection, once all launches have ended.
    fn found(&self) -> Result<EmulatedRun> {
        let plan = self.plan;
        let Some(units) = plan.units() else {
            return Ok(EmulatedRun {
                report: Report::new(plan.plan(), self.times, |_| None),
                selection: None,
            });
        };
        let lists = self.read_lists();
        let selection = lists.selection(plan.problem(), units.sinks)?;
        let kept = self.gpu.read(&self.region(&plan.workspace().kept));
        let q_heads = plan.problem().q_heads;
        let report = Report::new(plan.plan(), self.times, |head| {
            let per_head = units.per_head();
            let of_head = head as u32 * per_head..(head as u32 + 1) * per_head;
            let rows: u64 = of_head
                .clone()
                .map(|unit| u64::from(units.rows(units.unit(unit)).len()))
                .sum();
            let kept: u64 = of_head.map(|unit| kept[unit as usize]).sum();
            Some(SelectedHead {
                mask: selection.head(head / q_heads, head % q_heads),
                sampled_coverage: (rows > 0).then(|| kept as f64 / (rows as f64 * MASS_ONE as f64)),
            })
        });
        Ok(EmulatedRun {
            report,
            selection: Some(selection),
        })
    }
}
