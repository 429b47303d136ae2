//! What the budget of rows selected, against the masses of the oracle alone: a backend need not tell its own.
//!
//! Rounding may decide whether a row asks for a key block. Here a block *must* be listed where a row asks for it however masses are
//! rounded within their tolerance, and *may* be where a row asks for it by one such rounding.

use sample_attention::{Policy, Problem};

use super::shared_checks::{MASS_ONE, check_window_and_sinks, relative_error};
use crate::oracle::{self, HeadMask, RowDemand};
use crate::tensor::Qkv;

/// The lists of one head: window and sinks of all query blocks, and the rest of every one whose number is a multiple of `step`, and of
/// the last.
pub(super) fn check_lists(
    problem: &Problem,
    policy: &Policy,
    (qkv, head): (&Qkv, usize),
    step: usize,
    mask: &HeadMask,
    context: &dyn Fn() -> String,
) {
    assert!(
        !mask.dense && !mask.stripes.contains(&true),
        "the budget of rows lists blocks alone\n{}",
        context()
    );
    check_window_and_sinks(problem, policy, mask, context);
    let last = (problem.k_len - 1) / 128;
    let is_checked = |query_block: usize| query_block.is_multiple_of(step) || query_block == last;
    let demands = oracle::row_demands(problem, policy, qkv, head, is_checked);
    let window_blocks_before = (oracle::window_tokens(problem, policy) - 1).div_ceil(128);
    let first = problem.k_len.saturating_sub(problem.q_len) / 128;
    for query_block in (first..=last).filter(|&query_block| is_checked(query_block)) {
        let window = query_block.saturating_sub(window_blocks_before)..=query_block;
        let rows = demands.iter().filter(|row| row.query_block == query_block);
        let needs: Vec<Need> = rows.map(|row| Need::new(problem, policy, row)).collect();
        for (block, &listed) in mask.blocks[query_block].iter().enumerate() {
            let kept_anyway = window.contains(&block);
            let knows_nothing = needs.is_empty() && block <= query_block;
            let must = kept_anyway || knows_nothing || needs.iter().any(|need| need.surely(block));
            let may = must || needs.iter().any(|need| need.perhaps(block));
            assert!(
                listed || !must,
                "query block {query_block} of head {head} lacks key block {block}\n{}",
                context()
            );
            assert!(
                may || !listed,
                "no row of query block {query_block} of head {head} needs key block {block}\n{}",
                context()
            );
        }
    }
}

/// What a row asks for, with bounds of what rounding may make of it.
struct Need {
    least: f64,
    most: f64,
    /// Lower and upper bound of each key block's mass outside the window; both 0 where there is none.
    masses: Vec<(f64, f64)>,
}

impl Need {
    fn new(problem: &Problem, policy: &Policy, row: &RowDemand) -> Self {
        let relative = relative_error(problem, row.score_magnitude);
        // Every mass is rounded down to a unit; the covered mass is a sum of them.
        let unit = 2.0 / MASS_ONE;
        let need = f64::from(policy.coverage) - row.covered;
        let slack = relative * row.covered + unit * (row.mass.len() + 1) as f64;
        let bounds = |&mass: &f64| match mass {
            0.0 => (0.0, 0.0),
            _ => (mass - relative * mass - unit, mass + relative * mass + unit),
        };
        Need {
            least: need - slack,
            most: need + slack,
            masses: row.mass.iter().map(bounds).collect(),
        }
    }

    /// Whether the row asks for the block by every rounding: even last among its near equals it is still needed.
    fn surely(&self, block: usize) -> bool {
        let (least, most) = self.masses[block];
        let others = self.masses.iter().enumerate();
        let before = others.filter(|&(other, &(_, upper))| other != block && upper >= least);
        let before: f64 = before.map(|(_, &(_, upper))| upper).sum();
        least > 0.0 && most > 0.0 && before < self.least
    }

    /// Whether it does by some rounding: all that surely come before it may leave something.
    fn perhaps(&self, block: usize) -> bool {
        let (_, most) = self.masses[block];
        let before = self.masses.iter().filter(|(lower, _)| *lower > most);
        let before: f64 = before.map(|(lower, _)| lower).sum();
        most > 0.0 && before < self.most
    }
}

/// Share of the finite sampled rows' mass that the lists of one head keep; `None` where there is no such row.
pub(super) fn sampled_coverage(
    problem: &Problem,
    policy: &Policy,
    (qkv, head): (&Qkv, usize),
    mask: &HeadMask,
) -> Option<f64> {
    let demands = oracle::row_demands(problem, policy, qkv, head, |_| true);
    let kept = demands.iter().map(|row| {
        let listed = mask.blocks[row.query_block].iter().zip(&row.mass);
        row.covered
            + listed
                .filter(|(listed, _)| **listed)
                .map(|(_, mass)| mass)
                .sum::<f64>()
    });
    (!demands.is_empty()).then(|| kept.sum::<f64>() / demands.len() as f64)
}
