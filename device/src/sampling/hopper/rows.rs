//! A warp's 16 rows: which tiles they see, what they sum up, and where it goes.

use crate::abi::RowPanel;
use crate::gpu::{self, Shared};
use crate::params::BLOCK;
use crate::sampling::{RowMass, RowOutput, SamplingParams, sinks};
use crate::tile::warpgroup::{self, HeadDim, Scores};
use crate::tile::{Float16, scale};

use super::order::Steps;
use super::sums::{Keys, LaneSums, Raise, RowSums};
use super::{TILE, WARP_ROWS};

/// A lane's view of the rows.
pub(super) struct Rows {
    /// How many keys each of the lane's two rows sees; four lanes share them, and the second is 8 ranks after the first.
    visible: [u32; 2],
    sums: RowSums,
    /// Of the four lanes that share two rows, lanes 0 and 1 write one each, so that the warp's 16 rows are written together. The
    /// row is [`NO_ROW`] in the others, and where there is none.
    output: RowOutput,
    /// Tiles before this one are seen whole by all rows.
    first_partial_tile: u32,
    /// Tiles from this one on are seen by none.
    end_tile: u32,
}

/// The row of a lane that writes none.
const NO_ROW: u32 = u32::MAX;

/// Copies a warp's queries, from rank `first_rank` on, into the warpgroup's tile, with the sign of the scale. The whole warp
/// calls it.
#[inline(always)]
pub(super) fn copy_queries<T: Float16, D: HeadDim>(
    p: &SamplingParams,
    panel: &RowPanel,
    first_rank: u32,
    tile: Shared<u8>,
) {
    let first_row = gpu::tid_x() / 32 % 4 * WARP_ROWS;
    let sequence = &panel.sequence;
    warpgroup::copy_rows::<T, D>(tile, first_row, p.scale_log2, |row| {
        let query = sequence.q_start + panel.query(first_rank + row);
        p.q.token(sequence.batch, panel.q_head, query)
    });
}

impl Rows {
    /// The rows from rank `first_rank` on.
    #[inline(always)]
    pub(super) fn new(panel: &RowPanel, first_rank: u32) -> Self {
        let rank = first_rank + gpu::laneid() / 4;
        let written = rank + 8 * (gpu::laneid() % 4);
        let writes = gpu::laneid() % 4 < 2 && written <= panel.last_rank;
        let has_rows = first_rank <= panel.last_rank;
        let end_tile = panel.visible(first_rank + WARP_ROWS - 1).div_ceil(TILE);
        Rows {
            visible: [0, 8].map(|further| panel.visible(rank + further)),
            sums: RowSums::EMPTY,
            output: RowOutput::new(if writes { panel.row(written) } else { NO_ROW }),
            first_partial_tile: panel.visible(first_rank) / TILE,
            end_tile: if has_rows { end_tile } else { 0 },
        }
    }

    /// Sums up the scores of a step, with new references for the rows of `raise` and those that have none. The whole warp calls
    /// it.
    #[inline(always)]
    pub(super) fn weigh(
        &mut self,
        p: &SamplingParams,
        steps: Steps,
        step: u32,
        scores: &mut Scores,
        raise: Raise,
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
            self.visible
                .map(|visible| Keys::counted_from(tile * TILE, from, visible.min(end)))
        });
        let scale = scale::magnitude(p.scale_log2);
        self.sums.weigh(scores, scale, keys, raise)
    }

    /// Adds a step's sums, and writes the statistics of its key block. The whole warp calls it.
    #[inline(always)]
    pub(super) fn account(&mut self, p: &SamplingParams, steps: Steps, step: u32, sums: LaneSums) {
        let tile = steps.tile(step);
        if tile >= self.end_tile {
            return;
        }
        let of_tile = self.sums.add(sums);
        if step < steps.for_sinks {
            // What the rows have summed up so far; the last step's, if they see several tiles of sinks, stays.
            let mass = own(self.sums.so_far());
            if self.writes() {
                self.output.write_sinks(p, mass);
            }
        } else if !p.stats.is_null() && self.writes() {
            let end = steps.end_tile().min(self.end_tile);
            let with_sinks = steps.for_sinks > 0;
            self.output
                .write_block(p, tile, own(of_tile), tile + 1..end, with_sinks);
        }
    }

    /// Writes what is known after the last key. The whole warp calls it.
    #[inline(always)]
    pub(super) fn finish(&self, p: &SamplingParams, split: u32) {
        if self.writes() {
            self.output.finish(p, split, own(self.sums.so_far()));
        }
    }

    #[inline(always)]
    fn writes(&self) -> bool {
        self.output.row != NO_ROW
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
