//! NaN and infinity where they must not matter, and where they must.

use sample_attention::cpu::InstructionSet;
use sample_attention::{Budget, Dtype, Fallback, Policy, Problem, Window};
use testkit::random::Random;
use testkit::runner::{
    Attend, Case, Cpu, Data, assert_poison_stays_where_it_is_seen,
    assert_what_a_policy_drops_may_be_poisoned, check_with, loose_lists, poison_key, row_bits,
    run_with,
};
use testkit::tensor::{Qkv, Tensor};

const POISONS: [f32; 3] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];

fn problem(q_len: usize, k_len: usize, dtype: Dtype) -> Problem {
    Problem::causal(k_len, 16, dtype)
        .with_heads(2, 1)
        .with_q_len(q_len)
}

#[test]
fn keys_after_a_row_do_not_reach_it() {
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
        for (q_len, k_len) in [(300, 300), (100, 300), (300, 100), (40, 129usize)] {
            for key in [k_len - 1, k_len - 30, k_len - 38] {
                let case = Case::new(problem(q_len, k_len, dtype), Attend::Dense);
                // Infinite keys may give a score of −∞ and so no weight at all: NaN is the poison that must be seen.
                assert_poison_stays_where_it_is_seen(&Cpu::default(), &case, &[key], f32::NAN);
            }
        }
    }
}

#[test]
fn infinities_after_a_row_do_not_reach_it() {
    for poison in POISONS {
        for dtype in [Dtype::F32, Dtype::F16] {
            let problem = problem(290, 290, dtype);
            let case = Case::new(problem, Attend::Dense);
            let clean = run_with(&Cpu::default(), &case, &case.inputs());
            for key in [3, 140, 256, 289] {
                let mut qkv = case.inputs();
                poison_key(&mut qkv, key, poison);
                let outcome = run_with(&Cpu::default(), &case, &qkv);
                for row in 0..key {
                    assert_eq!(
                        row_bits(&clean, 1, row),
                        row_bits(&outcome, 1, row),
                        "{poison} {key} {row}"
                    );
                }
            }
        }
    }
}

#[test]
fn every_key_that_the_mask_drops_may_be_poisoned() {
    let mut random = Random::new(7);
    for causal in [true, false] {
        for (q_len, k_len) in [(300, 300), (260, 290)] {
            let problem = problem(q_len, k_len, Dtype::F32).with_causal(causal);
            let (case, keys) = loose_lists(problem, &mut random);
            assert_poison_stays_where_it_is_seen(&Cpu::default(), &case, &keys, f32::NAN);
        }
    }
}

#[test]
fn what_a_policy_drops_may_be_poisoned_afterwards() {
    let problem = problem(1600, 1600, Dtype::Bf16);
    assert_what_a_policy_drops_may_be_poisoned(&Cpu::default(), problem, Fallback::Auto);
}

#[test]
fn a_poisoned_value_reaches_its_own_element_of_the_rows_that_see_it() {
    for poison in POISONS {
        for key in [0, 65, 129, 250] {
            let case = Case::new(problem(290, 290, Dtype::F32), Attend::Dense);
            let mut qkv = case.inputs();
            qkv.v.row_mut(0, 0, key)[5] = poison;
            // The oracle says which elements stay finite and what the others are.
            let outcome = check_with(&Cpu::default(), &case, &qkv);
            for row in 0..290 {
                for (d, x) in outcome.o.row(0, 0, row).iter().enumerate() {
                    assert_eq!(
                        x.is_finite(),
                        row < key || d != 5,
                        "{poison} in {key}: row {row}, {d}"
                    );
                }
            }
        }
    }
}

#[test]
fn several_poisoned_values_of_one_tile_each_reach_their_rows() {
    let case = Case::new(problem(200, 200, Dtype::F16), Attend::Dense);
    let mut qkv = case.inputs();
    for (key, d) in [(3, 0), (60, 1), (61, 1), (127, 2), (128, 3), (199, 4)] {
        qkv.v.row_mut(0, 0, key)[d] = f32::INFINITY;
        qkv.v.row_mut(0, 0, key)[15] = f32::NAN;
    }
    check_with(&Cpu::default(), &case, &qkv);
}

#[test]
fn a_poisoned_query_stays_in_its_row() {
    let case = Case::new(problem(150, 150, Dtype::F32), Attend::Dense);
    let clean = run_with(&Cpu::default(), &case, &case.inputs());
    let mut qkv = case.inputs();
    qkv.q.row_mut(0, 0, 77)[3] = f32::NAN;
    let outcome = check_with(&Cpu::default(), &case, &qkv);
    for row in (0..150).filter(|&row| row != 77) {
        assert_eq!(row_bits(&clean, 0, row), row_bits(&outcome, 0, row));
    }
    assert!(outcome.o.row(0, 0, 77).iter().all(|x| x.is_nan()));
}

#[test]
fn masses_of_poisoned_rows_count_as_nothing() {
    // A NaN key makes every sampled row that sees it NaN: the rows before it are all that is known.
    let problem = problem(1000, 1000, Dtype::F32);
    for budget in [Budget::Blocks, Budget::Residual, Budget::Paper] {
        let policy = Policy::of(Budget::Blocks)
            .with_budget(budget)
            .with_coverage(0.9)
            .with_fallback(Fallback::Never);
        let case = Case {
            data: Data::Structured,
            ..Case::new(problem, Attend::Policy(policy))
        };
        let mut qkv = case.inputs();
        qkv.k.row_mut(0, 0, 300)[2] = f32::NAN;
        let outcome = run_with(&Cpu::default(), &case, &qkv);
        for unit in &outcome.found.units {
            let total = unit.mass.iter().sum::<u64>() + unit.covered;
            let rows = unit.rows as u64 * sample_attention::cpu::MASS_ONE;
            // The paper's ranking counts what the window covers a second time.
            let most = if budget == Budget::Paper {
                2 * rows
            } else {
                rows
            };
            assert!(
                total <= most,
                "{budget:?}: mass {total} of {} rows",
                unit.rows
            );
        }
        for head in outcome.found.report.clone().expect("the CPU reports").heads {
            let coverage = head.sampled_coverage.expect("rows were sampled");
            assert!(coverage <= 1.0, "{budget:?}: {coverage}");
        }
        // Rows before the poison are as exact as ever.
        let clean = run_with(
            &Cpu::default(),
            &Case {
                attend: Attend::Own(outcome.found.selection.clone().unwrap()),
                ..case.clone()
            },
            &case.inputs(),
        );
        for row in 0..300 {
            assert_eq!(row_bits(&clean, 0, row), row_bits(&outcome, 0, row));
        }
    }
}

/// 512 × 8, where key 64 has all that later rows look for, and something in row 511 is not finite.
fn one_poisoned_row(poison: impl Fn(&mut Qkv)) -> Qkv {
    let problem = Problem::causal(512, 8, Dtype::F32);
    let mut qkv = Qkv {
        q: Tensor::filled(problem.q_shape(), 0.0),
        k: Tensor::filled(problem.kv_shape(), 0.0),
        v: Tensor::filled(problem.kv_shape(), 0.0),
    };
    (0..512).for_each(|row| qkv.q.row_mut(0, 0, row)[0] = 8.0);
    qkv.k.row_mut(0, 0, 64)[0] = 8.0;
    qkv.v.row_mut(0, 0, 64).fill(1.0);
    poison(&mut qkv);
    qkv
}

#[test]
fn a_row_that_is_not_finite_changes_nothing_for_the_others() {
    type Poison = fn(&mut Qkv);
    let poisons: [Poison; 4] = [
        |qkv| qkv.q.row_mut(0, 0, 511)[3] = f32::NAN,
        |qkv| qkv.k.row_mut(0, 0, 511)[0] = f32::INFINITY,
        |qkv| qkv.k.row_mut(0, 0, 511)[2] = f32::NEG_INFINITY,
        |qkv| qkv.q.row_mut(0, 0, 511)[0] = f32::INFINITY,
    ];
    for budget in [
        Budget::Rows,
        Budget::Blocks,
        Budget::Residual,
        Budget::Paper,
    ] {
        for poison in poisons {
            for instruction_set in InstructionSet::available() {
                let policy = Policy::of(Budget::Blocks)
                    .with_budget(budget)
                    .with_fallback(Fallback::Never)
                    .with_sinks(0)
                    .with_window(Window::Tokens(1));
                let problem = Problem::causal(512, 8, Dtype::F32);
                let case = Case::new(problem, Attend::Policy(policy));
                let cpu = Cpu {
                    instruction_set,
                    ..Cpu::default()
                };
                let outcome = check_with(&cpu, &case, &one_poisoned_row(poison));
                for row in 64..511 {
                    let o = outcome.o.row(0, 0, row)[0];
                    assert!((o - 1.0).abs() < 1e-5, "{budget:?}: row {row}: {o}");
                }
                let head = &outcome.found.report.expect("the CPU reports").heads[0];
                assert_eq!(head.non_finite_rows, Some(1), "{budget:?}");
                assert!(head.sampled_coverage.is_some_and(|coverage| coverage > 0.9));
            }
        }
    }
}

#[test]
fn a_head_without_a_finite_row_reports_no_coverage() {
    for budget in [
        Budget::Rows,
        Budget::Blocks,
        Budget::Residual,
        Budget::Paper,
    ] {
        let policy = Policy::default()
            .with_budget(budget)
            .with_fallback(Fallback::Never);
        let case = Case::new(problem(300, 300, Dtype::F32), Attend::Policy(policy));
        let mut qkv = case.inputs();
        qkv.k.row_mut(0, 0, 0)[0] = f32::NAN;
        let outcome = check_with(&Cpu::default(), &case, &qkv);
        for head in outcome.found.report.expect("the CPU reports").heads {
            assert_eq!(head.sampled_coverage, None);
            assert_eq!(head.least_covered_row, None);
            assert!(head.non_finite_rows > Some(10));
        }
    }
}

#[test]
fn rows_whose_scores_are_all_minus_infinity_have_no_mean() {
    for causal in [true, false] {
        for scale in [1.0, 1e-3] {
            let problem = problem(150, 140, Dtype::F32)
                .with_causal(causal)
                .with_softmax_scale(scale);
            let case = Case::new(problem, Attend::Dense);
            let mut qkv = case.inputs();
            qkv.q.values.fill(1.0);
            qkv.k.values.fill(f32::NEG_INFINITY);
            let outcome = check_with(&Cpu::default(), &case, &qkv);
            for row in 0..150 {
                let sees = !causal || row >= 10;
                assert_eq!(outcome.lse[row], f32::NEG_INFINITY);
                let o = outcome.o.row(0, 0, row);
                assert!(o.iter().all(|x| if sees { x.is_nan() } else { *x == 0.0 }));
            }
        }
    }
}

#[test]
fn coverage_of_poisoned_rows_is_not_full() {
    let case = Case::new(problem(150, 150, Dtype::F32), Attend::Dense);
    let mut qkv = case.inputs();
    qkv.k.row_mut(0, 0, 0)[0] = f32::NAN;
    let outcome = run_with(
        &Cpu {
            coverage: true,
            ..Cpu::default()
        },
        &case,
        &qkv,
    );
    for head in outcome.found.coverage.expect("asked for") {
        assert!(
            head.mean.is_nan() || head.mean < 1.0,
            "every row is NaN, yet {head:?}"
        );
    }
}
