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

use super::reduction::MASS_ONE;
use super::rows::HeadRows;
use super::scratch::Scratch;
use super::simd::PANEL;
use super::tile::Stats;
use super::units::Units;
use super::workers::{for_each_task, take};
use super::workspace::HeadTotals;
use crate::geometry::{BLOCK, SampledRows};
use crate::problem::Problem;
use crate::selection::{BlockRows, SelectionMut};
use crate::tensor::TensorView;
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

/// Query blocks of one head, to be selected for.
struct Task<'a> {
    head: usize,
    rows: SampledRows,
    query_blocks: Range<usize>,
    /// Maximum and sum of each sampled row.
    row_max: &'a mut [f32],
    row_sum: &'a mut [f32],
    lists: BlockRows<'a>,
}

/// What a wave's selection took.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Times {
    pub(super) statistics: Duration,
    pub(super) demand: Duration,
}

/// Where the selection of a wave writes.
pub(super) struct Selected<'a, 's> {
    /// [unit, panel]: of each unit first the maxima of all its sampled rows, then their sums: tasks begin at any row.
    pub(super) row_stats: &'a mut [Stats],
    pub(super) selection: &'a mut SelectionMut<'s>,
    pub(super) totals: &'a mut [HeadTotals],
}

/// Selects for the heads of one wave; `ended` is called after each task.
pub(super) fn select(
    problem: &Problem,
    (units, coverage): (&Units, f32),
    wave: usize,
    (q, k): (&TensorView<'_>, &TensorView<'_>),
    selected: Selected<'_, '_>,
    workers: (&mut [Scratch<'_>], &mut [TaskBuffers<'_>]),
    ended: impl Fn() + Sync,
) -> Times {
    let started = Instant::now();
    let target = (f64::from(coverage) * MASS_ONE as f64).ceil() as u64;
    let totals = Mutex::new(selected.totals);
    let nanoseconds = [const { AtomicU64::new(0) }; 2];
    let mut workers: Vec<_> = workers.0.iter_mut().zip(workers.1).collect();
    let tasks = tasks(units, wave, selected.row_stats, selected.selection);
    for_each_task(&mut workers, tasks, |(scratch, buffers), task| {
        let (batch, head) = (task.head / problem.q_heads, task.head % problem.q_heads);
        let started = Instant::now();
        let rows = &task.rows;
        scratch.instruction_set.run(statistics::Statistics {
            units,
            rows,
            first_rank: rows.rank_at(task.query_blocks.start * BLOCK),
            q: HeadRows::new(q, batch, head),
            k: HeadRows::new(k, batch, head / problem.group_size()),
            scale_log2: problem.scale_log2(),
            row_max: &mut *task.row_max,
            row_sum: &mut *task.row_sum,
            buffers,
            scratch,
        });
        let measured = Instant::now();
        let of_task = demand::select(units, rows, target, task.query_blocks, task.lists, buffers);
        let times = [measured - started, measured.elapsed()];
        for (sum, time) in nanoseconds.iter().zip(times) {
            sum.fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
        }
        if let Ok(mut totals) = totals.lock() {
            // Sums of integers: the same whoever comes first.
            let totals = &mut totals[task.head];
            totals.rows += of_task.rows;
            totals.kept += of_task.kept;
            totals.non_finite += of_task.non_finite;
            totals.add_rows(&of_task);
        }
        ended();
    });
    // The wave's time, split as the workers' was.
    let [statistics, demand] = nanoseconds.map(|sum| sum.into_inner() as f64);
    let time = started.elapsed();
    let demand = time.mul_f64(demand / (statistics + demand).max(1.0));
    Times {
        statistics: time.saturating_sub(demand),
        demand,
    }
}

/// The tasks of one wave, head after head, each head's last query blocks first: they see most keys.
fn tasks<'a>(
    units: &'a Units,
    wave: usize,
    row_stats: &'a mut [Stats],
    selection: &'a mut SelectionMut<'_>,
) -> impl Iterator<Item = Task<'a>> + Send {
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
