//! The selection by its definitions, in `f64` and without regard to cost.

use crate::case::{Case, Inputs};
use crate::pipeline::Budget;

/// Tokens of a block.
pub const BLOCK: usize = 128;
/// Fixed-point mass of one row.
pub const ONE: f64 = 4_294_967_296.0;

/// The sampled rows of one head.
pub struct Head {
    /// Positions of the sampled rows, ascending.
    pub positions: Vec<usize>,
    /// By sampled row, the scores of the keys that it sees, in the log2 domain.
    pub scores: Vec<Vec<f64>>,
    /// By sampled row, the maximum of the scores, and Σ 2^(score − maximum).
    parts: Vec<(f64, f64)>,
    /// By sampled row, log2 of Σ 2^score.
    pub lse: Vec<f64>,
}

impl Head {
    pub fn new(case: &Case, budget: Budget, inputs: &Inputs, head: usize) -> Self {
        let (batch, q_head) = (head / case.q_heads, head % case.q_heads);
        let kv_head = q_head / (case.q_heads / case.kv_heads);
        let positions: Vec<usize> = (0..case.k_len)
            .filter(|p| p + case.q_len >= case.k_len)
            .filter(|&p| case.is_sampled(p, budget == Budget::Blocks))
            .collect();
        let scale = f64::from(case.softmax_scale) * std::f64::consts::LOG2_E;
        let scores: Vec<Vec<f64>> = positions
            .iter()
            .map(|&p| {
                let query = inputs.query(batch, q_head, p + case.q_len - case.k_len);
                (0..=p)
                    .map(|key| {
                        let key = inputs.key(batch, kv_head, key);
                        let dot: f64 = query.iter().zip(key).map(|(x, y)| x * y).sum();
                        dot * scale
                    })
                    .collect()
            })
            .collect();
        let lse = scores.iter().map(|row| log2_sum_exp2(row)).collect();
        let parts = scores
            .iter()
            .map(|row| {
                let maximum = maximum(row);
                (maximum, row.iter().map(|x| (x - maximum).exp2()).sum())
            })
            .collect();
        Head {
            positions,
            scores,
            parts,
            lse,
        }
    }

    /// The share of a key in the mass of a sampled row.
    pub fn share(&self, row: usize, key: usize) -> f64 {
        let score = self.scores[row].get(key).copied();
        // Not relative to the log-sum-exp, of which large scores leave no more than the maximum.
        let (maximum, sum) = self.parts[row];
        score.map_or(0.0, |score| (score - maximum).exp2() / sum)
    }
}

pub fn maximum(scores: &[f64]) -> f64 {
    scores.iter().copied().fold(f64::NEG_INFINITY, f64::max)
}

pub fn log2_sum_exp2(scores: &[f64]) -> f64 {
    let max = maximum(scores);
    if max == f64::NEG_INFINITY {
        return max;
    }
    max + scores.iter().map(|x| (x - max).exp2()).sum::<f64>().log2()
}

/// The smallest set whose mass reaches `need`, by sorting; ascending.
pub fn top_k<M: Copy + PartialOrd + std::ops::AddAssign + Default>(
    masses: &[M],
    need: M,
) -> Vec<usize> {
    let zero = M::default();
    let mut order: Vec<usize> = (0..masses.len()).filter(|&i| masses[i] > zero).collect();
    order.sort_by(|&a, &b| masses[b].partial_cmp(&masses[a]).unwrap().then(a.cmp(&b)));
    let mut sum = zero;
    let mut chosen: Vec<usize> = order
        .into_iter()
        .take_while(|&index| {
            let needed = sum < need;
            sum += masses[index];
            needed
        })
        .collect();
    chosen.sort_unstable();
    chosen
}

/// Whether a head's selection costs as much as dense.
pub fn is_dense(case: &Case, lists: &[Vec<u32>], stripes: &[u32]) -> bool {
    let first_query_block = case.k_len.saturating_sub(case.q_len) / BLOCK;
    let (mut sparse, mut dense) = (0, 0);
    for (query_block, list) in lists.iter().enumerate().skip(first_query_block) {
        let loose = (0..query_block * BLOCK)
            .filter(|&key| key < case.sinks || stripes.binary_search(&(key as u32)).is_ok())
            .filter(|&key| !list.contains(&((key / BLOCK) as u32)))
            .count();
        sparse += list.len() + loose.div_ceil(BLOCK);
        dense += query_block + 1;
    }
    sparse >= dense
}
