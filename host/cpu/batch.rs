//! Runs of many calls at once: the sequences of a ragged batch, or their heads. Every stage has the tasks of as many calls as the
//! workspace holds (a *pass*), so that all threads have work however short the sequences are.
//!
//! ```text
//! for each pass:
//!     for each wave of its calls' selections:
//!         sampling, reduction, top-k                  each over the tasks of all its calls
//!     attention                                       over all query blocks, or ranges of keys, of all its calls
//! ```
//!
//! A task's arithmetic is that of its call alone, and no task knows what else is in the pass.

use std::time::Instant;

use super::arena::Arena;
use super::call::Call;
use super::few_queries::{Cut, FewQueries, few_queries};
use super::per_row::{self, TaskBuffers};
use super::reduction;
use super::rows::OutputRows;
use super::sampling;
use super::scratch::Scratch;
use super::sparse_flash::{self, Mask};
use super::top_k::{self, choose_dense_heads};
use super::units::Units;
use super::workers::for_each_task;
use super::workspace::Selecting;
use crate::policy::{Budget, Fallback};
use crate::report::{HeadPath, HeadReport, Report, SelectedHead, Stage, StageTimes};

/// One call of a batch.
pub(super) struct Entry<'a> {
    /// Of one sequence.
    pub(super) call: Call<'a>,
    pub(super) output: OutputRows<'a>,
    pub(super) way: Way,
    /// Its place in reports.
    pub(super) sequence: usize,
    pub(super) first_head: usize,
}

/// What a call attends to.
pub(super) enum Way {
    /// Everything; reports say why.
    Dense(HeadPath),
    /// Window and sinks.
    Local(Units),
    Select {
        units: Units,
        coverage: f32,
        fallback: Fallback,
    },
}

impl Way {
    fn units(&self) -> Option<&Units> {
        match self {
            Way::Dense(_) => None,
            Way::Local(units) | Way::Select { units, .. } => Some(units),
        }
    }

    /// Of calls that sample.
    fn selector(&self) -> Option<(&Units, f32)> {
        match self {
            Way::Dense(_) | Way::Local(_) => None,
            Way::Select {
                units, coverage, ..
            } => Some((units, *coverage)),
        }
    }

    fn path(&self) -> HeadPath {
        match self {
            Way::Dense(path) => *path,
            Way::Local(_) | Way::Select { .. } => HeadPath::Sparse,
        }
    }
}

/// What the workers work in.
pub(super) struct Workers<'w, 'a> {
    pub(super) scratches: &'w mut [Scratch<'a>],
    /// As many, where any budget is of rows.
    pub(super) task_buffers: &'w mut [TaskBuffers<'a>],
    /// Room for the partial results of one unit of each call with few queries.
    pub(super) partials: &'w mut [f32],
}

/// A call of the pass that is being run.
struct Member<'e, 'a, 'm> {
    entry: &'e Entry<'a>,
    selecting: Option<Selecting<'m>>,
}

/// Runs all entries, and fills in the reports of their heads, [sequence, query head]. `memory` has room for the selection of any one
/// entry. Returns how long the stages took, and the most ranges that a call's keys were cut into.
pub(super) fn run(
    entries: &[Entry<'_>],
    mut workers: Workers<'_, '_>,
    memory: &mut [u8],
    (q_heads, heads): (usize, &mut [HeadReport]),
) -> (StageTimes, usize) {
    let mut times = StageTimes::default();
    let mut key_ranges = 0;
    let mut rest = entries;
    while !rest.is_empty() {
        let mut arena = Arena::new(&mut *memory);
        let mut pass: Vec<Member<'_, '_, '_>> = Vec::new();
        while let Some((entry, others)) = rest.split_first() {
            let mut selecting = None;
            if let Some(units) = entry.way.units() {
                selecting = Selecting::carve(&mut arena, &entry.call.problem, units);
                match &mut selecting {
                    Some(selecting) => selecting.reset(units),
                    None => break,
                }
            }
            pass.push(Member { entry, selecting });
            rest = others;
        }
        assert!(!pass.is_empty(), "the plan has room for any one entry");
        select(&mut pass, &mut workers, &mut times);
        let started = Instant::now();
        key_ranges = key_ranges.max(attend(&pass, &mut workers));
        times.add(Stage::SparseFlash, started.elapsed());
        for member in &pass {
            member.report(q_heads, heads);
        }
    }
    (times, key_ranges)
}

/// Makes the selections of all calls of a pass.
fn select(pass: &mut [Member<'_, '_, '_>], workers: &mut Workers<'_, '_>, times: &mut StageTimes) {
    let waves = pass.iter().filter_map(|member| member.entry.way.selector());
    let waves = waves.map(|(units, _)| units.waves()).max().unwrap_or(0);
    for wave in 0..waves {
        select_by_rows(pass, wave, workers, times);
        select_by_masses(pass, wave, workers, times);
    }
    for Member { entry, selecting } in pass {
        if let Way::Select {
            units,
            fallback: Fallback::Auto,
            ..
        } = &entry.way
            && units.budget != Budget::Rows
            && let Some(selecting) = selecting
        {
            choose_dense_heads(units.geometry, &mut selecting.selection);
        }
    }
}

/// A wave of the calls whose budget is of rows.
fn select_by_rows(
    pass: &mut [Member<'_, '_, '_>],
    wave: usize,
    workers: &mut Workers<'_, '_>,
    times: &mut StageTimes,
) {
    let (mut shared, mut lists) = (Vec::new(), Vec::new());
    for member in pass {
        if let Some((call, units, coverage, selecting)) = member.selector(wave)
            && units.budget == Budget::Rows
        {
            let Selecting {
                selection,
                totals,
                wave,
            } = selecting;
            shared.push(per_row::Shared::new(call, units, coverage, totals));
            lists.push((&mut *wave.row_stats, selection));
        }
    }
    if shared.is_empty() {
        return;
    }
    let tasks = shared.iter().zip(lists);
    let tasks = tasks.flat_map(|(shared, (row_stats, selection))| {
        per_row::tasks(shared, wave, row_stats, selection)
    });
    let (scratches, buffers) = (&mut *workers.scratches, &mut *workers.task_buffers);
    let mut workers: Vec<_> = scratches.iter_mut().zip(buffers).collect();
    let clock = per_row::Clock::start();
    for_each_task(&mut workers, tasks, |(scratch, buffers), task| {
        task.run((scratch, buffers), &clock);
    });
    let taken = clock.stop();
    times.add(Stage::Sampling, taken.statistics);
    times.add(Stage::TopK, taken.demand);
}

/// A wave of the other calls that select.
fn select_by_masses(
    pass: &mut [Member<'_, '_, '_>],
    wave: usize,
    workers: &mut Workers<'_, '_>,
    times: &mut StageTimes,
) {
    let selectors = pass.iter_mut().filter_map(|member| member.selector(wave));
    let mut selectors: Vec<_> = selectors
        .filter(|(_, units, ..)| units.budget != Budget::Rows)
        .collect();
    if selectors.is_empty() {
        return;
    }
    let started = Instant::now();
    let tasks = selectors
        .iter_mut()
        .flat_map(|(call, units, _, selecting)| {
            sampling::tasks(*call, units, units.of_wave(wave), selecting.wave.sampling())
        });
    for_each_task(workers.scratches, tasks, |scratch, task| task.run(scratch));
    let sampled = Instant::now();
    let tasks = selectors
        .iter_mut()
        .flat_map(|(call, units, _, selecting)| {
            let (sampled, buffers) = selecting.wave.reduction();
            reduction::tasks(*call, units, units.of_wave(wave), sampled, buffers)
        });
    for_each_task(workers.scratches, tasks, |scratch, task| task.run(scratch));
    let reduced = Instant::now();
    let (mut shared, mut lists) = (Vec::new(), Vec::new());
    for (_, units, coverage, selecting) in &mut selectors {
        let Selecting {
            selection,
            totals,
            wave,
        } = &mut **selecting;
        shared.push(top_k::Shared::new(wave.masses(units, *coverage), totals));
        lists.push(selection);
    }
    let tasks = shared.iter().zip(lists);
    let tasks = tasks.flat_map(|(shared, selection)| top_k::tasks(shared, wave, selection));
    for_each_task(workers.scratches, tasks, |scratch, task| task.run(scratch));
    times.add(Stage::Sampling, sampled - started);
    times.add(Stage::Reduction, reduced - sampled);
    times.add(Stage::TopK, reduced.elapsed());
}

/// Attention of all calls of a pass. Returns the most ranges that a call's keys were cut into.
fn attend(pass: &[Member<'_, '_, '_>], workers: &mut Workers<'_, '_>) -> usize {
    let has_few = |member: &&Member<'_, '_, '_>| {
        member.selecting.is_none() && Cut::suits(&member.entry.call.problem)
    };
    let few = pass.iter().filter(has_few);
    let few: Vec<_> = few
        .map(|member| FewQueries::new(member.entry.call, member.entry.output))
        .collect();
    few_queries(&few, (workers.scratches, workers.partials), || {});
    let others = || pass.iter().filter(|member| !has_few(member));
    let tasks = others().flat_map(|member| {
        sparse_flash::tasks(member.entry.call, member.mask(), member.entry.output)
    });
    for_each_task(workers.scratches, tasks, |scratch, block| {
        sparse_flash::attend(block, scratch);
    });
    let zeros = &mut *workers.scratches[0].row;
    for Member { entry, .. } in others() {
        // SAFETY: the workers have ended.
        unsafe {
            sparse_flash::write_fully_masked_rows(&entry.call, entry.output, zeros);
        }
    }
    few.iter().map(FewQueries::ranges).max().unwrap_or(0)
}

impl<'m> Member<'_, '_, 'm> {
    /// What a wave of the call's selection works with, if it has one.
    fn selector(&mut self, wave: usize) -> Option<(Call<'_>, &Units, f32, &mut Selecting<'m>)> {
        let (units, coverage) = self.entry.way.selector()?;
        let selecting = self.selecting.as_mut()?;
        (wave < units.waves()).then_some((self.entry.call, units, coverage, selecting))
    }

    fn mask(&self) -> Mask<'_> {
        match &self.selecting {
            None => Mask::Dense,
            Some(selecting) => Mask::Selection(selecting.selection.as_ref()),
        }
    }

    fn report(&self, q_heads: usize, heads: &mut [HeadReport]) {
        let Entry {
            call,
            way,
            sequence,
            first_head,
            ..
        } = self.entry;
        let of_call = Report::new(&call.problem, way.path(), StageTimes::default(), |head| {
            let found = self.selecting.as_ref()?.found(head);
            Some(match way {
                // No row was looked at.
                Way::Local(_) => SelectedHead {
                    non_finite_rows: None,
                    ..found
                },
                Way::Dense(_) | Way::Select { .. } => found,
            })
        });
        for found in of_call.heads {
            let q_head = first_head + found.q_head;
            heads[sequence * q_heads + q_head] = HeadReport {
                batch: *sequence,
                q_head,
                ..found
            };
        }
    }
}
