//! How far predictions lie from those of dense attention.

use std::f64::consts::LOG2_E;

/// Mean over positions of Σ p · log2(p / q), `p` and `q` being natural logarithms [positions, outcomes]; `None` where their sizes differ
/// or one of them holds none. Not negative: rounding aside it never is.
pub(super) fn mean_divergence(p: &[f32], q: &[f32], outcomes: usize) -> Option<f64> {
    if outcomes == 0 || p.is_empty() || p.len() != q.len() || !p.len().is_multiple_of(outcomes) {
        return None;
    }
    let of_position = |(p, q): (&[f32], &[f32])| {
        let terms = p.iter().zip(q).map(|(&p, &q)| {
            let (p, q) = (f64::from(p), f64::from(q));
            // An outcome without probability adds nothing, whatever q is.
            if p == f64::NEG_INFINITY {
                0.0
            } else {
                p.exp() * (p - q)
            }
        });
        terms.sum::<f64>()
    };
    let rows = p.chunks_exact(outcomes).zip(q.chunks_exact(outcomes));
    let positions = (p.len() / outcomes) as f64;
    let mean = rows.map(of_position).sum::<f64>() / positions * LOG2_E;
    Some(if mean < 0.0 { 0.0 } else { mean })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_distributions_have_known_divergences() {
        let log = |p: [f32; 2]| p.map(f32::ln);
        let expected = 0.5 * (2f64 / 3.0).log2() + 0.5;
        let found = mean_divergence(&log([0.5, 0.5]), &log([0.75, 0.25]), 2).unwrap();
        assert!((found - expected).abs() < 1e-6);
        let same = [log([1.0, 0.0]), log([0.25, 0.75])].concat();
        assert_eq!(mean_divergence(&same, &same, 2), Some(0.0));
    }

    #[test]
    fn predictions_of_other_sizes_have_none() {
        assert_eq!(mean_divergence(&[0.0], &[0.0, 0.0], 1), None);
        assert_eq!(mean_divergence(&[0.0; 3], &[0.0; 3], 2), None);
        assert_eq!(mean_divergence(&[], &[], 2), None);
        assert_eq!(mean_divergence(&[0.0], &[0.0], 0), None);
    }
}
