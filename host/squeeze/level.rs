//! Statistics of the clusters of one level of one key/value head.

use rayon::prelude::*;

use super::options::Variance;
use super::rows::Rows;
use crate::cpu::KEY_GROUP;

/// Clusters are runs of the permuted rows.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Level {
    /// Where each cluster's rows begin, and where the last one's end.
    pub(super) rows: Vec<u32>,
    /// Of the coarse level: where each cluster's fine clusters begin, and where the last one's end. Empty in the fine level.
    pub(super) children: Vec<u32>,
    /// Mean of each cluster's keys as they are, rows of head_dim, and zeros that fill up a [`KEY_GROUP`] at the end.
    pub(super) means: Vec<f32>,
    /// Variance of each cluster's keys, mean over the dimensions.
    pub(super) spread: Vec<f32>,
    /// How the variance is spread over the dimensions, the same for all clusters of the head; its mean is 1.
    pub(super) profile: Vec<f32>,
    /// As `means`, of the variances of each dimension; empty for [`Variance::Profile`].
    pub(super) variances: Vec<f32>,
    /// log2 of each cluster's keys.
    pub(super) log2_counts: Vec<f32>,
}

/// What one cluster's statistics are worked out in.
struct Moments {
    mean: Vec<f32>,
    variances: Vec<f64>,
}

impl Level {
    /// Measures the clusters of head `head` whose rows begin at `boundaries`; their number is one less.
    pub(super) fn measure(
        keys: &Rows,
        head: usize,
        boundaries: Vec<u32>,
        children: Vec<u32>,
        variance: Variance,
    ) -> Self {
        let dim = keys.dim();
        let clusters = boundaries.len().saturating_sub(1);
        let moments: Vec<Moments> = boundaries
            .par_windows(2)
            .with_min_len(16)
            .map(|run| Moments::of(keys, head, run[0] as usize..run[1] as usize))
            .collect();
        let counts = boundaries.windows(2).map(|run| f64::from(run[1] - run[0]));
        let mut profile = vec![0f64; dim];
        for (moments, count) in moments.iter().zip(counts.clone()) {
            for (profile, variance) in profile.iter_mut().zip(&moments.variances) {
                *profile += count * variance;
            }
        }
        let mean = profile.iter().sum::<f64>() / dim as f64;
        let usable = mean > 0.0 && mean.is_finite();
        let profile = profile
            .iter()
            .map(|x| if usable { (x / mean) as f32 } else { 1.0 });
        let padded = (clusters + KEY_GROUP) * dim;
        let mut means = Vec::with_capacity(padded);
        let mut variances = Vec::new();
        let mut spread = Vec::with_capacity(clusters);
        for moments in &moments {
            means.extend_from_slice(&moments.mean);
            let sum: f64 = moments.variances.iter().sum();
            spread.push(to_f32(sum / dim as f64));
            if variance == Variance::PerDimension {
                variances.extend(moments.variances.iter().map(|&x| to_f32(x)));
            }
        }
        means.resize(padded, 0.0);
        if variance == Variance::PerDimension {
            variances.resize(padded, 0.0);
        }
        Level {
            log2_counts: counts.map(|count| count.log2() as f32).collect(),
            rows: boundaries,
            children,
            means,
            spread,
            profile: profile.collect(),
            variances,
        }
    }

    /// Clusters.
    pub(super) fn len(&self) -> usize {
        self.spread.len()
    }

    /// Keys of a cluster.
    pub(super) fn count(&self, cluster: usize) -> u32 {
        self.rows[cluster + 1] - self.rows[cluster]
    }

    pub(super) fn bytes(&self) -> usize {
        4 * (self.rows.len()
            + self.children.len()
            + self.means.len()
            + self.spread.len()
            + self.profile.len()
            + self.variances.len()
            + self.log2_counts.len())
    }
}

impl Moments {
    /// In two passes, in f64: keys of large models are large in a few dimensions.
    fn of(keys: &Rows, head: usize, rows: std::ops::Range<usize>) -> Self {
        let count = rows.len() as f64;
        let mut row = vec![0f32; keys.dim()];
        let mut mean = vec![0f64; keys.dim()];
        for at in rows.clone() {
            keys.read(head, at, &mut row);
            for (mean, &x) in mean.iter_mut().zip(&row) {
                *mean += f64::from(x);
            }
        }
        mean.iter_mut().for_each(|x| *x /= count);
        let mut variances = vec![0f64; keys.dim()];
        for at in rows {
            keys.read(head, at, &mut row);
            for ((variance, mean), &x) in variances.iter_mut().zip(&mean).zip(&row) {
                *variance += (f64::from(x) - mean).powi(2);
            }
        }
        variances.iter_mut().for_each(|x| *x /= count);
        Moments {
            mean: mean.iter().map(|&x| x as f32).collect(),
            variances,
        }
    }
}

/// Keys near f32's limit have variances beyond it.
fn to_f32(x: f64) -> f32 {
    x.min(f64::from(f32::MAX)) as f32
}
