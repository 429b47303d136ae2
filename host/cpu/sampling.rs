//! Sampling: the exact softmax normaliser of every sampled row, and for [`Budget::Blocks`] what each key block adds to it.
//!
//! ```text
//! for each unit, for each few panels of sampled rows:            one task
//!     Qᵀ of the panel's rows, kept for the reduction
//!     for each key block up to the last visible one:
//!         K as f32 rows
//!         for each panel: scores -> causal mask -> maximum and sum
//!             blocks: kept for each key block, sinks apart
//!             columns: folded into the row's running statistics
//!     maximum and sum over everything                            (log2 domain)
//! ```
//!
//! Scores never leave the tile.

use super::accumulator::RunningStats;
use super::call::Call;
use super::rows::HeadRows;
use super::scratch::Scratch;
use super::simd::{Kernel, Lanes, PANEL, Simd};
use super::tile::{self, KEY_GROUP, Softcap, Stats};
use super::units::{Unit, Units};
use super::workers::take;
use crate::geometry::{BLOCK, Geometry, SampledRows};
use crate::policy::Budget;

/// Statistics of a panel's rows over one key block.
pub(crate) type BlockStats = Stats;

/// Key blocks between folds of a row's running statistics.
const BLOCKS_PER_FOLD: usize = 16;

/// Panels of one task, which share the conversion of each key block.
const PANELS_PER_TASK: usize = 2;

/// Where sampling writes, for all units of a wave.
pub(super) struct SamplingBuffers<'a> {
    /// Qᵀ: [unit, panel, head_dim].
    pub(super) queries: &'a mut [Lanes],
    /// [unit, panel]: maximum and sum of each row over everything that it sees; empty in lanes without a row. They stay apart,
    /// since their log-sum-exp in f32 is no more exact than the last bit of a large maximum.
    pub(super) row_stats: &'a mut [Stats],
    /// [unit, panel, key block], or empty: statistics of each key block without the sinks.
    pub(super) blocks: &'a mut [BlockStats],
    /// [unit, panel]: statistics of the sinks.
    pub(super) sinks: &'a mut [BlockStats],
}

/// Tasks of one unit.
pub(super) fn tasks_per_unit(units: &Units) -> usize {
    units.panels.div_ceil(PANELS_PER_TASK)
}

/// The tasks of some units of a call.
pub(super) fn tasks<'a>(
    call: Call<'a>,
    units: &'a Units,
    wave: impl Iterator<Item = Unit> + Send + 'a,
    buffers: SamplingBuffers<'a>,
) -> impl Iterator<Item = PanelGroup<'a>> + Send + 'a {
    let SamplingBuffers {
        mut queries,
        mut row_stats,
        mut blocks,
        mut sinks,
    } = buffers;
    wave.flat_map(move |unit| {
        let mut queries = take(&mut queries, units.query_lanes());
        let mut row_stats = take(&mut row_stats, units.panels);
        let mut blocks = take(&mut blocks, units.block_stats());
        let mut sinks = take(&mut sinks, units.panels);
        let of_unit: Vec<_> = (0..tasks_per_unit(units))
            .map(|task| {
                let first_panel = task * PANELS_PER_TASK;
                let panels = PANELS_PER_TASK.min(units.panels - first_panel);
                PanelGroup {
                    units,
                    rows: units.rows(unit),
                    first_panel,
                    q: call.queries(unit.head),
                    k: call.keys(unit.head),
                    scale_log2: call.problem.scale_log2(),
                    softcap: call.softcap(),
                    sink_log2: call.sink_log2(unit.head),
                    queries: take(&mut queries, panels * units.head_dim),
                    row_stats: take(&mut row_stats, panels),
                    blocks: take(
                        &mut blocks,
                        panels * units.block_stats() / units.panels.max(1),
                    ),
                    sinks: take(&mut sinks, panels),
                }
            })
            .collect();
        // Later rows see more keys.
        of_unit.into_iter().rev()
    })
}

/// Few panels of sampled rows of one unit: a task.
pub(super) struct PanelGroup<'a> {
    units: &'a Units,
    rows: SampledRows,
    first_panel: usize,
    q: HeadRows<'a>,
    k: HeadRows<'a>,
    scale_log2: f64,
    softcap: Option<Softcap>,
    sink_log2: f32,
    queries: &'a mut [Lanes],
    row_stats: &'a mut [Stats],
    blocks: &'a mut [BlockStats],
    sinks: &'a mut [BlockStats],
}

impl PanelGroup<'_> {
    pub(super) fn run(self, scratch: &mut Scratch<'_>) {
        let instruction_set = scratch.instruction_set;
        instruction_set.run(Sample {
            group: self,
            scratch,
        });
    }
}

struct Sample<'a, 's> {
    group: PanelGroup<'a>,
    scratch: &'a mut Scratch<'s>,
}

/// The sampled rows of one panel: their ranks, and how many keys each sees.
#[derive(Clone, Copy)]
pub(super) struct PanelRows {
    pub(super) first_rank: usize,
    /// Rows in the panel; lanes from here on stand for nothing.
    pub(super) len: usize,
    visible: [usize; PANEL],
    /// First keys of the rows' windows.
    first: [usize; PANEL],
}

impl PanelRows {
    pub(super) fn new(geometry: Geometry, rows: &SampledRows, panel: usize) -> Self {
        let first_rank = (panel * PANEL).min(rows.len());
        let len = (rows.len() - first_rank).min(PANEL);
        PanelRows::of_ranks(geometry, rows, first_rank, len)
    }

    /// `len` sampled rows, at most [`PANEL`].
    pub(super) fn of_ranks(
        geometry: Geometry,
        rows: &SampledRows,
        first_rank: usize,
        len: usize,
    ) -> Self {
        let visible = std::array::from_fn(|lane| match len {
            0 => 0,
            // Lanes without a row repeat the last one, so that they ask for no mask of their own.
            _ => geometry.visible_keys(rows.row(first_rank + lane.min(len - 1))),
        });
        let first = std::array::from_fn(|lane| match len {
            0 => 0,
            _ => geometry.first_visible(rows.row(first_rank + lane.min(len - 1))),
        });
        PanelRows {
            first_rank,
            len,
            visible,
            first,
        }
    }

    /// Whether no row sees any of the `keys` keys from position `start` on.
    pub(super) fn sees_none(&self, (start, keys): (usize, usize)) -> bool {
        self.most_visible() <= start || self.first[0] >= start + keys
    }

    /// Keys that the panel's last row sees.
    pub(super) fn most_visible(&self) -> usize {
        self.visible[PANEL - 1]
    }

    /// Query block of each lane; lanes without a row repeat the last one's.
    pub(super) fn query_block(&self, lane: usize) -> usize {
        (self.visible[lane] - 1) / BLOCK
    }

    /// Scores of the panel against `keys` rows from position `start` on, with -∞ where a row does not see a key.
    /// Returns how many of them at least one row sees.
    #[inline(always)]
    pub(super) fn masked_scores<S: Simd>(
        &self,
        simd: S,
        queries: &[Lanes],
        k: tile::Rows<'_>,
        (start, keys): (usize, usize),
        scores: &mut [Lanes],
        softcap: Option<Softcap>,
    ) -> usize {
        let keys = keys.min(self.most_visible().saturating_sub(start));
        tile::scores(
            simd,
            queries,
            k,
            &mut scores[..keys.next_multiple_of(KEY_GROUP)],
        );
        if let Some(softcap) = softcap {
            softcap.apply(simd, &mut scores[..keys]);
        }
        let fewest = self.visible[0].saturating_sub(start);
        if fewest < keys {
            let visible = self
                .visible
                .map(|end| end.saturating_sub(start).min(BLOCK) as f32);
            tile::mask(simd, &mut scores[..keys], &Lanes(visible), fewest);
        }
        if self.first[PANEL - 1] > start {
            let first = self
                .first
                .map(|first| first.saturating_sub(start).min(BLOCK) as f32);
            tile::mask_before(simd, &mut scores[..keys], &Lanes(first));
        }
        keys
    }
}

impl Kernel for Sample<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let PanelGroup {
            units,
            rows,
            first_panel,
            q,
            k,
            scale_log2,
            softcap,
            sink_log2,
            queries,
            row_stats,
            blocks,
            sinks,
        } = self.group;
        let geometry = units.geometry;
        let head_dim = units.head_dim;
        let per_block = units.budget == Budget::Blocks;
        let scratch = self.scratch;

        let mut panels = [PanelRows {
            first_rank: 0,
            len: 0,
            visible: [0; PANEL],
            first: [0; PANEL],
        }; PANELS_PER_TASK];
        let panels = &mut panels[..row_stats.len()];
        for (index, panel) in panels.iter_mut().enumerate() {
            *panel = PanelRows::new(geometry, &rows, first_panel + index);
            let ranks = panel.first_rank..panel.first_rank + panel.len;
            let lanes = &mut queries[index * head_dim..(index + 1) * head_dim];
            let row = &mut scratch.row[..head_dim];
            q.queries(ranks.map(|rank| rows.row(rank)), scale_log2, row, lanes);
        }
        // Blocks have the head's sink among the sinks.
        let sink_of_columns = if per_block {
            f32::NEG_INFINITY
        } else {
            sink_log2
        };
        let mut running = [RunningStats::of_sink(sink_of_columns); PANELS_PER_TASK];
        blocks.fill(Stats::EMPTY);
        sinks.fill(Stats::of_sink(sink_log2));

        let end = panels
            .iter()
            .map(PanelRows::most_visible)
            .max()
            .unwrap_or(0);
        for block in 0..end.div_ceil(BLOCK) {
            let tokens = geometry.keys_of_block(block);
            let k = k.tile(tokens.clone(), scratch.keys, head_dim);
            for (index, panel) in panels.iter().enumerate() {
                let queries = &queries[index * head_dim..(index + 1) * head_dim];
                let span = (tokens.start, tokens.len());
                let scores = &mut *scratch.scores;
                let keys = panel.masked_scores(simd, queries, k, span, scores, softcap);
                if per_block {
                    let (in_sinks, rest) = scores[..keys]
                        .split_at_mut(units.sinks.saturating_sub(tokens.start).min(keys));
                    let stats = &mut blocks[index * geometry.blocks() + block];
                    tile::online_softmax::<S, false>(simd, in_sinks, &mut sinks[index]);
                    tile::online_softmax::<S, false>(simd, rest, stats);
                    raise(simd, &mut running[index].stats.max, &stats.max);
                } else {
                    let running = &mut running[index];
                    tile::online_softmax::<S, false>(
                        simd,
                        &mut scores[..keys],
                        &mut running.recent,
                    );
                    if block % BLOCKS_PER_FOLD == BLOCKS_PER_FOLD - 1 {
                        running.fold(simd);
                    }
                }
            }
        }
        for (index, panel) in panels.iter().enumerate() {
            let running = &mut running[index];
            if per_block {
                raise(simd, &mut running.stats.max, &sinks[index].max);
                let blocks = &blocks[index * geometry.blocks()..][..end.div_ceil(BLOCK)];
                for part in blocks.iter().chain([&sinks[index]]) {
                    running.add(simd, part);
                }
            } else {
                running.fold(simd);
            }
            let stats = &mut row_stats[index];
            *stats = running.stats;
            stats.max.0[panel.len..].fill(f32::NEG_INFINITY);
            stats.sum.0[panel.len..].fill(0.0);
        }
    }
}

/// The larger maximum.
#[inline(always)]
fn raise<S: Simd>(simd: S, max: &mut Lanes, other: &Lanes) {
    for at in (0..PANEL).step_by(S::LANES) {
        let larger = simd.max(simd.load(max, at), simd.load(other, at));
        simd.store(max, at, larger);
    }
}
