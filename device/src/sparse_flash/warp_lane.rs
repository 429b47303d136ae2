//! Which thread this is, and what its warp has for finding its way through the keys.

use super::warp_context::WarpContext;
use crate::gpu::{self, Shared};
use crate::tile::WARP;

/// Which thread this is.
#[derive(Clone, Copy)]
pub(super) struct WarpLane {
    pub warp: u32,
    pub lane: u32,
}

impl WarpLane {
    /// Asks anew each time. Through shuffles, which the compiler cannot look through: it would take
    /// every address that follows from the lane out of the loop over the tiles, and there are dozens.
    #[inline(always)]
    pub fn of_this_thread() -> Self {
        let lane = gpu::laneid();
        Self {
            // Divided behind the shuffle: the quotient in front of it would stay in a register, the thread's number need not.
            warp: gpu::shfl_sync_idx(WARP, gpu::tid_x(), 0) / 32,
            lane: gpu::shfl_sync_idx(WARP, lane, lane),
        }
    }
}

/// What a warp has for finding its way through the keys.
#[derive(Clone, Copy)]
pub(super) struct WarpMemory {
    pub warp_lane: WarpLane,
    pub context: WarpContext,
    /// Gathered keys: a tile, and what the last 32 candidates left over.
    pub queue: Shared<u32>,
    /// The block's: a bit for each key block, whether it is listed.
    pub listed: Shared<u32>,
}
