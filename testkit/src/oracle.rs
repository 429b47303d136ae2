//! What is right, in f64, written from the formulas of the algorithm and from nothing else.
//!
//! Shares only plain data types with the library. Naive on purpose: a sentence of the definition is a line here, and no
//! two lines here are one line because they compute the same thing.

mod attention;
mod mask;
mod rows;
mod selection;
pub mod squeeze;

pub use attention::{Row, attention, attention_row};
pub use mask::{HeadMask, Mask};
pub use rows::{RowDemand, row_demands};
pub use selection::{Unit, normaliser, sampled_rows, smallest_set, units, window_tokens};

use sample_attention::Problem;

/// Key position of a query, p(i) = i + Sk − Sq: below 0 where the query stands before the first key.
pub fn position(problem: &Problem, row: usize) -> i64 {
    row as i64 + problem.k_len as i64 - problem.q_len as i64
}

/// Whether query `row` may see key `key`: none after its position where that is causal, none before its window.
pub fn sees(problem: &Problem, row: usize, key: usize) -> bool {
    let p = position(problem, row);
    let in_window = problem
        .window_left
        .is_none_or(|window| key as i128 >= i128::from(p) - window as i128);
    in_window && (!problem.causal || key as i64 <= p)
}

/// Query block of a query that sees something: by key position in causal problems, else by row.
pub fn query_block(problem: &Problem, row: usize) -> usize {
    let position = if problem.causal {
        position(problem, row)
    } else {
        row as i64
    };
    usize::try_from(position).expect("the row sees a key") / 128
}

/// Scaled score of one query and one key, capped where the problem says so.
fn score(problem: &Problem, query: &[f32], key: &[f32]) -> f64 {
    let product = product(problem, query, key);
    match problem.softcap {
        Some(cap) => f64::from(cap) * (product / f64::from(cap)).tanh(),
        None => product,
    }
}

/// The same without a cap.
fn product(problem: &Problem, query: &[f32], key: &[f32]) -> f64 {
    let products = query
        .iter()
        .zip(key)
        .map(|(&q, &k)| f64::from(q) * f64::from(k));
    products.sum::<f64>() * f64::from(problem.softmax_scale)
}

/// exp(score) / Σ exp(scores), of each score. Not by way of the log-sum-exp: at scores of 1e17 that has no digits left for the sum.
fn softmax(scores: &[f64]) -> Vec<f64> {
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = scores.iter().map(|x| (x - max).exp()).sum();
    scores.iter().map(|x| (x - max).exp() / sum).collect()
}

/// log Σ exp(scores); −∞ of no scores.
fn log_sum_exp(scores: &[f64]) -> f64 {
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if max == f64::NEG_INFINITY {
        return if scores.iter().any(|x| x.is_nan()) {
            f64::NAN
        } else {
            max
        };
    }
    max + scores.iter().map(|x| (x - max).exp()).sum::<f64>().ln()
}
