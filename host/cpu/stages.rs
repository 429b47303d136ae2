//! The pipeline, stage by stage.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use super::call::Call;
use super::few_queries::{Cut, FewQueries, few_queries};
use super::per_row;
use super::planned::Planned;
use super::reduction;
use super::rows::OutputRows;
use super::sampling::{self, tasks_per_unit};
use super::scratch::Scratch;
use super::sparse_flash::{self, Mask};
use super::tile;
use super::top_k::{self, choose_dense_heads};
use super::totals::HeadTotals;
use super::units::Units;
use super::workers::for_each_task;
use super::workspace::{Selecting, Workspace};
use crate::error::{Error, Result};
use crate::policy::{Budget, Fallback};
use crate::progress::Progress;
use crate::report::{Report, Stage, StageTimes};
use crate::selection::Selection;
use crate::stage::{SampledRow, UnitMass};
use crate::tensor::{Inputs, Outputs};

/// One run of a plan over given inputs, to be driven stage by stage: for benchmarks of single stages, and for looking at
/// what each of them found. [`Plan::run`](crate::Plan::run) drives it from end to end.
///
/// The selection goes *wave* by wave, as many heads or segments at a time as the workspace holds; each wave runs
/// [`sampling`](Stages::sampling), [`reduction`](Stages::reduction) and [`top_k`](Stages::top_k), in this order. With [`Budget::Rows`]
/// the first of them selects too, since each query block's masses are used up where they are made, and its time is split.
/// [`sparse_flash`](Stages::sparse_flash) then attends to what the waves selected.
///
/// ```
/// # use sample_attention::*;
/// # let problem = Problem::causal(512, 64, Dtype::F32);
/// # let data = vec![0.5f32; 512 * 64];
/// # let view = TensorView::bhsd(&data, problem.q_shape())?;
/// # let inputs = Inputs::new(view, view, view);
/// let policy = Policy::default().with_fallback(Fallback::Never);
/// let plan = Plan::new(problem, policy)?;
/// let mut workspace = vec![0; plan.workspace_bytes()];
/// let mut stages = plan.stages(&inputs, &mut workspace)?;
/// for wave in 0..stages.waves() {
///     stages.sampling(wave)?;
///     stages.reduction(wave)?;
///     stages.top_k(wave)?;
/// }
/// println!("{:.3}", stages.selection().unwrap().head(0, 0).density());
/// # Ok::<(), Error>(())
/// ```
pub struct Stages<'a> {
    plan: &'a Planned,
    inputs: Inputs<'a>,
    workspace: Workspace<'a>,
    progress: &'a dyn Progress,
    times: StageTimes,
    /// What the wave buffers hold: results of this wave up to this stage.
    in_buffers: Option<(usize, Stage)>,
    /// Waves whose rows are in the totals.
    counted: Vec<bool>,
    /// Waves whose selection is made.
    selected: Vec<bool>,
}

/// The plan, the inputs and the times so far; not the workspace.
impl std::fmt::Debug for Stages<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stages")
            .field("plan", self.plan)
            .field("inputs", &self.inputs)
            .field("times", &self.times)
            .finish_non_exhaustive()
    }
}

impl<'a> Stages<'a> {
    pub(crate) fn new(
        plan: &'a Planned,
        inputs: &Inputs<'a>,
        workspace: &'a mut [u8],
        progress: &'a dyn Progress,
    ) -> Result<Self> {
        let problem = &plan.problem;
        inputs.check(problem)?;
        let mut workspace = super::carved::workspace(plan, workspace, plan.units())?;
        if let (Some(units), Some(selecting)) = (plan.units(), &mut workspace.selecting) {
            selecting.reset(units);
        }
        Ok(Stages {
            plan,
            inputs: *inputs,
            workspace,
            progress,
            times: StageTimes::default(),
            in_buffers: None,
            counted: vec![false; plan.units().map_or(0, Units::waves)],
            selected: vec![false; plan.units().map_or(0, Units::waves)],
        })
    }

    /// Refuses what needs the results of a stage that the wave buffers do not hold: they may hold anything then.
    fn check_order(&self, asked: &'static str, wave: usize, needed: Stage) -> Result<()> {
        match self.in_buffers {
            Some((held, stage)) if held == wave && stage >= needed => Ok(()),
            _ if wave >= self.waves() => Err(Error::NoSuchWave {
                wave,
                waves: self.waves(),
            }),
            _ => Err(Error::StageOrder {
                stage: asked,
                wave,
                needed: needed.name(),
            }),
        }
    }

    /// Waves of the selection; 0 where the plan runs dense.
    pub fn waves(&self) -> usize {
        self.plan.units().map_or(0, Units::waves)
    }

    /// Finds the softmax normaliser of every sampled row of one wave; with [`Budget::Rows`] it selects too.
    ///
    /// # Errors
    /// [`Error::NoSuchWave`].
    pub fn sampling(&mut self, wave: usize) -> Result<()> {
        let (units, selecting) = selecting(self.plan, &mut self.workspace.selecting, wave)?;
        self.in_buffers = Some((wave, Stage::Sampling));
        if units.budget == Budget::Rows {
            return self.sample_and_select(wave);
        }
        let count = Count::new(
            self.progress,
            Stage::Sampling,
            wave * units.wave * tasks_per_unit(units),
            units.count() * tasks_per_unit(units),
        );
        let started = Instant::now();
        let tasks = sampling::tasks(
            Call::of_inputs(&self.plan.problem, &self.inputs),
            units,
            units.of_wave(wave),
            selecting.wave.sampling(),
        );
        for_each_task(&mut self.workspace.scratches, tasks, |scratch, task| {
            task.run(scratch);
            count.advance();
        });
        self.times.add(Stage::Sampling, started.elapsed());
        Ok(())
    }

    /// [`sampling`](Stages::sampling) of the budget of rows.
    fn sample_and_select(&mut self, wave: usize) -> Result<()> {
        let (units, selecting) = selecting(self.plan, &mut self.workspace.selecting, wave)?;
        let tasks = per_row::groups(units).count();
        let count = Count::new(
            self.progress,
            Stage::Sampling,
            wave * units.wave * tasks,
            units.count() * tasks,
        );
        let mut again = Vec::new();
        let totals = once(&mut self.counted[wave], selecting.totals, &mut again);
        let call = Call::of_inputs(&self.plan.problem, &self.inputs);
        let shared = per_row::Shared::new(call, units, self.plan.coverage(), totals);
        let row_stats = &mut *selecting.wave.row_stats;
        let tasks = per_row::tasks(&shared, wave, row_stats, &mut selecting.selection);
        let scratches = &mut self.workspace.scratches;
        let mut workers: Vec<_> = scratches
            .iter_mut()
            .zip(&mut self.workspace.task_buffers)
            .collect();
        let clock = per_row::Clock::start();
        for_each_task(&mut workers, tasks, |(scratch, buffers), task| {
            task.run((scratch, buffers), &clock);
            count.advance();
        });
        let times = clock.stop();
        self.times.add(Stage::Sampling, times.statistics);
        self.times.add(Stage::TopK, times.demand);
        Ok(())
    }

    /// Counts the units of a wave for a stage that the budget of rows has no work for.
    fn pass_over(&self, stage: Stage, units: &Units, wave: usize) {
        let count = Count::new(self.progress, stage, wave * units.wave, units.count());
        units.of_wave(wave).for_each(|_| count.advance());
    }

    /// Adds up the sampled mass of every candidate of one wave, which must have been sampled.
    ///
    /// # Errors
    /// [`Error::NoSuchWave`], and [`Error::StageOrder`] where another wave has been sampled since, or none.
    pub fn reduction(&mut self, wave: usize) -> Result<()> {
        self.check_order("reduction", wave, Stage::Sampling)?;
        let (units, selecting) = selecting(self.plan, &mut self.workspace.selecting, wave)?;
        self.in_buffers = Some((wave, Stage::Reduction));
        if units.budget == Budget::Rows {
            self.pass_over(Stage::Reduction, units, wave);
            return Ok(());
        }
        let count = Count::new(
            self.progress,
            Stage::Reduction,
            wave * units.wave * units.reductions(),
            units.count() * units.reductions(),
        );
        let started = Instant::now();
        let (sampled, buffers) = selecting.wave.reduction();
        let call = Call::of_inputs(&self.plan.problem, &self.inputs);
        let tasks = reduction::tasks(call, units, units.of_wave(wave), sampled, buffers);
        for_each_task(&mut self.workspace.scratches, tasks, |scratch, task| {
            task.run(scratch);
            count.advance();
        });
        self.times.add(Stage::Reduction, started.elapsed());
        Ok(())
    }

    /// Selects the smallest set of candidates of one wave, which must have been reduced, that reaches the coverage.
    ///
    /// # Errors
    /// [`Error::NoSuchWave`], and [`Error::StageOrder`] where the wave buffers do not hold the masses of this wave.
    pub fn top_k(&mut self, wave: usize) -> Result<()> {
        self.check_order("top_k", wave, Stage::Reduction)?;
        let (units, selecting) = selecting(self.plan, &mut self.workspace.selecting, wave)?;
        if units.budget == Budget::Rows {
            self.pass_over(Stage::TopK, units, wave);
            self.selected[wave] = true;
            return Ok(());
        }
        let count = Count::new(self.progress, Stage::TopK, wave * units.wave, units.count());
        let started = Instant::now();
        let mut again = Vec::new();
        let totals = once(&mut self.counted[wave], selecting.totals, &mut again);
        let masses = selecting.wave.masses(units, self.plan.coverage());
        let shared = top_k::Shared::new(masses, totals);
        let tasks = top_k::tasks(&shared, wave, &mut selecting.selection);
        for_each_task(&mut self.workspace.scratches, tasks, |scratch, task| {
            task.run(scratch);
            count.advance();
        });
        self.selected[wave] = true;
        let all = self.selected.iter().all(|&selected| selected);
        if all && self.plan.fallback() == Some(Fallback::Auto) {
            choose_dense_heads(units.geometry, &mut selecting.selection);
        }
        self.times.add(Stage::TopK, started.elapsed());
        Ok(())
    }

    /// Attends to what the waves selected, or to everything where the plan runs dense.
    ///
    /// # Errors
    /// Outputs that do not fit the problem, and [`Error::StageOrder`] where a wave has not been selected.
    pub fn sparse_flash(&mut self, outputs: Outputs<'_>) -> Result<()> {
        if let Some(wave) = self.selected.iter().position(|&selected| !selected) {
            return Err(Error::StageOrder {
                stage: Stage::SparseFlash.name(),
                wave,
                needed: Stage::TopK.name(),
            });
        }
        let mask = match &self.workspace.selecting {
            Some(selecting) => Mask::Selection(selecting.selection.as_ref()),
            None => Mask::Dense,
        };
        let started = Instant::now();
        let memory = (
            &mut self.workspace.scratches[..],
            &mut *self.workspace.partials,
        );
        let (plan, inputs) = (self.plan, &self.inputs);
        attend(plan, inputs, mask, outputs, memory, self.progress)?;
        self.times.add(Stage::SparseFlash, started.elapsed());
        Ok(())
    }

    /// All stages in order.
    ///
    /// # Errors
    /// Outputs that do not fit the problem; nothing has been computed then.
    pub fn run(&mut self, outputs: Outputs<'_>) -> Result<Report> {
        outputs.check(&self.plan.problem)?;
        for wave in 0..self.waves() {
            self.sampling(wave)?;
            self.reduction(wave)?;
            self.top_k(wave)?;
        }
        self.sparse_flash(outputs)?;
        Ok(self.report())
    }

    /// The selection so far; `None` where the plan runs dense.
    pub fn selection(&self) -> Option<Selection> {
        let selecting = self.workspace.selecting.as_ref()?;
        Some(selecting.selection.as_ref().to_owned())
    }

    /// The rows of the wave that was sampled last.
    ///
    /// # Errors
    /// [`Error::NoSuchWave`], and [`Error::StageOrder`] where another wave has been sampled since, or none.
    pub fn sampled_rows(&self, wave: usize) -> Result<Vec<SampledRow>> {
        self.check_order("sampled_rows", wave, Stage::Sampling)?;
        let (Some(units), Some(selecting)) = (self.plan.units(), &self.workspace.selecting) else {
            return Ok(Vec::new());
        };
        let q_heads = self.plan.problem.q_heads;
        let panels = selecting.wave.row_stats.chunks(units.panels.max(1));
        let rows = units.of_wave(wave).zip(panels).flat_map(|(unit, panels)| {
            let rows = units.rows(unit);
            let of_panels = || panels.iter().flat_map(tile::lse).collect::<Vec<_>>();
            let lse = match units.budget {
                Budget::Rows => per_row::row_lse(panels).collect(),
                Budget::Blocks | Budget::Residual | Budget::Paper => of_panels(),
            };
            (0..rows.len()).zip(lse).map(move |(rank, lse)| SampledRow {
                batch: unit.head / q_heads,
                q_head: unit.head % q_heads,
                row: rows.row(rank),
                lse,
            })
        });
        Ok(rows.collect())
    }

    /// The masses of the wave that was reduced last; none with [`Budget::Rows`], which does not keep them.
    ///
    /// # Errors
    /// [`Error::NoSuchWave`], and [`Error::StageOrder`] where the wave buffers do not hold the masses of this wave.
    pub fn masses(&self, wave: usize) -> Result<Vec<UnitMass<'_>>> {
        self.check_order("masses", wave, Stage::Reduction)?;
        let (Some(units), Some(selecting)) = (self.plan.units(), &self.workspace.selecting) else {
            return Ok(Vec::new());
        };
        if units.budget == Budget::Rows {
            return Ok(Vec::new());
        }
        let q_heads = self.plan.problem.q_heads;
        let masses = selecting.wave.masses(units, self.plan.coverage());
        let of_wave = units.of_wave(wave).enumerate();
        Ok(of_wave
            .map(|(slot, unit)| {
                let (rows, covered, need) = masses.need(slot);
                UnitMass {
                    batch: unit.head / q_heads,
                    q_head: unit.head % q_heads,
                    first_query_block: units.query_blocks(unit.segment).start,
                    rows,
                    covered,
                    need,
                    candidates_per_row: match units.budget {
                        Budget::Blocks => units.geometry.blocks(),
                        Budget::Rows | Budget::Residual | Budget::Paper => units.candidates(),
                    },
                    mass: &selecting.wave.mass[masses.range(slot)],
                }
            })
            .collect())
    }

    /// What was selected so far, and how long each stage has taken.
    pub fn report(&self) -> Report {
        let report = Report::new(
            &self.plan.problem,
            self.plan.head_path(),
            self.times,
            |head| Some(self.workspace.selecting.as_ref()?.found(head)),
        );
        let problem = &self.plan.problem;
        Report {
            key_ranges: match self.workspace.selecting {
                None if Cut::suits(problem) => Cut::new(problem).ranges(),
                _ => report.key_ranges,
            },
            ..report
        }
    }
}

/// The totals for rows that were not counted yet, or others where they were: the same rows once more count once.
fn once<'t>(
    counted: &mut bool,
    totals: &'t mut [HeadTotals],
    again: &'t mut Vec<HeadTotals>,
) -> &'t mut [HeadTotals] {
    if std::mem::replace(counted, true) {
        again.resize(totals.len(), HeadTotals::EMPTY);
        again
    } else {
        totals
    }
}

/// Attention over a mask, with progress.
pub(crate) fn attend(
    plan: &Planned,
    inputs: &Inputs<'_>,
    mask: Mask<'_>,
    outputs: Outputs<'_>,
    (scratches, partials): (&mut [Scratch<'_>], &mut [f32]),
    progress: &dyn Progress,
) -> Result<()> {
    let problem = &plan.problem;
    outputs.check(problem)?;
    let Outputs { mut o, lse } = outputs;
    let output = OutputRows::new(&mut o, lse);
    let call = Call::of_inputs(problem, inputs);
    if matches!(mask, Mask::Dense) && Cut::suits(problem) {
        let count = Count::new(progress, Stage::SparseFlash, 0, Cut::new(problem).tasks());
        let calls = [FewQueries::new(call, output)];
        few_queries(&calls, (scratches, partials), || count.advance());
        return Ok(());
    }
    let tasks = problem.heads() * call.geometry().query_blocks().len();
    let count = Count::new(progress, Stage::SparseFlash, 0, tasks);
    let tasks = sparse_flash::tasks(call, mask, output);
    for_each_task(scratches, tasks, |scratch, block| {
        sparse_flash::attend(block, scratch);
        count.advance();
    });
    // SAFETY: the workers have ended.
    unsafe { sparse_flash::write_fully_masked_rows(&call, output, scratches[0].row) };
    Ok(())
}

fn selecting<'p, 's, 'a>(
    plan: &'p Planned,
    selecting: &'s mut Option<Selecting<'a>>,
    wave: usize,
) -> Result<(&'p Units, &'s mut Selecting<'a>)> {
    match (plan.units(), selecting) {
        (Some(units), Some(selecting)) if wave < units.waves() => Ok((units, selecting)),
        (units, _) => Err(Error::NoSuchWave {
            wave,
            waves: units.map_or(0, Units::waves),
        }),
    }
}

/// Counts the tasks of one stage for the watcher.
struct Count<'a> {
    progress: &'a dyn Progress,
    stage: Stage,
    done: AtomicUsize,
    total: usize,
}

impl<'a> Count<'a> {
    fn new(progress: &'a dyn Progress, stage: Stage, done: usize, total: usize) -> Self {
        Count {
            progress,
            stage,
            done: AtomicUsize::new(done),
            total,
        }
    }

    fn advance(&self) {
        let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        self.progress.advance(self.stage, done, self.total);
    }
}
