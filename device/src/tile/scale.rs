//! The softmax scale in two parts: its sign goes with the queries, its magnitude multiplies scores. The maximum of the scores is then that
//! of the exponents, whatever the sign.
//!
//! A scale of 0 has the sign 0 and the magnitude 1: the products are then 0, or NaN where an element is not finite.

use super::float16::{Float16, not_finite, spread};

/// The sign bits of two 16-bit numbers.
const PAIR_SIGNS: u32 = 0x8000_8000;

/// What multiplies scores, for a finite scale in the log2 domain: positive, subnormal scales included.
#[inline(always)]
pub const fn magnitude(scale_log2: f32) -> f32 {
    if scale_log2 == 0.0 {
        1.0
    } else {
        scale_log2.abs()
    }
}

/// Whether the scale's sign is 1, which changes nothing.
#[inline(always)]
pub const fn is_positive(scale_log2: f32) -> bool {
    scale_log2 > 0.0
}

/// The bits that a scale's sign flips in each pair of a query's elements. The sign 0 takes [`times_zero`] in addition.
#[inline(always)]
pub const fn flipped_signs(scale_log2: f32) -> u32 {
    if scale_log2 < 0.0 { PAIR_SIGNS } else { 0 }
}

/// Two elements times 0, which is NaN where one is not finite.
#[inline(always)]
pub fn times_zero<T: Float16>(pair: u32) -> u32 {
    spread(not_finite::<T>(pair)) & !PAIR_SIGNS
}

/// Two elements of a query (or of a key, in its stead) times the scale's sign: −1, 0 or 1.
#[inline(always)]
pub fn times_sign<T: Float16>(pair: u32, scale_log2: f32) -> u32 {
    if scale_log2 == 0.0 {
        times_zero::<T>(pair)
    } else {
        pair ^ flipped_signs(scale_log2)
    }
}
