//! Squeezed Attention in f64, written from the formulas of Hooper et al. 2024 and of the second-order score. What is a cluster is given: a list
//! of positions.

use sample_attention::Problem;

use super::{log_sum_exp, score};
use crate::tensor::Qkv;

/// How much a key of a cluster is expected to matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Estimate {
    /// q·C, C the mean of the cluster's keys.
    Mean,
    /// q·C + ½ Σ_d q_d² σ²_d with the cluster's own variances.
    SecondOrder,
    /// The same where σ²_d of a cluster is the mean of its variances over the dimensions, times a profile that all clusters share: the mean
    /// variance of each dimension over all keys, over the mean of those.
    Profile,
    /// The same where σ²_d is the mean of the cluster's variances over the dimensions.
    Isotropic,
}

/// Means and variances of clusters.
pub struct Clusters {
    means: Vec<Vec<f64>>,
    variances: Vec<Vec<f64>>,
    counts: Vec<f64>,
}

impl Clusters {
    /// Of one key/value head's keys at these positions.
    pub fn new(qkv: &Qkv, kv_head: usize, positions: &[Vec<u32>]) -> Self {
        let mut clusters = Clusters {
            means: Vec::new(),
            variances: Vec::new(),
            counts: Vec::new(),
        };
        let dim = qkv.k.shape[3];
        for positions in positions {
            let count = positions.len() as f64;
            let keys = || positions.iter().map(|&p| qkv.k.row(0, kv_head, p as usize));
            let mean: Vec<f64> = (0..dim)
                .map(|d| keys().map(|key| f64::from(key[d])).sum::<f64>() / count)
                .collect();
            let variance = (0..dim)
                .map(|d| {
                    let squares = keys().map(|key| (f64::from(key[d]) - mean[d]).powi(2));
                    squares.sum::<f64>() / count
                })
                .collect();
            clusters.means.push(mean);
            clusters.variances.push(variance);
            clusters.counts.push(count);
        }
        clusters
    }

    /// Log of the weight that a key of each cluster is expected to have.
    pub fn log_weights(&self, problem: &Problem, query: &[f32], estimate: Estimate) -> Vec<f64> {
        let scale = f64::from(problem.softmax_scale);
        let q: Vec<f64> = query.iter().map(|&x| f64::from(x) * scale).collect();
        let dim = q.len() as f64;
        let all: f64 = self.counts.iter().sum();
        let mut profile: Vec<f64> = (0..q.len())
            .map(|d| {
                let variances = self.variances.iter().map(|variance| variance[d]);
                let weighted = variances.zip(&self.counts).map(|(x, count)| x * count);
                weighted.sum::<f64>() / all
            })
            .collect();
        let mean = profile.iter().sum::<f64>() / dim;
        profile.iter_mut().for_each(|x| *x /= mean);
        self.means
            .iter()
            .zip(&self.variances)
            .map(|(mean, variance)| {
                let product: f64 = q.iter().zip(mean).map(|(q, c)| q * c).sum();
                let spread = variance.iter().sum::<f64>() / dim;
                let bend: f64 = q
                    .iter()
                    .enumerate()
                    .map(|(d, q)| {
                        q * q
                            * match estimate {
                                Estimate::Mean => 0.0,
                                Estimate::SecondOrder => variance[d],
                                Estimate::Profile => profile[d] * spread,
                                Estimate::Isotropic => spread,
                            }
                    })
                    .sum();
                product + 0.5 * bend
            })
            .collect()
    }

    /// S_i = exp(w_i) / (Σ_j N_j exp(w_j) + exp(known)): the published score with `known` = −∞ and [`Estimate::Mean`]; with the log-sum-exp of what
    /// else the query sees, the probability of a key.
    pub fn scores(
        &self,
        problem: &Problem,
        query: &[f32],
        estimate: Estimate,
        known: f64,
    ) -> Vec<f64> {
        let weights = self.log_weights(problem, query, estimate);
        let masses = weights.iter().zip(&self.counts).map(|(w, n)| w + n.ln());
        let all: Vec<f64> = masses.chain([known]).collect();
        let total = log_sum_exp(&all);
        weights.iter().map(|w| (w - total).exp()).collect()
    }

    /// Keys of each cluster.
    pub fn counts(&self) -> &[f64] {
        &self.counts
    }
}

/// Natural log-sum-exp of a query's scaled scores with the keys at `positions`.
pub fn known(
    problem: &Problem,
    qkv: &Qkv,
    q_head: usize,
    row: usize,
    positions: impl Iterator<Item = usize>,
) -> f64 {
    let kv_head = q_head / (problem.q_heads / problem.kv_heads);
    let query = qkv.q.row(0, q_head, row);
    let scores: Vec<f64> = positions
        .map(|position| score(problem, query, qkv.k.row(0, kv_head, position)))
        .collect();
    log_sum_exp(&scores)
}

/// T at which the wanted share of keys stays: the quantile of (score, keys) pairs, highest first.
pub fn threshold(mut scores: Vec<(f64, f64)>, share: f64) -> f64 {
    let all: f64 = scores.iter().map(|(_, keys)| keys).sum();
    scores.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut keys = 0.0;
    for (score, count) in scores {
        keys += count;
        if keys >= share * all {
            return score;
        }
    }
    0.0
}
