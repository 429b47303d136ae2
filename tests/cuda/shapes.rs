//! The published shapes through the one runner, by the f64 oracle.

use rayon::prelude::*;
use sample_attention::{Budget, Dtype, Fallback, Policy, Problem, Window};
use testkit::runner::{Attend, Case, Cuda, Data, Layout, PUBLISHED_SHAPES, check};

use crate::support::{every_target, tell};

/// Query and key/value heads: one, multi-head, multi-query and grouped.
const HEADS: [(usize, usize); 4] = [(1, 1), (3, 3), (8, 1), (4, 2)];

const BUDGETS: [Budget; 4] = [
    Budget::Rows,
    Budget::Blocks,
    Budget::Residual,
    Budget::Paper,
];

fn policy(budget: Budget) -> Policy {
    Policy::of(Budget::Blocks)
        .with_budget(budget)
        .with_coverage(0.9)
        .with_window(Window::Tokens(100))
        .with_fallback(Fallback::Never)
}

/// Every shape with both types and both head dimensions; heads and layouts alternate, so that all of them come up.
fn cases(attend: impl Fn(usize) -> Attend) -> impl Iterator<Item = Case> {
    let combinations = PUBLISHED_SHAPES.into_iter().flat_map(|shape| {
        [
            (Dtype::Bf16, 64),
            (Dtype::F16, 64),
            (Dtype::Bf16, 128),
            (Dtype::F16, 128),
        ]
        .map(|kernel| (shape, kernel))
    });
    combinations
        .enumerate()
        .map(move |(index, ((q_len, k_len), (dtype, head_dim)))| {
            let (q_heads, kv_heads) = HEADS[(index + index / 4) % 4];
            let problem = Problem::causal(k_len, head_dim, dtype)
                .with_batch(1 + index % 2)
                .with_heads(q_heads, kv_heads)
                .with_q_len(q_len);
            Case {
                data: Data::Structured,
                layout: Layout::ALL[index % 5],
                output: if index % 3 == 0 { Dtype::F32 } else { dtype },
                seed: index as u64,
                // The oracle's rows cost O(k_len) each, in f64.
                row_step: if k_len > 512 { 53 } else { 1 },
                ..Case::new(problem, attend(index))
            }
        })
}

/// Checks every case on every target. The oracle takes nearly all of the time, so cases go on all cores.
fn check_everywhere(what: &str, cases: Vec<Case>) {
    for device in every_target() {
        tell(format_args!(
            "{} cases {what}, {:?}",
            cases.len(),
            device.target()
        ));
        cases.par_iter().for_each(|case| {
            check(&Cuda::new(device), case);
        });
    }
}

#[test]
fn dense_agrees_with_the_oracle() {
    let dense = cases(|_| Attend::Dense).enumerate().map(|(index, case)| {
        let causal = index % 3 != 2;
        let problem = case.problem.with_causal(causal);
        Case { problem, ..case }
    });
    check_everywhere("dense", dense.collect());
}

#[test]
fn every_budget_selects_and_attends_as_the_oracle_says() {
    for at in 0..BUDGETS.len() {
        let budget = |index| policy(BUDGETS[(index + at) % BUDGETS.len()]);
        let selecting = cases(|index| Attend::Policy(budget(index)));
        check_everywhere("with budgets in turn", selecting.collect());
    }
}
