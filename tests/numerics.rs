//! Right values at the edges of floating point: long sums, large values, large and small logits and scales.

use sample_attention::cpu::InstructionSet;
use sample_attention::{Budget, Dtype, Error, Fallback, MAX_SCALE, Plan, Policy, Problem};
use testkit::runner::{Attend, Case, Cpu, Layout, check_with, run_with};
use testkit::tensor::{Qkv, Tensor};

fn problem(q_len: usize, k_len: usize, dtype: Dtype) -> Problem {
    Problem::causal(1, 8, dtype)
        .with_q_len(q_len)
        .with_k_len(k_len)
}

fn filled(problem: &Problem, q: f32, k: f32, v: f32) -> Qkv {
    let q = Tensor::filled(problem.q_shape(), q);
    let [k, v] = [k, v].map(|x| Tensor::filled(problem.kv_shape(), x));
    Qkv::rounded(problem, q, k, v)
}

fn on_every_set(check: impl Fn(&Cpu)) {
    for instruction_set in InstructionSet::available() {
        check(&Cpu {
            instruction_set,
            ..Cpu::default()
        });
    }
}

#[test]
fn the_mean_of_equal_values_is_that_value_however_many_there_are() {
    on_every_set(|cpu| {
        for k_len in [128, 4096, 131_072, 1 << 20] {
            for q_len in [1, 40, 120] {
                for v in [0.7, 0.3, 1.1] {
                    let problem = problem(q_len, k_len, Dtype::F32);
                    let case = Case::new(problem, Attend::Dense);
                    let outcome = run_with(cpu, &case, &filled(&problem, 0.0, 1.0, v));
                    for &o in &outcome.o.values {
                        let error = (f64::from(o) / f64::from(v) - 1.0).abs();
                        assert!(error < 1e-6, "{cpu:?}: {q_len} {k_len} {v}: {error:e}");
                    }
                    if k_len > 200_000 {
                        break;
                    }
                }
            }
        }
    });
}

#[test]
fn means_stay_within_the_range_of_their_type() {
    on_every_set(|cpu| {
        for (dtype, v, k_len) in [
            (Dtype::F16, 65504.0, 32_768),
            (Dtype::F16, -65504.0, 5000),
            (Dtype::Bf16, 3.38e38, 3000),
            (Dtype::F32, 1e37, 500),
            (Dtype::F32, f32::MAX, 2),
            (Dtype::F32, f32::MAX, 3000),
            (Dtype::F32, -f32::MAX, 3000),
        ] {
            for q_len in [1, 70] {
                let problem = problem(q_len.min(k_len), k_len, dtype);
                let case = Case::new(problem, Attend::Dense);
                let qkv = filled(&problem, 0.0, 1.0, v);
                let v = f64::from(qkv.v.values[0]);
                let outcome = run_with(cpu, &case, &qkv);
                for &o in &outcome.o.values {
                    let error = (f64::from(o) / v - 1.0).abs();
                    assert!(error < 1e-6, "{cpu:?}: {dtype} {v:e} {k_len}: {o:e}");
                }
            }
        }
    });
}

#[test]
fn a_large_value_beside_others_overflows_nothing() {
    // Elements that do not overflow keep their digits, and an infinite value stays infinite.
    let problem = problem(300, 300, Dtype::F32);
    let case = Case::new(problem, Attend::Dense);
    let mut qkv = case.inputs();
    for key in 0..300 {
        qkv.v.row_mut(0, 0, key)[3] = if key % 3 == 0 { 3e38 } else { 2e38 };
    }
    on_every_set(|cpu| {
        check_with(cpu, &case, &qkv);
    });
    qkv.v.row_mut(0, 0, 150)[4] = f32::INFINITY;
    on_every_set(|cpu| {
        check_with(cpu, &case, &qkv);
    });
}

#[test]
fn one_token_is_its_own_value_at_any_logit() {
    on_every_set(|cpu| {
        for (dtype, x) in [
            (Dtype::F32, 29_952.0),
            (Dtype::F32, 133_120.0),
            (Dtype::F32, 1e15),
            (Dtype::F16, 65504.0),
            (Dtype::Bf16, 1e17),
        ] {
            for scale in [1.0, -1.0, 1e-3] {
                let problem = Problem::causal(1, 64, dtype).with_softmax_scale(scale);
                let case = Case::new(problem, Attend::Dense);
                let qkv = filled(&problem, x, x, x);
                let outcome = run_with(cpu, &case, &qkv);
                assert_eq!(outcome.o, qkv.v, "{cpu:?}: {dtype} {x} {scale}");
                assert!(outcome.lse[0].is_finite());
            }
        }
    });
}

#[test]
fn masses_are_right_at_logits_where_a_log_sum_exp_has_no_digits_left() {
    // All keys the same: every row gives each of its keys the same, whatever the logit.
    for budget in [Budget::Blocks, Budget::Residual, Budget::Paper] {
        for logit in [1e5f32, 1.3e8, 1e12, -1e8] {
            let problem = problem(1500, 1500, Dtype::F32).with_softmax_scale(1.0);
            let policy = Policy::of(Budget::Blocks)
                .with_budget(budget)
                .with_coverage(0.9)
                .with_fallback(Fallback::Never);
            let case = Case::new(problem, Attend::Policy(policy));
            let mut qkv = filled(&problem, 0.0, 0.0, 1.0);
            for row in 0..1500 {
                qkv.q.row_mut(0, 0, row)[0] = logit;
                qkv.k.row_mut(0, 0, row)[0] = 1.0;
            }
            let cpu = Cpu {
                coverage: true,
                ..Cpu::default()
            };
            // The oracle's scores are exact here, so that masses, need and set are held to it.
            let outcome = check_with(&cpu, &case, &qkv);
            let report = outcome.found.report.expect("the CPU reports");
            let coverage = report.heads[0].sampled_coverage.expect("rows were sampled");
            assert!(
                (0.9..=1.0).contains(&coverage) || budget == Budget::Paper && coverage <= 1.0,
                "{budget:?} {logit:e}: {coverage}"
            );
            let truth = &outcome.found.coverage.expect("asked for")[0];
            // Known at no row: said of none.
            assert_eq!(truth.unknown_rows, 1500, "{truth:?}");
            assert!(truth.mean.is_nan() && truth.min.is_nan(), "{truth:?}");
        }
    }
}

#[test]
fn true_coverage_looks_at_all_rows_that_see_a_key() {
    // Ten queries, one key, not causal: half of the rows keep the key, half have kept a tenth of it.
    let problem = problem(10, 1, Dtype::F32).with_causal(false);
    let plan = Plan::dense(problem).unwrap();
    let qkv = filled(&problem, 0.0, 1.0, 1.0);
    let view = |tensor: &Tensor| tensor.values.clone();
    let (q, k, v) = (view(&qkv.q), view(&qkv.k), view(&qkv.v));
    let inputs = sample_attention::Inputs::new(
        sample_attention::TensorView::bhsd(&q, problem.q_shape()).unwrap(),
        sample_attention::TensorView::bhsd(&k, problem.kv_shape()).unwrap(),
        sample_attention::TensorView::bhsd(&v, problem.kv_shape()).unwrap(),
    );
    let mut lse = vec![0f32; 10];
    lse[..5].fill(0.1f32.ln());
    let mut workspace = vec![0; plan.workspace_bytes()];
    let coverage = plan.true_coverage(&inputs, &lse, &mut workspace).unwrap();
    assert!((coverage[0].mean - 0.55).abs() < 1e-6, "{coverage:?}");
    assert!((coverage[0].min - 0.1).abs() < 1e-6, "{coverage:?}");
}

#[test]
fn scales_of_any_size_are_right_or_refused() {
    for scale in [
        0.0, -0.0, 1e-45, 1e-40, -1e-38, 1e-31, 1e-20, 1e10, -1e20, 1e30,
    ] {
        let problem = problem(200, 300, Dtype::F32).with_softmax_scale(scale);
        let case = Case {
            layout: Layout::Bshd,
            ..Case::new(problem, Attend::Dense)
        };
        let mut qkv = case.inputs();
        // Small integers in one element: at large scales the heaviest key has all the weight, and equals share it.
        for (tensor, len) in [(&mut qkv.q, 200), (&mut qkv.k, 300)] {
            for token in 0..len {
                let row = tensor.row_mut(0, 0, token);
                row[0] = (2.0 * row[0]).round();
                row[1..].fill(0.0);
            }
        }
        on_every_set(|cpu| {
            let outcome = run_with(cpu, &case, &qkv);
            for row in 0..200 {
                let expected = testkit::oracle::attention_row(
                    &problem,
                    &qkv,
                    0,
                    row,
                    &(0..row + 101).collect::<Vec<_>>(),
                );
                for (o, expected) in outcome.o.row(0, 0, row).iter().zip(expected.o) {
                    let error = (f64::from(*o) - expected).abs();
                    assert!(error < 1e-5, "{cpu:?} {scale:e}: row {row}: {o} {expected}");
                }
            }
        });
    }
    for scale in [1.01e30, 3e38, f32::MAX, -f32::MAX, f32::INFINITY, f32::NAN] {
        assert!(scale.is_nan() || scale.abs() > MAX_SCALE);
        let problem = problem(1, 1, Dtype::F32).with_softmax_scale(scale);
        let refused = Plan::dense(problem).unwrap_err();
        assert!(matches!(refused, Error::Scale { .. }), "{refused}");
    }
}

#[test]
fn any_number_of_threads_is_a_number_of_tasks_that_ends() {
    let plan = Plan::dense(problem(100, 100, Dtype::F32)).unwrap();
    let most = plan.clone().with_threads(usize::MAX).unwrap();
    let bytes = most.workspace_bytes();
    assert_eq!(
        bytes,
        plan.with_threads(sample_attention::MAX_THREADS)
            .unwrap()
            .workspace_bytes()
    );
    assert!(bytes < 1 << 32);
}
