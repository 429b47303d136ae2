//! The rows of O that a consumer thread holds.

use super::params::CONSUMER_ROWS;
use crate::gpu;
use crate::tile::{Rescale, WARP};

/// Where this thread is among the consumers.
#[derive(Clone, Copy)]
pub(super) struct LaneRows {
    /// Which consumer warpgroup: 0 has the first 64 rows.
    pub warpgroup: u32,
    /// The first of the warp's 16 rows, in the query block.
    pub first_row: u32,
    pub lane: u32,
}

impl LaneRows {
    /// Recomputed where it is needed. Through shuffles, which the compiler cannot look through: what follows from it, dozens of addresses,
    /// would otherwise stay in registers from work tile to work tile.
    #[inline(always)]
    pub fn of_this_thread() -> Self {
        let lane = gpu::laneid();
        let warp = gpu::shfl_sync_idx(WARP, gpu::tid_x() / 32, 0);
        let warpgroup = warp / 4 - 1;
        Self {
            warpgroup,
            first_row: warpgroup * CONSUMER_ROWS + warp % 4 * 16,
            lane: gpu::shfl_sync_idx(WARP, lane, lane),
        }
    }

    /// The first of the thread's two rows; the other is 8 further down.
    #[inline(always)]
    pub const fn row(self) -> u32 {
        self.first_row + self.lane / 4
    }
}

/// Multiplies each of the thread's two rows by its factor.
#[inline(always)]
pub(super) fn scale_rows(output: &mut [f32], factors: Rescale) {
    for (i, x) in output.iter_mut().enumerate() {
        *x *= factors[i >> 1 & 1];
    }
}
