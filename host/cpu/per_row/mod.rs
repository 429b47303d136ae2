//! The selection of [`Budget::Rows`](crate::Budget::Rows). Sampling, reduction and top-k of a few query blocks are one task, whose
//! masses do not outlive it: the workspace is bounded by what the threads hold, whatever the length of the prompt.
//!
//! ```text
//! for each head, for each group of query blocks with about 64 sampled rows:    one task
//!     for each key block up to the last visible one:                           statistics
//!         scores -> causal mask -> maximum and sum of each row, sinks apart
//!     for each query block, for each of its sampled rows:                      demand
//!         covered = mass of the window's blocks and of the sinks
//!         the heaviest other key blocks, until theirs and `covered` reach the coverage
//!     list of the query block = window ∪ what its rows asked for
//! ```
//!
//! No lane of a panel depends on another, so the grouping does not change a bit.
//!
//! Rows whose softmax has no finite normaliser ask for nothing. A query block without a finite sampled row, because its rows hold
//! NaN or because the row stride passes it over, lists every visible key block: nothing is known of what it needs.

mod buffers;
mod demand;
mod heaviest;
mod statistics;

pub(super) use buffers::TaskBuffers;

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::call::Call;
use super::reduction::MASS_ONE;
use super::scratch::Scratch;
use super::simd::PANEL;
use super::tile::Stats;
use super::totals::HeadTotals;
use super::units::Units;
use super::workers::take;
use crate::geometry::{BLOCK, SampledRows};
use crate::selection::{BlockRows, SelectionMut};
use buffers::TASK_ROWS;

/// Query blocks of a task at most: where few rows are sampled, tasks stay small enough to be spread over threads.
const TASK_BLOCKS: usize = 16;

/// Consecutive query blocks of one task, from position 0 on: the same for all heads, whose sampled rows are staggered. Those before
/// the first query hold no sampled row.
pub(super) fn groups(units: &Units) -> impl Iterator<Item = Range<usize>> + use<> {
    let rows = units.distinct_rows();
    let blocks = units.geometry.blocks();
    let mut start = 0;
    std::iter::from_fn(move || {
        let fits = |end: usize| {
            let few_rows = |rows: &SampledRows| {
                rows.rank_at(end * BLOCK) - rows.rank_at(start * BLOCK) <= TASK_ROWS
            };
            end <= blocks && end - start <= TASK_BLOCKS && rows.iter().all(few_rows)
        };
        let mut end = start + 1;
        while fits(end + 1) {
            end += 1;
        }
        let group = start..end;
        start = end;
        (group.start < blocks).then_some(group)
    })
}

/// Natural log of the softmax normaliser of each sampled row of a unit, from its part of [`Selected::row_stats`].
pub(super) fn row_lse(row_stats: &[Stats]) -> impl Iterator<Item = f64> {
    let (max, sum) =
        bytemuck::cast_slice::<Stats, f32>(row_stats).split_at(row_stats.len() * PANEL);
    max.iter()
        .zip(sum)
        .map(|(&max, &sum)| (f64::from(max) + f64::from(sum).log2()) * std::f64::consts::LN_2)
}

/// What the tasks of a wave share.
pub(super) struct Shared<'a> {
    call: Call<'a>,
    units: &'a Units,
    /// Mass that a row has to reach.
    target: u64,
    totals: Mutex<&'a mut [HeadTotals]>,
}

impl<'a> Shared<'a> {
    pub(super) fn new(
        call: Call<'a>,
        units: &'a Units,
        coverage: f32,
        totals: &'a mut [HeadTotals],
    ) -> Self {
        Shared {
            call,
            units,
            target: (f64::from(coverage) * MASS_ONE as f64).ceil() as u64,
            totals: Mutex::new(totals),
        }
    }
}

/// Query blocks of one head, to be selected for.
pub(super) struct Task<'a> {
    call: Call<'a>,
    units: &'a Units,
    target: u64,
    totals: &'a Mutex<&'a mut [HeadTotals]>,
    head: usize,
    rows: SampledRows,
    query_blocks: Range<usize>,
    /// Maximum and sum of each sampled row.
    row_max: &'a mut [f32],
    row_sum: &'a mut [f32],
    lists: BlockRows<'a>,
}

/// What the tasks of a wave take.
pub(super) struct Clock {
    started: Instant,
    /// Of statistics and of demand, over all workers.
    nanoseconds: [AtomicU64; 2],
}

/// What a wave's selection took.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Times {
    pub(super) statistics: Duration,
    pub(super) demand: Duration,
}

impl Clock {
    pub(super) fn start() -> Self {
        Clock {
            started: Instant::now(),
            nanoseconds: [const { AtomicU64::new(0) }; 2],
        }
    }

    /// The wave's time, split as the workers' was.
    pub(super) fn stop(self) -> Times {
        let [statistics, demand] = self.nanoseconds.map(|sum| sum.into_inner() as f64);
        let time = self.started.elapsed();
        let demand = time.mul_f64(demand / (statistics + demand).max(1.0));
        Times {
            statistics: time.saturating_sub(demand),
            demand,
        }
    }
}

impl Task<'_> {
    pub(super) fn run(
        self,
        (scratch, buffers): (&mut Scratch<'_>, &mut TaskBuffers<'_>),
        clock: &Clock,
    ) {
        let Task {
            call, units, rows, ..
        } = self;
        let started = Instant::now();
        scratch.instruction_set.run(statistics::Statistics {
            units,
            rows: &rows,
            first_rank: rows.rank_at(self.query_blocks.start * BLOCK),
            q: call.queries(self.head),
            k: call.keys(self.head),
            scale_log2: call.problem.scale_log2(),
            softcap: call.softcap(),
            sink_log2: call.sink_log2(self.head),
            row_max: self.row_max,
            row_sum: self.row_sum,
            buffers,
            scratch,
        });
        let measured = Instant::now();
        let (query_blocks, lists) = (self.query_blocks, self.lists);
        let of_task = demand::select(units, &rows, self.target, query_blocks, lists, buffers);
        let times = [measured - started, measured.elapsed()];
        for (sum, time) in clock.nanoseconds.iter().zip(times) {
            sum.fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
        }
        if let Ok(mut totals) = self.totals.lock() {
            // Sums of integers: the same whoever comes first.
            let totals = &mut totals[self.head];
            totals.rows += of_task.rows;
            totals.kept += of_task.kept;
            totals.non_finite += of_task.non_finite;
            totals.add_rows(&of_task);
        }
    }
}

/// The tasks of one wave of a call, head after head, each head's last query blocks first: they see most keys.
///
/// `row_stats` is [unit, panel]: of each unit first the maxima of all its sampled rows, then their sums: tasks begin at any row.
pub(super) fn tasks<'a>(
    shared: &'a Shared<'a>,
    wave: usize,
    row_stats: &'a mut [Stats],
    selection: &'a mut SelectionMut<'_>,
) -> impl Iterator<Item = Task<'a>> + Send {
    let Shared { call, units, .. } = *shared;
    let groups: Vec<Range<usize>> = groups(units).collect();
    let first = wave * units.wave * groups.len();
    let mut lists = selection.block_rows(groups.clone().into_iter()).skip(first);
    let mut row_stats: &mut [f32] = bytemuck::cast_slice_mut(row_stats);
    units.of_wave(wave).flat_map(move |unit| {
        let (head, rows) = (unit.head, units.rows(unit));
        let mut row_max = take(&mut row_stats, units.panels * PANEL);
        let mut row_sum = take(&mut row_stats, units.panels * PANEL);
        let of_head: Vec<Task<'a>> = groups
            .iter()
            .cloned()
            .zip(&mut lists)
            .map(|(query_blocks, lists)| {
                let ends = [query_blocks.start, query_blocks.end];
                let [first, end] = ends.map(|block| rows.rank_at(block * BLOCK));
                Task {
                    call,
                    units,
                    target: shared.target,
                    totals: &shared.totals,
                    head,
                    rows: rows.clone(),
                    query_blocks,
                    row_max: take(&mut row_max, end - first),
                    row_sum: take(&mut row_sum, end - first),
                    lists,
                }
            })
            .collect();
        of_head.into_iter().rev()
    })
}
