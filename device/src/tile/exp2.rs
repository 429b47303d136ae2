//! 2^x by multiplications and additions.
//!
//! A multiprocessor has 16 `ex2` a cycle and 128 `fma`. A kernel that waits for the former does some of its exponentials so:
//! x = k + f with an integer k and |f| ≤ 1/2, 2^x = 2^k · p(f) with a polynomial p; fourteen instructions in place of one.

use crate::gpu;

/// The polynomial that is nearest to 2^f on [−1/2, 1/2] relatively, within 2^-23.6; powers ascending.
const COEFFICIENTS: [f32; 6] = [
    1.000_000_1,
    0.693_146_94,
    0.240_221_2,
    0.055_507_13,
    0.009_675_541,
    0.001_327_647_2,
];

/// A number as large as this has no bits after the point: adding it rounds. Its lowest bits are 127, the bias of the
/// exponent.
const ROUNDER: f32 = 12_582_912.0 + 127.0;

/// 2^x within 2^-22 for −126 ≤ x ≤ 127. Beyond, what these bounds give; NaN of NaN.
#[inline(always)]
pub fn exp2_by_fma(x: f32) -> f32 {
    let x = gpu::min_nan_f32(gpu::max_nan_f32(x, -126.0), 127.0);
    let rounded = x + ROUNDER;
    let f = x - (rounded - ROUNDER);
    let [c0, c1, c2, c3, c4, c5] = COEFFICIENTS;
    let mut p = gpu::fma_rn_f32(c5, f, c4);
    p = gpu::fma_rn_f32(p, f, c3);
    p = gpu::fma_rn_f32(p, f, c2);
    p = gpu::fma_rn_f32(p, f, c1);
    p = gpu::fma_rn_f32(p, f, c0);
    // Not added to the exponent of p, for that could make a number of NaN.
    p * f32::from_bits(rounded.to_bits() << 23)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_as_exact_as_the_instruction() {
        let mut worst = 0f64;
        for i in -126_000..=127_000 {
            let x = i as f32 / 1000.0;
            let want = f64::from(x).exp2();
            worst = worst.max((f64::from(exp2_by_fma(x)) / want - 1.0).abs());
        }
        assert!(worst < 1.0 / f64::from(1 << 22), "{worst:e}");
    }

    #[test]
    fn it_stays_within_its_bounds_and_keeps_nan() {
        assert_eq!(exp2_by_fma(-126.0), f32::MIN_POSITIVE * COEFFICIENTS[0]);
        for below in [-127.0, -1e30, f32::NEG_INFINITY] {
            assert_eq!(exp2_by_fma(below), exp2_by_fma(-126.0));
        }
        for above in [128.0, 129.0, 300.0, 1e30, f32::INFINITY] {
            assert_eq!(exp2_by_fma(above), exp2_by_fma(127.0));
        }
        assert!(exp2_by_fma(127.0) > 1e38);
        assert!(exp2_by_fma(f32::NAN).is_nan());
    }
}
