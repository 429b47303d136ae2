//! Attention by its definition, in `f64`, and the same with every intermediate in 16 bits.

use super::case::{Case, random};

/// The inputs as [batch, head, token, head_dim], rounded to the case's type.
pub struct Inputs {
    pub q: Vec<f32>,
    pub k: Vec<f32>,
    pub v: Vec<f32>,
}

impl Inputs {
    pub fn random(case: &Case) -> Self {
        let make = |heads: usize, tokens: usize, scale: f32, seed| -> Vec<f32> {
            random(case.batch * heads * tokens * case.head_dim, seed)
                .into_iter()
                .map(|x| case.dtype.widen(case.dtype.round(x * scale)))
                .collect()
        };
        let mut inputs = Self {
            q: make(case.q_heads, case.q_len, 3.0, 1),
            k: make(case.kv_heads, case.k_len, 2.0, 2),
            v: make(case.kv_heads, case.k_len, 1.0, 3),
        };
        for (tensor, poison) in [
            (&mut inputs.k, &case.poisoned_keys),
            (&mut inputs.v, &case.poisoned_values),
        ] {
            for &(head, key, value) in poison {
                for batch in 0..case.batch {
                    let row = ((batch * case.kv_heads + head) * case.k_len + key) * case.head_dim;
                    tensor[row..row + case.head_dim].fill(value);
                }
            }
        }
        inputs
    }
}

/// O [batch, head, row, head_dim] and lse [batch, head, row].
pub struct Attention {
    pub o: Vec<f64>,
    pub lse: Vec<f64>,
}

/// Attention in `f64`, and its greatest difference from one whose scores, weights and output are
/// rounded to the inputs' type.
pub fn attention(case: &Case, inputs: &Inputs) -> (Attention, f64) {
    let dim = case.head_dim;
    let mut exact = Attention {
        o: vec![],
        lse: vec![],
    };
    let mut error16 = 0f64;
    for head in 0..case.batch * case.q_heads {
        let group = case.q_heads / case.kv_heads;
        let kv_head = head / case.q_heads * case.kv_heads + head % case.q_heads / group;
        let rows_of = |tensor: &[f32], head: usize, len: usize| -> Vec<f64> {
            let head = &tensor[head * len * dim..(head + 1) * len * dim];
            head.iter().copied().map(f64::from).collect()
        };
        let q = rows_of(&inputs.q, head, case.q_len);
        let k = rows_of(&inputs.k, kv_head, case.k_len);
        let v = rows_of(&inputs.v, kv_head, case.k_len);
        for row in 0..case.q_len {
            let q = &q[row * dim..(row + 1) * dim];
            let keys: Vec<usize> = (0..case.k_len)
                .filter(|&key| case.keeps(head, row, key))
                .collect();
            let scores: Vec<f64> = keys
                .iter()
                .map(|key| dot(q, &k[key * dim..(key + 1) * dim]) * f64::from(case.softmax_scale))
                .collect();
            let (o, lse) = average(&keys, &scores, &v, dim, |x| x);
            let rounded: Vec<f64> = scores.iter().map(|&x| case.dtype.rounded(x)).collect();
            let (low, _) = average(&keys, &rounded, &v, dim, |x| case.dtype.rounded(x));
            for (low, o) in low.iter().zip(&o) {
                let difference = (low - o).abs();
                if difference.is_finite() {
                    error16 = error16.max(difference);
                }
            }
            exact.o.extend(o);
            exact.lse.push(lse);
        }
    }
    (exact, error16)
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0f64; 8];
    for (a, b) in a.chunks_exact(8).zip(b.chunks_exact(8)) {
        for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += a * b;
        }
    }
    sums.iter().sum()
}

/// The softmax average of the keys' rows of `v`, and the log-sum-exp. `round` takes the weights and
/// the result.
fn average(
    keys: &[usize],
    scores: &[f64],
    v: &[f64],
    dim: usize,
    round: impl Fn(f64) -> f64,
) -> (Vec<f64>, f64) {
    let mut o = vec![0f64; dim];
    if keys.is_empty() {
        return (o, f64::NEG_INFINITY);
    }
    let maximum = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = scores.iter().map(|score| (score - maximum).exp()).sum();
    for (key, score) in keys.iter().zip(scores) {
        let weight = round((score - maximum).exp() / sum);
        for (o, v) in o.iter_mut().zip(&v[key * dim..(key + 1) * dim]) {
            *o += weight * v;
        }
    }
    for o in &mut o {
        *o = round(*o);
    }
    (o, maximum + sum.ln())
}
