//! Sums of 64-bit integers over the lanes of a warp and the threads of a block.

use super::WARP;
use crate::gpu::{self, Shared};

/// Moves both halves between lanes.
#[inline(always)]
fn shuffle(x: u64, by: impl Fn(u32) -> u32) -> u64 {
    u64::from(by((x >> 32) as u32)) << 32 | u64::from(by(x as u32))
}

/// The value of lane `lane`.
#[inline(always)]
pub fn from_lane(x: u64, lane: u32) -> u64 {
    shuffle(x, |half| gpu::shfl_sync_idx(WARP, half, lane))
}

/// The sum over groups of `LANES` neighbouring lanes, a power of two, in each of them.
#[inline(always)]
pub fn sum_across<const LANES: u32>(mut x: u64) -> u64 {
    for step in 0..LANES.ilog2() {
        x += shuffle(x, |half| gpu::shfl_sync_bfly(WARP, half, 1 << step));
    }
    x
}

/// The sum over the lanes up to and including this one.
#[inline(always)]
pub fn sum_up_to_lane(mut x: u64) -> u64 {
    for step in 0..5 {
        let below = shuffle(x, |half| gpu::shfl_sync_up(WARP, half, 1 << step));
        x += if gpu::laneid() >= 1 << step { below } else { 0 };
    }
    x
}

/// The sum over the block's threads, in each of them. All threads of the block call it, with a `scratch` that none has read or
/// written since the last barrier.
#[inline(always)]
pub fn sum_in_block(x: u64, scratch: Shared<u64>) -> u64 {
    if gpu::tid_x() == 0 {
        gpu::st_shared(scratch, 0);
    }
    gpu::bar_sync(0);
    // One addition a warp: hardware adds 64 bits in shared memory by trying until nobody comes between.
    let of_warp = sum_across::<32>(x);
    if gpu::laneid() == 0 {
        gpu::atom_shared_add_u64(scratch, of_warp);
    }
    gpu::bar_sync(0);
    gpu::ld_shared(scratch)
}
