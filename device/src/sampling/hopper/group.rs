//! A warp's 16 rows of one group: which tiles they see, what they sum up, and where it goes.

use crate::gpu::{self, Global, Shared};
use crate::sampling::{SamplingParams, row_lse_at, sink_stats_at, stats_at};
use crate::tile::WARP;
use crate::tile::warpgroup::{self, HeadDim, Scores};

use super::order::{self, Panel};
use super::sums::{Keys, RowSums, Statistics};
use super::{PANEL, TILE, WARP_ROWS, WARPGROUP, WARPGROUP_ROWS};

/// The least scale: with it every weight is 1, as with 0, but −∞ stays −∞.
const LEAST_SCALE_LOG2: f32 = 1.0e-30;

/// A lane's view of the rows.
pub(super) struct Group {
    /// Rank of the first of the lane's two rows, which four lanes share; the second is 8 further.
    rank: u32,
    sums: RowSums,
    /// Tiles before this one are seen whole by all rows.
    first_partial_tile: u32,
    /// Tiles from this one on are seen by none.
    end_tile: u32,
}

impl Group {
    /// The rows from rank `first_rank` on. Writes how many keys each sees to its place in `limits`, for the few tiles that ask. The whole
    /// warp calls it.
    #[inline(always)]
    pub(super) fn new(panel: &Panel, first_rank: u32, limits: Shared<u32>) -> Self {
        let lane = gpu::laneid();
        if lane < WARP_ROWS {
            let limits = limits.add(first_rank - panel.first_rank);
            gpu::st_shared(limits.add(lane), panel.visible(first_rank + lane));
        }
        gpu::bar_warp_sync(WARP);
        let has_rows = first_rank <= panel.last_rank;
        let end_tile = panel.visible(first_rank + WARP_ROWS - 1).div_ceil(TILE);
        Group {
            rank: first_rank + lane / 4,
            sums: RowSums::EMPTY,
            first_partial_tile: panel.visible(first_rank) / TILE,
            end_tile: if has_rows { end_tile } else { 0 },
        }
    }

    /// Copies the warp's queries into the group's tile, with the sign of the scale. The whole warp calls it.
    #[inline(always)]
    pub(super) fn copy_queries<D: HeadDim>(
        &self,
        p: &SamplingParams,
        panel: &Panel,
        tile: Shared<u8>,
    ) {
        let first_rank = self.rank - gpu::laneid() / 4;
        let flip = if p.scale_log2 < 0.0 { 0x8000_8000 } else { 0 };
        let first_row = gpu::tid_x() / 32 % 4 * WARP_ROWS;
        warpgroup::copy_rows::<D>(tile, first_row, flip, |row| {
            panel.query(p, first_rank + row)
        });
    }

    /// Sums up the scores of a step, and writes the statistics of its key block. `limits` are those of the panel's rows, of which the
    /// group's begin at `GROUP_ROW` of a warpgroup's, and then the number of steps. The whole warp calls it.
    #[inline(always)]
    pub(super) fn account<const GROUP_ROW: u32>(
        &mut self,
        p: &SamplingParams,
        panel: &Panel,
        limits: Shared<u32>,
        step: u32,
        scores: &mut Scores,
    ) {
        let tile = panel.tile(step, gpu::ld_shared(limits.add(PANEL)));
        if tile >= self.end_tile {
            return;
        }
        let is_for_sinks = step < panel.sink_tiles;
        let is_partial = tile >= self.first_partial_tile || tile < panel.sink_tiles;
        let keys = is_partial.then(|| {
            let limits = limits.add(GROUP_ROW + lane_row());
            let sinks = order::sinks(p);
            let (from, end) = if is_for_sinks {
                (0, sinks)
            } else {
                (sinks, u32::MAX)
            };
            [0, 8].map(|further| {
                let to = gpu::ld_shared(limits.add(further)).min(end);
                Keys::counted_from(tile * TILE, from, to)
            })
        });
        let scale_log2 = gpu::max_f32(p.scale_log2.abs(), LEAST_SCALE_LOG2);
        let statistics = self.sums.add(scores, scale_log2, keys);
        if is_for_sinks {
            // What the rows have summed up so far; the last step's, if they see several tiles of sinks, stays.
            let rank = written(for_once(self.rank));
            let at = sink_stats_at(&p.units, panel.slot, rank);
            self.write(panel, rank, p.sink_stats.add(at), self.sums.so_far());
        } else if !p.stats.is_null() {
            let rank = written(self.rank);
            let at = stats_at(&p.units, panel.slot, tile, rank);
            self.write(panel, rank, p.stats.add(at), statistics);
        }
    }

    /// Writes the normalisers. The whole warp calls it.
    #[inline(always)]
    pub(super) fn write_row_lse(&self, p: &SamplingParams, panel: &Panel) {
        let rank = written(for_once(self.rank));
        let at = row_lse_at(&p.units, panel.slot, rank);
        if writes(panel, rank) {
            gpu::st_global(p.row_lse.add(at), own(self.sums.log2()));
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

/// The first of the lane's rows in its panel, if its group is its warpgroup's first. Worked out anew, as [`for_once`] does.
#[inline(always)]
fn lane_row() -> u32 {
    let warp = for_once(gpu::tid_x()) / 32 - WARPGROUP / 32;
    warp / 4 * WARPGROUP_ROWS + warp % 4 * WARP_ROWS + gpu::laneid() / 4
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
