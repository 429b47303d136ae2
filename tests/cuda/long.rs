//! Lengths to 128K, by a few rows of each head.

use rayon::prelude::*;
use sample_attention::{Budget, Dtype, Fallback, Policy, Problem};
use testkit::runner::{Attend, Case, Cuda, Data, check_long};

use crate::support::{every_target, tell};

/// Runs one shape dense and with each of the budgets, on every target.
fn check_shape(q_len: usize, k_len: usize, head_dim: usize, dtype: Dtype) {
    let problem = Problem::causal(k_len, head_dim, dtype)
        .with_heads(2, 1)
        .with_q_len(q_len);
    let budget = |budget| {
        Attend::Policy(
            Policy::of(Budget::Blocks)
                .with_budget(budget)
                .with_coverage(0.9)
                .with_fallback(Fallback::Never),
        )
    };
    let case = |attend| Case {
        data: Data::Structured,
        // A dozen rows of each head, spread over the places in a block.
        row_step: q_len / 12 + 1,
        ..Case::new(problem, attend)
    };
    let devices = every_target();
    if devices.is_empty() {
        return;
    }
    tell(format_args!(
        "dense and every budget, {q_len} queries, {k_len} keys, head_dim {head_dim}, {dtype}"
    ));
    let qkv = case(Attend::Dense).inputs();
    let attends = [
        Attend::Dense,
        budget(Budget::Blocks),
        budget(Budget::Residual),
        budget(Budget::Paper),
    ];
    // The host's part takes nearly all of the time.
    let runs: Vec<_> = devices
        .iter()
        .flat_map(|device| attends.iter().map(move |attend| (device, attend)))
        .collect();
    runs.into_par_iter().for_each(|(device, attend)| {
        check_long(&Cuda::new(device), &case(attend.clone()), &qkv);
    });
}

#[test]
fn of_32k_tokens() {
    check_shape(32_768, 32_768, 128, Dtype::F16);
}

#[test]
fn of_64k_tokens_and_one() {
    check_shape(65_537, 65_537, 64, Dtype::F16);
}

#[test]
fn of_128k_tokens() {
    check_shape(131_072, 131_072, 128, Dtype::Bf16);
}

/// A chunk of a prefill at the end of a long prompt.
#[test]
fn of_a_chunk_after_128k_tokens() {
    check_shape(3_000, 134_000, 64, Dtype::Bf16);
}
