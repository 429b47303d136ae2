//! O and log-sum-exp of given rows over a mask, and how well conditioned they are.

use rayon::prelude::*;
use sample_attention::{Dtype, Problem};

use super::{Mask, log_sum_exp, score, softmax};
use crate::tensor::{Qkv, round};

/// How many 16-bit references there are.
const REFERENCES: usize = 4;

/// One row of attention: `O[i] = Σ_j P[i,j] V[j]` over kept keys, `P[i,j] = exp(s[i,j] − LSE[i])`.
#[derive(Clone, Debug)]
pub struct Row {
    /// Which (batch · q_heads + query head).
    pub head: usize,
    /// Which query.
    pub row: usize,
    /// Output; zeros where nothing is kept, NaN where something is but the softmax is not finite.
    pub o: Vec<f64>,
    /// Natural log-sum-exp of the kept, scaled scores; −∞ where nothing is kept.
    pub lse: f64,
    /// The outputs of references that round weights to the inputs' 16-bit type before the second product; `o` itself for f32
    /// inputs. Not yet rounded to the output's type. The first takes weights relative to the row's maximum, the others to
    /// references a quarter of a power of two further away each: flash attention is free to choose, and where one key has nearly all
    /// the weight, whether that weight is exactly 1 decides the error.
    pub o_low_precision: [Vec<f64>; REFERENCES],
    /// Keys kept.
    pub kept: usize,
    /// Largest scale · Σ|q_d k_d| over kept keys: what relative rounding errors of products act on.
    pub score_magnitude: f64,
    /// `Σ_j P[i,j] |V[j]|`.
    pub o_magnitude: Vec<f64>,
}

/// Attention of the rows 0, step, 2·step … and the last one of every head.
pub fn attention(problem: &Problem, qkv: &Qkv, mask: &Mask, step: usize) -> Vec<Row> {
    let rows: Vec<usize> = (0..problem.q_len)
        .filter(|row| row % step == 0 || row + 1 == problem.q_len)
        .collect();
    (0..problem.batch * problem.q_heads * rows.len())
        .into_par_iter()
        .map(|task| {
            let (head, row) = (task / rows.len(), rows[task % rows.len()]);
            attention_row(problem, qkv, head, row, &mask.kept_keys(problem, head, row))
        })
        .collect()
}

/// One row over the given keys.
pub fn attention_row(problem: &Problem, qkv: &Qkv, head: usize, row: usize, keys: &[usize]) -> Row {
    let (batch, q_head) = (head / problem.q_heads, head % problem.q_heads);
    let kv_head = q_head / (problem.q_heads / problem.kv_heads);
    let query = qkv.q.row(batch, q_head, row);
    let key = |j: usize| qkv.k.row(batch, kv_head, j);
    let scores: Vec<f64> = keys
        .iter()
        .map(|&j| score(problem, query, key(j)))
        .collect();
    let lse = log_sum_exp(&scores);
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);

    let mut o = vec![0.0; problem.head_dim];
    let mut o_low_precision = std::array::from_fn(|_| vec![0.0; problem.head_dim]);
    let scales: [f64; REFERENCES] = std::array::from_fn(|i| (i as f64 / REFERENCES as f64).exp2());
    let mut o_magnitude = vec![0.0; problem.head_dim];
    let mut sum = 0.0;
    for ((&j, s), p) in keys.iter().zip(&scores).zip(softmax(&scores)) {
        // p is NaN where every kept score is −∞: unlike a row that keeps nothing, it is asked for a mean, and there is none.
        let weight = if max == f64::NEG_INFINITY {
            p
        } else {
            (s - max).exp()
        };
        let low_precision = |x| match problem.dtype {
            Dtype::F32 => x,
            dtype => round(dtype, x),
        };
        sum += weight;
        for (d, &v) in qkv.v.row(batch, kv_head, j).iter().enumerate() {
            let v = f64::from(v);
            o[d] += p * v;
            for (o, scale) in o_low_precision.iter_mut().zip(scales) {
                o[d] += low_precision(weight * scale) / scale * v;
            }
            o_magnitude[d] += p * v.abs();
        }
    }
    if sum != 0.0 {
        for o in &mut o_low_precision {
            o.iter_mut().for_each(|x| *x /= sum);
        }
    }
    let magnitudes = keys.iter().map(|&j| {
        let products = query
            .iter()
            .zip(key(j))
            .map(|(&q, &k)| (f64::from(q) * f64::from(k)).abs());
        products.sum::<f64>() * f64::from(problem.softmax_scale).abs()
    });
    Row {
        head,
        row,
        o,
        lse,
        o_low_precision,
        kept: keys.len(),
        score_magnitude: magnitudes.fold(0.0, f64::max),
        o_magnitude,
    }
}
