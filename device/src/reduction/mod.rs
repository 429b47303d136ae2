//! Reduction: the sampled attention mass of every candidate, and what window and sinks already cover.
//!
//! A row's whole mass is [`MASS_ONE`]. Masses are integers, summed as integers, so the bits do not depend on who adds what
//! when. [`blocks`] combines the statistics that sampling kept; [`keys`] multiplies queries and keys a second time.

pub mod blocks;
pub mod keys;

use crate::gpu::{self, Shared};
use crate::tile::WARP;

/// Fixed-point mass of one fully attended row.
pub const MASS_ONE: u64 = 1 << 32;

/// A share of at most `most` rows' mass in fixed point. NaN, which comes of NaN or infinite inputs, counts as nothing.
#[inline(always)]
fn fixed_point(share: f32, most: f32) -> u64 {
    // `max` prefers the number to the NaN. Powers of two scale exactly.
    let share = gpu::min_f32(gpu::max_f32(share, 0.0), most);
    (share * MASS_ONE as f32) as u64
}

/// The sum over groups of `LANES` neighbouring lanes, a power of two, in each of them.
#[inline(always)]
fn sum_across<const LANES: u32>(mut x: u64) -> u64 {
    for step in 0..LANES.ilog2() {
        let low = gpu::shfl_sync_bfly(WARP, x as u32, 1 << step);
        let high = gpu::shfl_sync_bfly(WARP, (x >> 32) as u32, 1 << step);
        x += u64::from(high) << 32 | u64::from(low);
    }
    x
}

/// The sum over the block's threads, in thread 0. `scratch` is the block's own; all threads call it, once.
#[inline(always)]
fn sum_in_block(x: u64, scratch: Shared<u64>) -> u64 {
    if gpu::tid_x() == 0 {
        gpu::st_shared(scratch, 0);
    }
    gpu::bar_sync(0);
    let of_warp = sum_across::<32>(x);
    if gpu::laneid() == 0 {
        gpu::atom_shared_add_u64(scratch, of_warp);
    }
    gpu::bar_sync(0);
    gpu::ld_shared(scratch)
}
