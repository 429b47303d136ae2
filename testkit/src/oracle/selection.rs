//! Sampling, reduction and top-k: which keys and blocks a policy selects.

use rayon::prelude::*;
use sample_attention::{Budget, Policy, Problem, Window};

use super::{log_sum_exp, position, product, score, sees, softmax};
use crate::tensor::Qkv;

/// What spends its mass by itself: one segment of 64 query blocks of one head for `blocks`, else one head.
#[derive(Clone, Debug)]
pub struct Unit {
    /// Sequence.
    pub batch: usize,
    /// Query head.
    pub q_head: usize,
    /// First query block of the segment.
    pub first_query_block: usize,
    /// |R| of the unit, less the rows whose softmax is not finite.
    pub rows: usize,
    /// Sampled mass that window and sinks cover.
    pub covered: f64,
    /// Mass that the selected set has to reach.
    pub need: f64,
    /// What candidates are ranked by: `[query block of the unit, key block]`, or `[key]`.
    pub mass: Vec<f64>,
    /// The part of it outside window and sinks.
    pub beyond: Vec<f64>,
    /// Key blocks, or keys.
    pub candidates_per_row: usize,
    /// Largest scale · Σ|q_d k_d| of the sampled rows.
    pub score_magnitude: f64,
}

/// R = { i : (p(i) + 1) mod s = 0, or i = Sq−1 }, of the rows that see a key, where s is the stride of the row's segment, or of
/// the tail for `rows`. Where s divides 128, `rows` samples the head's `row_offset` earlier, but for the last row of each block.
pub fn sampled_rows(problem: &Problem, policy: &Policy, head: usize) -> Vec<usize> {
    let offset = match policy.budget {
        Budget::Rows => row_offset(policy, head % problem.q_heads),
        _ => 0,
    };
    (0..problem.q_len)
        .filter(|&row| {
            let p = position(problem, row);
            let is_last = row == problem.q_len - 1;
            p >= 0 && (is_last || is_sampled(problem, policy, offset, p as usize))
        })
        .collect()
}

fn is_sampled(problem: &Problem, policy: &Policy, offset: usize, p: usize) -> bool {
    let s = stride_at(problem, policy, p);
    if offset == 0 || !128usize.is_multiple_of(s) {
        return (p + 1).is_multiple_of(s);
    }
    let ends_block = |p: usize| (p + 1).is_multiple_of(128);
    let multiple = p + offset % s;
    ends_block(p) || (multiple + 1).is_multiple_of(s) && !ends_block(multiple)
}

/// o = (`row_offset` + h · c) mod s, c the least number from 0.6 · s on that has no factor in common with s.
fn row_offset(policy: &Policy, q_head: usize) -> usize {
    let s = policy.row_stride as u128;
    let divides_both = |d: u128, c: u128| s.is_multiple_of(d) && c.is_multiple_of(d);
    // Shared factors of strides that tests use are small.
    let c = ((3 * s).div_ceil(5)..=s)
        .find(|&c| (2..=c.min(10_000)).all(|d| !divides_both(d, c)))
        .unwrap_or(1);
    let offset = policy.row_offset as u128 + q_head as u128 * c;
    (offset % s) as usize
}

/// s of a position: for `blocks` twice as large for each power of two times `stride_doubles_from`, from one times on, that its
/// segment does not begin below, up to 64.
fn stride_at(problem: &Problem, policy: &Policy, position: usize) -> usize {
    if policy.budget == Budget::Rows && position.saturating_add(policy.tail) >= problem.k_len {
        return policy.tail_stride;
    }
    let segment_start = position / 8192 * 8192;
    let mut stride = policy.row_stride;
    let mut doubles_at = policy.stride_doubles_from;
    while policy.budget == Budget::Blocks && segment_start >= doubles_at && stride < 64 {
        stride = (2 * stride).min(64);
        doubles_at = doubles_at.saturating_mul(2);
    }
    stride
}

/// Tokens of the policy's window.
pub fn window_tokens(problem: &Problem, policy: &Policy) -> usize {
    match policy.window {
        Window::Tokens(tokens) => tokens.min(problem.k_len),
        // The ratio is an f32, and so is its product: 0.1 of 1290 tokens is 129.
        Window::Ratio(ratio) => (ratio * problem.k_len as f32).ceil() as usize,
    }
}

/// Whether window or sinks keep a key of a query block.
pub(super) fn is_covered(
    problem: &Problem,
    policy: &Policy,
    query_block: usize,
    key: usize,
) -> bool {
    let window_blocks_before = (window_tokens(problem, policy) - 1).div_ceil(128);
    key < policy.sinks || key / 128 + window_blocks_before >= query_block
}

/// Log-sum-exp of a row over all keys that it sees.
pub fn normaliser(problem: &Problem, qkv: &Qkv, head: usize, row: usize) -> f64 {
    log_sum_exp(&visible_scores(problem, qkv, head, row))
}

/// Scores of a row with every key; −∞ where it does not see one.
pub(super) fn visible_scores(problem: &Problem, qkv: &Qkv, head: usize, row: usize) -> Vec<f64> {
    let (batch, q_head) = (head / problem.q_heads, head % problem.q_heads);
    let kv_head = q_head / (problem.q_heads / problem.kv_heads);
    let query = qkv.q.row(batch, q_head, row);
    let score = |key| score(problem, query, qkv.k.row(batch, kv_head, key));
    (0..problem.k_len)
        .map(|key| match sees(problem, row, key) {
            true => score(key),
            false => f64::NEG_INFINITY,
        })
        .collect()
}

/// Masses of every unit: heads in order, and the segments of each in order. Not of `rows`, where each row stands for itself: see
/// [`row_demands`](super::row_demands).
pub fn units(problem: &Problem, policy: &Policy, qkv: &Qkv) -> Vec<Unit> {
    let blocks = problem.k_len.div_ceil(128);
    let segments = match policy.budget {
        Budget::Blocks => blocks.div_ceil(64),
        Budget::Residual | Budget::Paper => 1,
        Budget::Rows => 0,
        other => unimplemented!("{other:?}"),
    };
    (0..problem.batch * problem.q_heads * segments)
        .into_par_iter()
        .map(|unit| one_unit(problem, policy, qkv, unit / segments, unit % segments))
        .collect()
}

fn one_unit(problem: &Problem, policy: &Policy, qkv: &Qkv, head: usize, segment: usize) -> Unit {
    let blocks = problem.k_len.div_ceil(128);
    let (query_blocks, candidates, candidates_per_row) = match policy.budget {
        Budget::Blocks => {
            let own = segment * 64..((segment + 1) * 64).min(blocks);
            (own.clone(), own.len() * blocks, blocks)
        }
        Budget::Residual | Budget::Paper => (0..blocks, problem.k_len, problem.k_len),
        other => unimplemented!("{other:?}"),
    };
    let mut unit = Unit {
        batch: head / problem.q_heads,
        q_head: head % problem.q_heads,
        first_query_block: query_blocks.start,
        rows: 0,
        covered: 0.0,
        need: 0.0,
        mass: vec![0.0; candidates],
        beyond: vec![0.0; candidates],
        candidates_per_row,
        score_magnitude: 0.0,
    };
    for row in sampled_rows(problem, policy, head) {
        let query_block = position(problem, row) as usize / 128;
        if !query_blocks.contains(&query_block) {
            continue;
        }
        let scores = visible_scores(problem, qkv, head, row);
        let lse = log_sum_exp(&scores);
        // Such rows count as nothing.
        if !lse.is_finite() {
            continue;
        }
        unit.rows += 1;
        for (key, p) in softmax(&scores).into_iter().enumerate() {
            let candidate = match policy.budget {
                Budget::Blocks => (query_block - query_blocks.start) * blocks + key / 128,
                Budget::Residual | Budget::Paper => key,
                other => unimplemented!("{other:?}"),
            };
            let covered = is_covered(problem, policy, query_block, key);
            if covered {
                unit.covered += p;
            } else {
                unit.beyond[candidate] += p;
            }
            if !covered || policy.budget == Budget::Paper {
                unit.mass[candidate] += p;
            }
        }
        unit.score_magnitude = unit
            .score_magnitude
            .max(score_magnitude(problem, qkv, head, row));
    }
    let goal = f64::from(policy.coverage) * unit.rows as f64;
    unit.need = match policy.budget {
        Budget::Paper => goal,
        Budget::Residual | Budget::Blocks => (goal - unit.covered).max(0.0),
        other => unimplemented!("{other:?}"),
    };
    unit
}

pub(super) fn score_magnitude(problem: &Problem, qkv: &Qkv, head: usize, row: usize) -> f64 {
    let absolute = |row: &[f32]| row.iter().map(|x| x.abs()).collect::<Vec<_>>();
    let (batch, q_head) = (head / problem.q_heads, head % problem.q_heads);
    let kv_head = q_head / (problem.q_heads / problem.kv_heads);
    let query = absolute(qkv.q.row(batch, q_head, row));
    (0..problem.k_len)
        .filter(|&key| sees(problem, row, key))
        .map(|key| product(problem, &query, &absolute(qkv.k.row(batch, kv_head, key))).abs())
        .fold(0.0, f64::max)
}

/// The smallest set whose mass reaches `need`, heaviest first, ties to the lower index; ascending. All that has any mass
/// where that does not suffice.
pub fn smallest_set(masses: &[u64], need: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..masses.len())
        .filter(|&index| masses[index] > 0)
        .collect();
    // Stable: equal masses stay in ascending order of their indices.
    order.sort_by(|&a, &b| masses[b].cmp(&masses[a]));
    let mut chosen = Vec::new();
    let mut reached = 0u128;
    for index in order {
        if reached >= u128::from(need) {
            break;
        }
        reached += u128::from(masses[index]);
        chosen.push(index);
    }
    chosen.sort_unstable();
    chosen
}
