//! The two 16-bit formats, as what a kernel does with them.

use crate::gpu;

/// A 16-bit float format. Values are bits: a `u16`, or two of them in a `u32`, the first in the low
/// half.
pub trait Float16: Copy {
    /// The bits that are all one in infinities and NaNs, and only there.
    const EXPONENT: u16;

    /// A · B + C for one m16n8k16 product.
    fn mma(a: [u32; 4], b: [u32; 2], c: [f32; 4]) -> [f32; 4];

    /// Two numbers rounded to nearest.
    fn pack(low: f32, high: f32) -> u32;

    /// The number, exactly.
    fn to_f32(bits: u16) -> f32;
}

/// bfloat16: 8 bits of exponent, 7 of mantissa.
#[derive(Clone, Copy, Debug)]
pub struct Bf16;

/// IEEE half precision: 5 bits of exponent, 10 of mantissa.
#[derive(Clone, Copy, Debug)]
pub struct F16;

impl Float16 for Bf16 {
    const EXPONENT: u16 = 0x7f80;

    #[inline(always)]
    #[track_caller]
    fn mma(a: [u32; 4], b: [u32; 2], c: [f32; 4]) -> [f32; 4] {
        gpu::mma_m16n8k16_f32_bf16(a, b, c)
    }

    #[inline(always)]
    fn pack(low: f32, high: f32) -> u32 {
        gpu::cvt_rn_bf16x2_f32(high, low)
    }

    #[inline(always)]
    fn to_f32(bits: u16) -> f32 {
        gpu::cvt_f32_bf16(bits)
    }
}

impl Float16 for F16 {
    const EXPONENT: u16 = 0x7c00;

    #[inline(always)]
    #[track_caller]
    fn mma(a: [u32; 4], b: [u32; 2], c: [f32; 4]) -> [f32; 4] {
        gpu::mma_m16n8k16_f32_f16(a, b, c)
    }

    #[inline(always)]
    fn pack(low: f32, high: f32) -> u32 {
        gpu::cvt_rn_f16x2_f32(high, low)
    }

    #[inline(always)]
    fn to_f32(bits: u16) -> f32 {
        gpu::cvt_f32_f16(bits)
    }
}
