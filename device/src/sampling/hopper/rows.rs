//! A warp's 16 rows: which tiles they see, what they sum up, and where it goes.

use crate::abi::RowPanel;
use crate::gpu::{self, Shared};
use crate::params::BLOCK;
use crate::sampling::{RowMass, RowOutput, SamplingParams, sinks};
use crate::tile::warpgroup::{self, HeadDim, Scores};
use crate::tile::{Float16, WARP, scale};

use super::order::Steps;
use super::sums::{self, Keys, LaneSums, RowSums};
use super::{TILE, WARP_ROWS};

/// A lane's view of the rows.
pub(super) struct Rows {
    sums: RowSums,
    /// Tiles before this one are seen whole by all rows.
    first_partial_tile: u32,
    /// Tiles from this one on are seen by none.
    end_tile: u32,
}

/// The row of a lane that writes none.
const NO_ROW: u32 = u32::MAX;

/// What a lane keeps of its rows in shared memory, where it takes no registers while scores do. Nobody else reads the first words.
///
/// | word | |
/// |---|---|
/// | 0, 1 | [`RowOutput`]. Of the four lanes that share two rows, lanes 0 and 1 write one each, so that the warp's 16 rows are written together. The row is [`NO_ROW`] in the others, and where there is none |
/// | 2, 3 | how many keys each of the lane's two rows sees; four lanes share them, and the second is 8 ranks after the first |
/// | 4 | which of the two take a new reference: a bit each |
/// | 5 | the query of the warp's row of the lane's number, modulo 16, for the whole warp to copy |
#[derive(Clone, Copy)]
pub(super) struct LaneMemory {
    words: Shared<u32>,
}

impl LaneMemory {
    /// Bytes of a lane.
    pub(super) const BYTES: u32 = 32;

    /// The lane's, of those of all threads of the CTA.
    #[inline(always)]
    fn of(all: Shared<u32>) -> Self {
        Self::of_thread(all, gpu::tid_x())
    }

    #[inline(always)]
    fn of_thread(all: Shared<u32>, thread: u32) -> Self {
        LaneMemory {
            words: all.add(thread * (Self::BYTES / 4)),
        }
    }

    #[inline(always)]
    fn output(self) -> RowOutput {
        let [row, base] = gpu::ld_shared_v2(self.words);
        RowOutput {
            row,
            base: f32::from_bits(base),
        }
    }

    #[inline(always)]
    fn set_output(self, output: RowOutput) {
        gpu::st_shared_v2(self.words, [output.row, output.base.to_bits()]);
    }

    #[inline(always)]
    fn visible(self) -> [u32; 2] {
        gpu::ld_shared_v2(self.words.add(2))
    }

    #[inline(always)]
    fn raised(self) -> [bool; 2] {
        let bits = gpu::ld_shared(self.words.add(4));
        [bits & 1 != 0, bits & 2 != 0]
    }
}

/// Notes which rows take a new reference: those with too large a sum in any of the four lanes that share them. The whole warp calls
/// it, and all warps of the warpgroup.
#[inline(always)]
pub(super) fn note_raised(lanes: Shared<u32>, sums: LaneSums) {
    gpu::st_shared(
        LaneMemory::of(lanes).words.add(4),
        sums::too_large_rows(sums),
    );
}

/// Copies a warp's queries, from rank `first_rank` on, into the warpgroup's tile, with the sign of the scale. The whole warp
/// calls it.
#[inline(always)]
pub(super) fn copy_queries<T: Float16, D: HeadDim>(
    p: &SamplingParams,
    panel: &RowPanel,
    first_rank: u32,
    tile: Shared<u8>,
    lanes: Shared<u32>,
) {
    let first_row = gpu::tid_x() / 32 % 4 * WARP_ROWS;
    let sequence = &panel.sequence;
    // Which query each rank is takes some arithmetic: a lane a row, once.
    let of_warp = |lane: u32| LaneMemory::of_thread(lanes, gpu::tid_x() / 32 * 32 + lane);
    let own = sequence.q_start + panel.query(first_rank + gpu::laneid() % WARP_ROWS);
    gpu::st_shared(of_warp(gpu::laneid()).words.add(5), own);
    gpu::bar_warp_sync(WARP);
    let queries = p.q.head::<u16>(sequence.batch, panel.q_head);
    warpgroup::copy_rows::<T, D>(tile, first_row, p.scale_log2, |row| {
        let query = gpu::ld_shared(of_warp(row).words.add(5));
        queries.add(u64::from(query) * p.q.stride_token)
    });
}

impl Rows {
    /// The rows from rank `first_rank` on. `lanes` has a [`LaneMemory`] for each thread of the CTA.
    #[inline(always)]
    pub(super) fn new(panel: &RowPanel, first_rank: u32, lanes: Shared<u32>) -> Self {
        let rank = first_rank + gpu::laneid() / 4;
        let written = rank + 8 * (gpu::laneid() % 4);
        let writes = gpu::laneid() % 4 < 2 && written <= panel.last_rank;
        let row = if writes { panel.row(written) } else { NO_ROW };
        let lane = LaneMemory::of(lanes);
        lane.set_output(RowOutput::new(row));
        let visible = [0, 8].map(|further| panel.visible(rank + further));
        gpu::st_shared_v2(lane.words.add(2), visible);
        let has_rows = first_rank <= panel.last_rank;
        let end_tile = panel.visible(first_rank + WARP_ROWS - 1).div_ceil(TILE);
        Rows {
            sums: RowSums::EMPTY,
            first_partial_tile: panel.visible(first_rank) / TILE,
            end_tile: if has_rows { end_tile } else { 0 },
        }
    }

    /// Sums up the scores of a step, with new references for rows that have none and, `again`, for those that are noted. The whole
    /// warp calls it.
    #[inline(always)]
    pub(super) fn weigh(
        &mut self,
        p: &SamplingParams,
        steps: Steps,
        step: u32,
        scores: &mut Scores,
        again: bool,
        lanes: Shared<u32>,
    ) -> LaneSums {
        let tile = steps.tile(step);
        if tile >= self.end_tile {
            return [0.0; 2];
        }
        let sinks = sinks(p);
        let is_partial = tile >= self.first_partial_tile || tile * BLOCK < sinks;
        let keys = is_partial.then(|| {
            let (from, end) = if step < steps.for_sinks {
                (0, sinks)
            } else {
                (sinks, u32::MAX)
            };
            LaneMemory::of(lanes)
                .visible()
                .map(|visible| Keys::counted_from(tile * TILE, from, visible.min(end)))
        });
        let scale = scale::magnitude(p.scale_log2);
        self.sums.weigh(scores, scale, keys, again, || {
            LaneMemory::of(lanes).raised()
        })
    }

    /// Adds a step's sums, and writes the statistics of its key block. The whole warp calls it.
    #[inline(always)]
    pub(super) fn account(
        &mut self,
        p: &SamplingParams,
        steps: Steps,
        step: u32,
        sums: LaneSums,
        lanes: Shared<u32>,
    ) {
        let tile = steps.tile(step);
        if tile >= self.end_tile {
            return;
        }
        let of_tile = self.sums.add(sums);
        let lane = LaneMemory::of(lanes);
        let mut output = lane.output();
        if step < steps.for_sinks {
            // What the rows have summed up so far; the last step's, if they see several tiles of sinks, stays.
            let mass = own(self.sums.so_far());
            if output.row != NO_ROW {
                output.write_sinks(p, mass);
                lane.set_output(output);
            }
        } else if !p.stats.is_null() && output.row != NO_ROW {
            let end = steps.end_tile().min(self.end_tile);
            let with_sinks = steps.for_sinks > 0;
            output.write_block(p, tile, own(of_tile), tile + 1..end, with_sinks);
            lane.set_output(output);
        }
    }

    /// Writes what is known after the last key. The whole warp calls it.
    #[inline(always)]
    pub(super) fn finish(&self, p: &SamplingParams, split: u32, lanes: Shared<u32>) {
        let output = LaneMemory::of(lanes).output();
        let total = own(self.sums.so_far());
        if output.row != NO_ROW {
            output.finish(p, split, total);
        }
    }
}

/// What belongs to the row that the lane writes.
#[inline(always)]
fn own([first, second]: [RowMass; 2]) -> RowMass {
    if gpu::laneid().is_multiple_of(4) {
        first
    } else {
        second
    }
}
