//! A warp's 16 rows: which tiles they see, what they sum up, and where it goes.

use crate::gpu::{self, Global, Shared};
use crate::sampling::{SamplingParams, row_lse_at, sink_stats_at, stats_at};
use crate::tile::warpgroup::{self, HeadDim, Scores, WARPGROUP};
use crate::tile::{Float16, WARP, scale};

use super::order::{self, Panel, Steps};
use super::sums::{Keys, LaneSums, References, RowSums, Statistics};
use super::{TILE, WARP_ROWS, references_offset};

/// A lane's view of the rows.
pub(super) struct Rows {
    /// Rank of the first of the lane's two rows, which four lanes share; the second is 8 further.
    rank: u32,
    /// How many keys each of the two sees.
    visible: [u32; 2],
    sums: RowSums,
    /// Tiles before this one are seen whole by all rows.
    first_partial_tile: u32,
    /// Tiles from this one on are seen by none.
    end_tile: u32,
}

impl Rows {
    /// The rows from rank `first_rank` on.
    #[inline(always)]
    pub(super) fn new(p: &SamplingParams, panel: &Panel, first_rank: u32) -> Self {
        let rank = first_rank + gpu::laneid() / 4;
        let has_rows = first_rank <= panel.last_rank;
        let end_tile = panel.visible(first_rank + WARP_ROWS - 1).div_ceil(TILE);
        Rows {
            rank,
            visible: [0, 8].map(|further| panel.visible(rank + further)),
            sums: RowSums::new(references(p)),
            first_partial_tile: panel.visible(first_rank) / TILE,
            end_tile: if has_rows { end_tile } else { 0 },
        }
    }

    /// Copies the warp's queries into the warpgroup's tile, with the sign of the scale. The whole warp calls it.
    #[inline(always)]
    pub(super) fn copy_queries<T: Float16, D: HeadDim>(
        &self,
        p: &SamplingParams,
        panel: &Panel,
        tile: Shared<u8>,
    ) {
        let first_rank = self.rank - gpu::laneid() / 4;
        let first_row = gpu::tid_x() / 32 % 4 * WARP_ROWS;
        warpgroup::copy_rows::<T, D>(tile, first_row, p.scale_log2, |row| {
            panel.query(p, first_rank + row)
        });
    }

    /// Sums up the scores of a step, with raised references or with those the rows have. The whole warp calls it.
    #[inline(always)]
    pub(super) fn weigh(
        &mut self,
        p: &SamplingParams,
        steps: Steps,
        step: u32,
        scores: &mut Scores,
        raise: bool,
    ) -> LaneSums {
        let tile = steps.tile(step);
        if tile >= self.end_tile {
            return [0.0; 2];
        }
        let is_partial = tile >= self.first_partial_tile || tile < steps.for_sinks;
        let keys = is_partial.then(|| {
            let sinks = order::sinks(p);
            let (from, end) = if step < steps.for_sinks {
                (0, sinks)
            } else {
                (sinks, u32::MAX)
            };
            self.visible
                .map(|visible| Keys::counted_from(tile * TILE, from, visible.min(end)))
        });
        let scale = scale::magnitude(p.scale_log2);
        self.sums.weigh(scores, scale, keys, raise, references(p))
    }

    /// Adds a step's sums, and writes the statistics of its key block. The whole warp calls it.
    #[inline(always)]
    pub(super) fn account(
        &mut self,
        p: &SamplingParams,
        panel: &Panel,
        steps: Steps,
        step: u32,
        sums: LaneSums,
    ) {
        let tile = steps.tile(step);
        if tile >= self.end_tile {
            return;
        }
        let statistics = self.sums.add(sums, references(p));
        if step < steps.for_sinks {
            // What the rows have summed up so far; the last step's, if they see several tiles of sinks, stays.
            let rank = written(for_once(self.rank));
            let at = sink_stats_at(&p.units, panel.slot, rank);
            self.write(
                panel,
                rank,
                p.sink_stats.add(at),
                self.sums.so_far(references(p)),
            );
        } else if !p.stats.is_null() {
            let rank = written(self.rank);
            let at = stats_at(&p.units, panel.slot, tile, rank);
            self.write(panel, rank, p.stats.add(at), statistics);
        }
    }

    /// Writes the rows' log-sum-exps. The whole warp calls it.
    #[inline(always)]
    pub(super) fn write_row_lse(&self, p: &SamplingParams, panel: &Panel) {
        let rank = written(for_once(self.rank));
        let at = row_lse_at(&p.units, panel.slot, rank);
        if writes(panel, rank) {
            gpu::st_global_v2(p.row_lse.add(at), own(self.sums.row_lse(references(p))));
        }
    }

    /// Writes statistics.
    #[inline(always)]
    fn write(&self, panel: &Panel, rank: u32, to: Global<f32>, statistics: Statistics) {
        if writes(panel, rank) {
            gpu::st_global_v2(to, own(statistics));
        }
    }
}

/// Where this lane keeps its rows' references.
#[inline(always)]
fn references(p: &SamplingParams) -> References {
    let first = references_offset(p.units.sizes.head_dim);
    let lane = gpu::tid_x() - WARPGROUP;
    References(
        gpu::dynamic_shared()
            .byte_add(first + lane * References::BYTES)
            .cast(),
    )
}

/// A lane's rank, for what happens seldom. No compiler moves a shuffle out of a loop, not even a lane's with itself: so the
/// addresses and limits that follow from it are worked out when they are wanted, and take no registers meanwhile. The whole
/// warp calls it.
#[inline(always)]
fn for_once(rank: u32) -> u32 {
    gpu::shfl_sync_idx(WARP, rank, gpu::laneid())
}

/// Of the four lanes that share two rows, lanes 0 and 1 write one each, so that the warp's 16 rows are written together:
/// 128 bytes of statistics. This is the rank that the lane writes if it [`writes`].
#[inline(always)]
fn written(rank: u32) -> u32 {
    rank + 8 * (gpu::laneid() % 4)
}

#[inline(always)]
fn writes(panel: &Panel, written: u32) -> bool {
    gpu::laneid() % 4 < 2 && written <= panel.last_rank
}

/// What belongs to the rank that the lane writes.
#[inline(always)]
fn own<V>([first, second]: [V; 2]) -> V {
    if gpu::laneid().is_multiple_of(4) {
        first
    } else {
        second
    }
}
