//! What the checks of all budgets share: the unit of mass and its error, window and sinks.

use sample_attention::{Policy, Problem};

use super::attention_checks::score_error;
use crate::oracle::{self, HeadMask};

/// Units of a sampled row's mass.
pub(super) const MASS_ONE: f64 = sample_attention::cpu::MASS_ONE as f64;

/// Relative error that f32 arithmetic may bring into a mass.
pub(super) fn relative_error(problem: &Problem, score_magnitude: f64) -> f64 {
    2.0 * score_error(problem.head_dim, score_magnitude) + 4e-6
}

/// Window and sinks, and nothing else: what every policy keeps.
pub(super) fn window_and_sinks(problem: &Problem, policy: &Policy, dense: bool) -> HeadMask {
    let blocks = problem.k_len.div_ceil(128);
    let window_blocks_before = (oracle::window_tokens(problem, policy) - 1).div_ceil(128);
    let mut expected = HeadMask {
        dense,
        sinks: policy.sinks.min(problem.k_len),
        blocks: vec![vec![false; blocks]; blocks],
        stripes: vec![false; problem.k_len],
    };
    for (query_block, row) in expected.blocks.iter_mut().enumerate() {
        row[query_block.saturating_sub(window_blocks_before)..=query_block].fill(true);
    }
    expected
}

pub(super) fn check_window_and_sinks(
    problem: &Problem,
    policy: &Policy,
    mask: &HeadMask,
    context: &dyn Fn() -> String,
) {
    let expected = window_and_sinks(problem, policy, mask.dense);
    let window_kept = expected
        .blocks
        .iter()
        .zip(&mask.blocks)
        .all(|(window, listed)| {
            window
                .iter()
                .zip(listed)
                .all(|(&window, &listed)| !window || listed)
        });
    assert!(
        window_kept && mask.sinks == expected.sinks,
        "window and sinks\n{}",
        context()
    );
}
