//! How far the next-byte distributions of one forward pass lie from those of another.

use std::f64::consts::LOG2_E;

use super::weights::VOCABULARY;

/// Base-2 logarithms of the next-byte probabilities of every position, [position, 256].
pub struct Predictions {
    log2: Vec<f64>,
}

impl Predictions {
    /// Softmax of `logits` [position, 256].
    pub fn new(logits: &[f32]) -> Self {
        let log2 = logits
            .chunks_exact(VOCABULARY)
            .flat_map(|row| {
                let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let shifted = move |x: &f32| f64::from(x - max);
                let log_sum = row.iter().map(|x| shifted(x).exp()).sum::<f64>().ln();
                row.iter().map(move |x| (shifted(x) - log_sum) * LOG2_E)
            })
            .collect();
        Predictions { log2 }
    }

    fn rows(&self) -> impl ExactSizeIterator<Item = &[f64]> {
        self.log2.chunks_exact(VOCABULARY)
    }

    /// Mean loss in bits per byte, where `targets` are the bytes that came.
    pub fn loss(&self, targets: &[u8]) -> f64 {
        assert_eq!(self.rows().len(), targets.len());
        let bits = self
            .rows()
            .zip(targets)
            .map(|(row, &byte)| -row[usize::from(byte)]);
        bits.sum::<f64>() / targets.len() as f64
    }

    /// Mean Kullback-Leibler divergence of `other` from these predictions, in bits: Σ p log2(p / q) with p from here.
    pub fn divergence_of(&self, other: &Predictions) -> f64 {
        let rows = self.rows().zip(other.rows());
        let bits = rows.map(|(p, q)| {
            p.iter()
                .zip(q)
                .map(|(p, q)| p.exp2() * (p - q))
                .sum::<f64>()
        });
        bits.sum::<f64>() / self.rows().len() as f64
    }

    /// Share of the positions where both find the same byte most likely.
    pub fn agreement_with(&self, other: &Predictions) -> f64 {
        let same = self
            .rows()
            .zip(other.rows())
            .filter(|(p, q)| most_likely(p) == most_likely(q));
        same.count() as f64 / self.rows().len() as f64
    }
}

fn most_likely(log2: &[f64]) -> Option<usize> {
    let indices = 0..log2.len();
    indices.max_by(|&a, &b| log2[a].total_cmp(&log2[b]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One row: these probabilities for the first bytes, nothing for the others.
    fn row(probabilities: &[f32]) -> Vec<f32> {
        let mut logits = vec![-1e4; VOCABULARY];
        for (logit, p) in logits.iter_mut().zip(probabilities) {
            *logit = p.ln();
        }
        logits
    }

    #[test]
    fn known_distributions_have_known_divergences() {
        let p = Predictions::new(&row(&[0.5, 0.5]));
        let q = Predictions::new(&row(&[0.75, 0.25]));
        // 0.5 log2(0.5 / 0.75) + 0.5 log2(0.5 / 0.25)
        let expected = 0.5 * (2f64 / 3.0).log2() + 0.5;
        assert!((p.divergence_of(&q) - expected).abs() < 1e-6);
        // 0.75 log2(0.75 / 0.5) + 0.25 log2(0.25 / 0.5)
        let backward = 0.75 * 1.5f64.log2() - 0.25;
        assert!((q.divergence_of(&p) - backward).abs() < 1e-6);
        assert_eq!(p.divergence_of(&p), 0.0);
    }

    #[test]
    fn loss_and_agreement_are_means_over_positions() {
        let p = Predictions::new(&[row(&[0.25, 0.75]), row(&[0.5, 0.125, 0.375])].concat());
        let q = Predictions::new(&[row(&[0.4, 0.6]), row(&[0.1, 0.9])].concat());
        assert!((p.loss(&[0, 1]) - 2.5).abs() < 1e-6);
        assert_eq!(p.agreement_with(&q), 0.5);
    }

    #[test]
    fn a_common_shift_of_the_logits_changes_nothing() {
        let logits = row(&[0.1, 0.2, 0.7]);
        let shifted: Vec<f32> = logits.iter().map(|x| x + 64.0).collect();
        let divergence = Predictions::new(&logits).divergence_of(&Predictions::new(&shifted));
        assert!(divergence.abs() < 1e-5, "{divergence}");
    }

    #[test]
    fn uniform_predictions_cost_eight_bits() {
        let uniform = Predictions::new(&[3.0; VOCABULARY]);
        assert!((uniform.loss(&[77]) - 8.0).abs() < 1e-12);
    }
}
