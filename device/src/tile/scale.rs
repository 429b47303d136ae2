//! The softmax scale in two parts: its sign goes with the queries, its magnitude multiplies scores. The maximum of the scores is then that
//! of the exponents, whatever the sign.

use crate::gpu;

/// The least magnitude: with it every weight is 1, as with 0, but −∞ stays −∞.
const LEAST_LOG2: f32 = 1.0e-30;

/// The sign bits of two 16-bit numbers.
pub const PAIR_SIGNS: u32 = 0x8000_8000;

/// What multiplies scores, for a scale in the log2 domain: positive.
#[inline(always)]
pub fn magnitude(scale_log2: f32) -> f32 {
    gpu::max_f32(scale_log2.abs(), LEAST_LOG2)
}

/// The bits to flip in each pair of a query's elements.
#[inline(always)]
pub fn flipped_signs(scale_log2: f32) -> u32 {
    if scale_log2 < 0.0 { PAIR_SIGNS } else { 0 }
}
