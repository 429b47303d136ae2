//! The two 16-bit formats, as what a kernel does with them.

use crate::gpu;

/// A 16-bit float format. Values are bits: a `u16`, or two of them in a `u32`, the first in the low
/// half.
pub trait Float16: Copy {
    /// The bits that are all one in infinities and NaNs, and only there.
    const EXPONENT: u16;

    /// The greatest finite number.
    const MAX: f32;

    /// log2 of the weight of a score at its row's reference. Weighted sums are accumulated in `f32` before they are divided by the
    /// sum of the weights, so a format whose range is that of `f32` needs room above its values: 2^16 times the weight of one key.
    const TOP_WEIGHT_LOG2: f32;

    /// A · B + C for one m16n8k16 product.
    fn mma(a: [u32; 4], b: [u32; 2], c: [f32; 4]) -> [f32; 4];

    /// Two numbers rounded to nearest.
    fn pack(low: f32, high: f32) -> u32;

    /// The number, exactly.
    fn to_f32(bits: u16) -> f32;
}

/// The top bit of each half that is NaN or infinite. The exponent's lowest bit, added to an exponent of ones, carries into the sign's.
#[inline(always)]
pub fn not_finite<T: Float16>(pair: u32) -> u32 {
    let exponents = u32::from(T::EXPONENT) << 16 | u32::from(T::EXPONENT);
    let lowest = exponents & !(exponents << 1);
    ((pair & exponents) + lowest) & 0x8000_8000
}

/// All bits of the halves whose top bit is set.
#[inline(always)]
pub const fn spread(top: u32) -> u32 {
    (top >> 15) * 0xffff
}

/// Two averages of numbers of the format, rounded to it. An average of finite numbers is in their range, but where it is nearly its end
/// the rounding of the sums may lead out of it.
#[inline(always)]
pub fn pack_averages<T: Float16>(low: f32, high: f32) -> u32 {
    let within = |x: f32| {
        if x.abs() < f32::INFINITY {
            gpu::min_f32(gpu::max_f32(x, -T::MAX), T::MAX)
        } else {
            x
        }
    };
    T::pack(within(low), within(high))
}

/// bfloat16: 8 bits of exponent, 7 of mantissa.
#[derive(Clone, Copy, Debug)]
pub struct Bf16;

/// IEEE half precision: 5 bits of exponent, 10 of mantissa.
#[derive(Clone, Copy, Debug)]
pub struct F16;

impl Float16 for Bf16 {
    const EXPONENT: u16 = 0x7f80;
    const MAX: f32 = f32::from_bits(0x7f7f_0000);
    const TOP_WEIGHT_LOG2: f32 = -16.0;

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
    const MAX: f32 = 65_504.0;
    const TOP_WEIGHT_LOG2: f32 = 0.0;

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
