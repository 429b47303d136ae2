//! Conversions and approximations, in their exact or nearly exact form.

/// 2^x; subnormal results are zero.
pub(in super::super) fn ex2_ftz(x: f32) -> f32 {
    flush(flush(x).exp2())
}

/// log2(x).
pub(in super::super) fn lg2_ftz(x: f32) -> f32 {
    flush(flush(x).log2())
}

/// 1/x.
pub(in super::super) fn rcp_ftz(x: f32) -> f32 {
    flush(1.0 / flush(x))
}

/// Subnormal numbers as zero of their sign.
fn flush(x: f32) -> f32 {
    if x.is_subnormal() {
        0.0f32.copysign(x)
    } else {
        x
    }
}

pub(in super::super) fn bf16_bits(x: f32) -> u16 {
    if x.is_nan() {
        // PTX has one NaN for its narrow results.
        return 0x7fff;
    }
    half::bf16::from_f32(x).to_bits()
}

pub(in super::super) fn f16_bits(x: f32) -> u16 {
    if x.is_nan() {
        return 0x7fff;
    }
    half::f16::from_f32(x).to_bits()
}

pub(in super::super) fn f32_of_f16(bits: u16) -> f32 {
    half::f16::from_bits(bits).to_f32()
}
