//! Exponents of 2: how far scores are above a reference, in the log2 domain.
//!
//! ```text
//! near:  fma(score, scale, −round(reference · scale))     where |reference · scale| < 2^10
//! far:   (score − reference) · scale
//! ```
//!
//! Both products can be many times as large as their difference. The near form takes one instruction a score. Its rounding, of the product of
//! the reference alone, is the same for all scores: weights share a factor of at most 2^(2^-15), which no quotient of them has. The far
//! form takes two, and has no such factor: it is exactly 0 at the reference, whatever its magnitude. Which form a row has depends on its own
//! reference alone.
//!
//! Scores and references are raw products; `scale` > 0 is the softmax scale's magnitude times log2 e ([`scale`](super::scale)). A reference
//! of −∞ is that of no score, and has the far form.

use crate::gpu;

/// |reference · scale| from which on exponents have the far form: beyond what attention does, and low enough that the near form's factor is
/// nothing beside the rounding of weights to 16 bits.
const FAR_LOG2: f32 = 1024.0;

/// What is added to a scaled score in the near form, so that a score at the reference has the exponent `top`.
#[inline(always)]
pub fn near_offset(reference: f32, scale: f32, top: f32) -> f32 {
    gpu::fma_rn_f32(-reference, scale, top)
}

/// Whether a reference with this [`near_offset`] needs the far form. Infinite ones and NaN do.
#[inline(always)]
pub fn is_far(near_offset: f32) -> bool {
    // Not the opposite comparison, which is false for NaN.
    !matches!(
        near_offset.abs().partial_cmp(&FAR_LOG2),
        Some(core::cmp::Ordering::Less)
    )
}

/// What is subtracted from a row's scores in the form that its reference has: 0 in the near form.
#[inline(always)]
pub fn shift(reference: f32, near_offset: f32) -> f32 {
    if is_far(near_offset) {
        finite_or_zero(reference)
    } else {
        0.0
    }
}

/// What is added to shifted and scaled scores in the form that the reference has.
#[inline(always)]
pub fn offset(near_offset: f32, top: f32) -> f32 {
    if is_far(near_offset) {
        top
    } else {
        near_offset
    }
}

/// The exponent of a score relative to a reference, in the form that the reference has.
#[inline(always)]
pub fn exponent(score: f32, reference: f32, scale: f32, top: f32) -> f32 {
    let near_offset = near_offset(reference, scale, top);
    let shifted = score - shift(reference, near_offset);
    gpu::fma_rn_f32(shifted, scale, offset(near_offset, top))
}

/// log2 of what turns weights relative to `from` into weights relative to `to`, which is not below it and has the same `top`; −∞ where
/// `from` is. Exactly 0 where the two are the same number.
#[inline(always)]
pub fn change(from: f32, to: f32, scale: f32, top: f32) -> f32 {
    let [old, new] = [from, to].map(|reference| near_offset(reference, scale, top));
    if is_far(old) || is_far(new) {
        (from - finite_or_zero(to)) * scale
    } else {
        new - old
    }
}

/// A reference to subtract: −∞ minus itself would be NaN.
#[inline(always)]
fn finite_or_zero(x: f32) -> f32 {
    if x == f32::NEG_INFINITY { 0.0 } else { x }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Magnitudes of references, of both signs, with full mantissas.
    fn references() -> impl Iterator<Item = f32> {
        let magnitudes = (-38..=38).map(|exponent| 10f32.powi(exponent) * 1.234_567_8);
        magnitudes.filter(|x| x.is_finite()).flat_map(|x| [x, -x])
    }

    const SCALES: [f32; 9] = [
        1.0e-45, 1.0e-40, 1.0e-30, 1.0e-10, 0.18, 1.0, 7.7, 1.0e20, 1.0e38,
    ];

    #[test]
    fn a_score_at_its_reference_has_the_top_exponent() {
        for reference in references() {
            for scale in SCALES {
                for top in [0.0, -16.0] {
                    let got = exponent(reference, reference, scale, top);
                    assert!(
                        (got - top).abs() <= 1.0 / 32_768.0,
                        "{reference} {scale}: {got}"
                    );
                }
                assert_eq!(change(reference, reference, scale, 0.0), 0.0);
            }
        }
    }

    #[test]
    fn exponents_are_differences_at_every_magnitude() {
        for reference in references() {
            for scale in SCALES {
                for below in [1.0, 0.5, 1.0e-3, 1.0e-7] {
                    let score = reference - reference.abs() * below;
                    let want = (f64::from(score) - f64::from(reference)) * f64::from(scale);
                    let got = f64::from(exponent(score, reference, scale, 0.0));
                    let error = (got - want).abs();
                    let allowed = 4.0e-5 + want.abs() * 3.0e-7;
                    let both_vanish = want < -200.0 && got < -190.0;
                    assert!(
                        error <= allowed || both_vanish,
                        "{score} {reference} {scale}: {got}, not {want}"
                    );
                    let got = f64::from(change(score, reference, scale, 0.0));
                    let both_vanish = want < -200.0 && got < -190.0;
                    assert!(
                        (got - want).abs() <= 2.0 * allowed || both_vanish,
                        "{score} {reference} {scale}: {got}, not {want}"
                    );
                }
            }
        }
    }

    #[test]
    fn no_score_yet_has_no_weight() {
        let nothing = f32::NEG_INFINITY;
        for scale in SCALES {
            assert_eq!(exponent(nothing, nothing, scale, -16.0), nothing);
            assert_eq!(change(nothing, nothing, scale, 0.0), nothing);
            for reference in references() {
                assert_eq!(exponent(nothing, reference, scale, 0.0), nothing);
                assert_eq!(change(nothing, reference, scale, 0.0), nothing);
            }
            assert!(exponent(f32::INFINITY, f32::INFINITY, scale, 0.0).is_nan());
            assert!(exponent(f32::NAN, 1.0, scale, 0.0).is_nan());
        }
    }
}
