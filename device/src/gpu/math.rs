//! Conversions, and the approximations that kernels use in place of exact functions.

#[cfg(all(not(target_arch = "nvptx64"), feature = "emulator"))]
use super::emu::math as emu;

/// Instructions with `f32` operands and result.
macro_rules! float_functions {
    ($($(#[$doc:meta])* $name:ident($($x:ident),+) = $instruction:literal, $support:literal, $emulated:expr;)*) => {$(
        $(#[$doc])*
        ///
        /// # PTX
        #[doc = concat!("`", $instruction, "`")]
        /// # Hardware support
        #[doc = $support]
        #[inline(always)]
        pub fn $name($($x: f32),+) -> f32 {
            on! {
                gpu => {
                    let d: f32;
                    // SAFETY: computes on registers.
                    unsafe {
                        core::arch::asm!($instruction, d = out(reg32) d, $($x = in(reg32) $x,)+
                            options(pure, nomem, nostack));
                    }
                    d
                }
                emulator => { $emulated }
            }
        }
    )*};
}

float_functions! {
    /// 2^x, within 2^-22; −∞ gives 0. Subnormal arguments and results are zero.
    ex2_approx_ftz_f32(x) = "ex2.approx.ftz.f32 {d}, {x};", "All.", emu::ex2_ftz(x);
    /// log2(x), within 2^-22 away from 1; 0 gives −∞. Subnormal arguments are zero.
    lg2_approx_ftz_f32(x) = "lg2.approx.ftz.f32 {d}, {x};", "All.", emu::lg2_ftz(x);
    /// 1/x, within 1 unit in the last place. Subnormal arguments and results are zero.
    rcp_approx_ftz_f32(x) = "rcp.approx.ftz.f32 {d}, {x};", "All.", emu::rcp_ftz(x);
    /// The greater; a number beats NaN.
    max_f32(x, y) = "max.f32 {d}, {x}, {y};", "All.", x.max(y);
    /// The lesser; a number beats NaN.
    min_f32(x, y) = "min.f32 {d}, {x}, {y};", "All.", x.min(y);
    /// x in 0 to 1: less is 0, more is 1, and NaN is 0.
    saturate_f32(x) = "add.rn.sat.f32 {d}, {x}, 0f80000000;", "All.", if x > 0.0 { x.min(1.0) } else { 0.0 };
    /// x·y + z, rounded once.
    fma_rn_f32(x, y, z) = "fma.rn.f32 {d}, {x}, {y}, {z};", "All.", x.mul_add(y, z);
}

/// Packs two numbers as `bf16`, rounded to nearest: `low` in the low half.
///
/// # PTX
/// `cvt.rn.bf16x2.f32 d, high, low;`
/// # Hardware support
/// sm_80 and later.
#[inline(always)]
pub fn cvt_rn_bf16x2_f32(high: f32, low: f32) -> u32 {
    on! {
        gpu => {
            let d: u32;
            // SAFETY: computes on registers.
            unsafe {
                core::arch::asm!("cvt.rn.bf16x2.f32 {d}, {h}, {l};", d = out(reg32) d, h = in(reg32) high,
                    l = in(reg32) low, options(pure, nomem, nostack));
            }
            d
        }
        emulator => { u32::from(emu::bf16_bits(high)) << 16 | u32::from(emu::bf16_bits(low)) }
    }
}

/// Packs two numbers as `f16`, rounded to nearest: `low` in the low half.
///
/// # PTX
/// `cvt.rn.f16x2.f32 d, high, low;`
/// # Hardware support
/// sm_80 and later.
#[inline(always)]
pub fn cvt_rn_f16x2_f32(high: f32, low: f32) -> u32 {
    on! {
        gpu => {
            let d: u32;
            // SAFETY: computes on registers.
            unsafe {
                core::arch::asm!("cvt.rn.f16x2.f32 {d}, {h}, {l};", d = out(reg32) d, h = in(reg32) high,
                    l = in(reg32) low, options(pure, nomem, nostack));
            }
            d
        }
        emulator => { u32::from(emu::f16_bits(high)) << 16 | u32::from(emu::f16_bits(low)) }
    }
}

/// A number as `bf16` bits, rounded to nearest.
///
/// # PTX
/// `cvt.rn.bf16.f32 d, x;`
/// # Hardware support
/// sm_80 and later.
#[inline(always)]
pub fn cvt_rn_bf16_f32(x: f32) -> u16 {
    on! {
        gpu => {
            let d: u16;
            // SAFETY: computes on registers.
            unsafe {
                core::arch::asm!("cvt.rn.bf16.f32 {d}, {x};", d = out(reg16) d, x = in(reg32) x,
                    options(pure, nomem, nostack));
            }
            d
        }
        emulator => { emu::bf16_bits(x) }
    }
}

/// A number as `f16` bits, rounded to nearest.
///
/// # PTX
/// `cvt.rn.f16.f32 d, x;`
/// # Hardware support
/// All.
#[inline(always)]
pub fn cvt_rn_f16_f32(x: f32) -> u16 {
    on! {
        gpu => {
            let d: u16;
            // SAFETY: computes on registers.
            unsafe {
                core::arch::asm!("cvt.rn.f16.f32 {d}, {x};", d = out(reg16) d, x = in(reg32) x,
                    options(pure, nomem, nostack));
            }
            d
        }
        emulator => { emu::f16_bits(x) }
    }
}

/// The number whose `bf16` bits are `bits`: exact.
///
/// # PTX
/// A shift: `shl.b32 d, bits, 16;`
/// # Hardware support
/// All.
#[inline(always)]
pub fn cvt_f32_bf16(bits: u16) -> f32 {
    f32::from_bits((bits as u32) << 16)
}

/// The number whose `f16` bits are `bits`: exact.
///
/// # PTX
/// `cvt.f32.f16 d, bits;`
/// # Hardware support
/// All.
#[inline(always)]
pub fn cvt_f32_f16(bits: u16) -> f32 {
    on! {
        gpu => {
            let d: f32;
            // SAFETY: computes on registers.
            unsafe {
                core::arch::asm!("cvt.f32.f16 {d}, {x};", d = out(reg32) d, x = in(reg16) bits,
                    options(pure, nomem, nostack));
            }
            d
        }
        emulator => { emu::f32_of_f16(bits) }
    }
}
