//! Reduction: the sampled attention mass of every candidate, and what window and sinks already cover.
//!
//! A row's whole mass is [`MASS_ONE`]. Masses are integers, summed as integers, so the bits do not depend on who adds what
//! when. [`blocks`] combines the statistics that sampling kept; [`keys`] multiplies queries and keys a second time. Where each
//! row selects by itself, reduction and selection are one kernel: [`top_k::rows`](crate::top_k::rows).

pub mod blocks;
pub mod keys;
pub mod statistics;

use crate::gpu;

/// Fixed-point mass of one fully attended row.
pub const MASS_ONE: u64 = 1 << 32;

/// A share of at most `most` rows' mass in fixed point. NaN, which comes of NaN or infinite inputs, counts as nothing.
#[inline(always)]
pub(crate) fn fixed_point(share: f32, most: f32) -> u64 {
    // `max` prefers the number to the NaN. Powers of two scale exactly.
    let share = gpu::min_f32(gpu::max_f32(share, 0.0), most);
    (share * MASS_ONE as f32) as u64
}
