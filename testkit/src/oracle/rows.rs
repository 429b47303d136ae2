//! The budget of rows: what each sampled row needs of the key blocks.

use rayon::prelude::*;
use sample_attention::{Policy, Problem};

use super::selection::{is_covered, score_magnitude, visible_scores};
use super::{log_sum_exp, position, sampled_rows};
use crate::tensor::Qkv;

/// One sampled row that has a softmax.
#[derive(Clone, Debug)]
pub struct RowDemand {
    /// Its query block.
    pub query_block: usize,
    /// Mass of the window's blocks and the sinks.
    pub covered: f64,
    /// Mass of each key block outside the window, sinks apart; 0 in the window.
    pub mass: Vec<f64>,
    /// Largest scale · Σ|q_d k_d|.
    pub score_magnitude: f64,
}

/// The sampled rows of some query blocks of one head whose scores are numbers below +∞, one of them above −∞: the others ask for
/// nothing.
pub fn row_demands(
    problem: &Problem,
    policy: &Policy,
    qkv: &Qkv,
    head: usize,
    of_block: impl Fn(usize) -> bool + Sync,
) -> Vec<RowDemand> {
    sampled_rows(problem, policy, head)
        .into_par_iter()
        .filter(|&row| of_block(position(problem, row) as usize / 128))
        .filter_map(|row| {
            let scores = visible_scores(problem, qkv, head, row);
            let lse = log_sum_exp(&scores);
            let query_block = position(problem, row) as usize / 128;
            let mut demand = RowDemand {
                query_block,
                covered: 0.0,
                mass: vec![0.0; problem.k_len.div_ceil(128)],
                score_magnitude: score_magnitude(problem, qkv, head, row),
            };
            for (key, s) in scores.iter().enumerate() {
                let p = (s - lse).exp();
                if is_covered(problem, policy, query_block, key) {
                    demand.covered += p;
                } else {
                    demand.mass[key / 128] += p;
                }
            }
            lse.is_finite().then_some(demand)
        })
        .collect()
}
