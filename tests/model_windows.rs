//! What models have besides plain attention, on the CPU: a sliding window, capped scores, and learned sinks of heads.

use half::bf16;
use sample_attention::pipeline::GpuPlan;
use sample_attention::{
    Budget, Dtype, Error, Fallback, HeadPlan, HeadPolicy, Inputs, Outputs, Plan, Policy, Problem,
    SeqLens, TensorView, TensorViewMut, VarlenBounds, VarlenInputs, VarlenPlan, Window,
};
use testkit::lists::random_selection;
use testkit::oracle::{self, Mask, attention_row};
use testkit::runner::{Attend, Case, Cpu, Data, check};
use testkit::tensor::Qkv;

fn problem(q_len: usize, k_len: usize) -> Problem {
    Problem::causal(k_len, 32, Dtype::F32)
        .with_heads(2, 1)
        .with_q_len(q_len)
}

fn policy(budget: Budget) -> Policy {
    Policy::of(budget)
        .with_coverage(0.7)
        .with_row_stride(8)
        .with_window(Window::Tokens(1))
        .with_sinks(4)
        .with_fallback(Fallback::Never)
}

/// Widths within a block, of blocks, and of everything.
const WIDTHS: [usize; 6] = [0, 1, 31, 128, 300, 5000];

#[test]
fn dense_attention_keeps_to_the_window_and_the_cap() {
    for (q_len, k_len) in [
        (1, 700),
        (16, 300),
        (113, 203),
        (300, 129),
        (520, 520),
        (17, 2500),
    ] {
        for causal in [true, false] {
            for window in WIDTHS {
                let problem = problem(q_len, k_len).with_causal(causal);
                let windowed = problem.with_window_left(window);
                for problem in [windowed, windowed.with_softcap(1.5)] {
                    let case = Case {
                        row_step: 1 + q_len / 60,
                        ..Case::new(problem, Attend::Dense)
                    };
                    check(&Cpu::default(), &case);
                }
            }
        }
    }
}

#[test]
fn capped_scores_of_any_size_are_the_oracles() {
    for cap in [1e-3, 0.3, 2.0, 50.0, 1e4, 1e30] {
        for (q_len, dtype) in [(3, Dtype::F32), (200, Dtype::F32), (200, Dtype::Bf16)] {
            let problem = problem(q_len, 400).with_softcap(cap).with_dtype(dtype);
            for scale in [0.01, 0.3, 8.0] {
                let problem = problem.with_softmax_scale(scale);
                check(&Cpu::default(), &Case::new(problem, Attend::Dense));
            }
        }
    }
}

#[test]
fn selections_are_made_within_the_window() {
    for budget in [
        Budget::Rows,
        Budget::Blocks,
        Budget::Residual,
        Budget::Paper,
    ] {
        for (q_len, k_len, window) in [(600, 600, 200), (300, 900, 511), (520, 300, 128)] {
            let problem = problem(q_len, k_len)
                .with_window_left(window)
                .with_softcap(3.0);
            let case = Case {
                data: Data::Structured,
                row_step: 7,
                ..Case::new(problem, Attend::Policy(policy(budget)))
            };
            check(&Cpu::default(), &case);
        }
    }
}

#[test]
fn own_lists_keep_to_the_window() {
    for (seed, window) in WIDTHS.into_iter().enumerate() {
        let problem = problem(350, 500).with_window_left(window);
        let selection = random_selection(&problem, seed as u64);
        let mask = Mask::of(&problem, &selection);
        for head in 0..2 {
            let lists = selection.head(0, head);
            let density = mask.density(&problem, head);
            assert!((lists.density() - density).abs() < 1e-12);
            for (row, key) in (0..350).flat_map(|row| (0..500).map(move |key| (row, key))) {
                assert_eq!(lists.keeps(row, key), mask.keeps(&problem, head, row, key));
            }
        }
        check(&Cpu::default(), &Case::new(problem, Attend::Own(selection)));
    }
    let across = problem(350, 500).with_window_left(9).with_causal(false);
    let selection = random_selection(&across, 1);
    let refused = run(across, &Attend::Own(selection), &qkv(across), None).unwrap_err();
    assert_eq!(refused, Error::SelectionWindow);
}

/// Values that no row of a window sees do not reach it, whatever they are.
#[test]
fn poison_before_the_window_stays_there() {
    for q_len in [4, 300] {
        let problem = problem(q_len, 700).with_window_left(200);
        let mut qkv = qkv(problem);
        let clean = run(problem, &Attend::Dense, &qkv, None).unwrap();
        // The first row stands at 700 - q_len.
        let seen = 700 - q_len - 200;
        for tensor in [&mut qkv.k, &mut qkv.v] {
            for token in 0..seen {
                tensor.row_mut(0, 0, token).fill(if token % 2 == 0 {
                    f32::NAN
                } else {
                    f32::INFINITY
                });
            }
        }
        assert_eq!(clean, run(problem, &Attend::Dense, &qkv, None).unwrap());
        // What some rows of a block see, and others not.
        let poisoned = seen + 40;
        qkv.v.row_mut(0, 0, poisoned).fill(f32::NAN);
        let (o, _) = run(problem, &Attend::Dense, &qkv, None).unwrap();
        for (row, o) in o.chunks(32).enumerate() {
            let sees = row % q_len + 700 - q_len <= poisoned + 200;
            assert_eq!(o.iter().all(|x| x.is_nan()), sees, "{q_len} {row}");
            assert!(sees || o.iter().all(|x| x.is_finite()), "{q_len} {row}");
        }
    }
}

fn qkv(problem: Problem) -> Qkv {
    Case::new(problem, Attend::Dense).inputs()
}

/// O and log-sum-exp.
fn run(
    problem: Problem,
    attend: &Attend,
    qkv: &Qkv,
    sinks: Option<&[f32]>,
) -> Result<(Vec<f32>, Vec<f32>), Error> {
    let plan = match attend {
        Attend::Policy(policy) => Plan::new(problem, *policy)?,
        Attend::Dense | Attend::Own(_) => Plan::dense(problem)?,
    };
    let mut o = vec![0f32; problem.q_shape().iter().product()];
    let mut lse = vec![0f32; problem.lse_len()];
    let mut inputs = Inputs::new(
        TensorView::bhsd(&qkv.q.values, problem.q_shape())?,
        TensorView::bhsd(&qkv.k.values, problem.kv_shape())?,
        TensorView::bhsd(&qkv.v.values, problem.kv_shape())?,
    );
    inputs.sink_logits = sinks;
    let outputs = Outputs::new(TensorViewMut::bhsd(&mut o, problem.q_shape())?).with_lse(&mut lse);
    let mut workspace = vec![0; plan.workspace_bytes()];
    match attend {
        Attend::Own(selection) => plan.attend(&inputs, selection, outputs, &mut workspace)?,
        Attend::Dense | Attend::Policy(_) => {
            plan.run(&inputs, outputs, &mut workspace)?;
        }
    }
    Ok((o, lse))
}

/// A sink is one more key of the softmax, without a value: O is multiplied by the share that it leaves.
#[test]
fn learned_sinks_take_their_share_of_every_row() {
    let sinks = [1.5f32, f32::NEG_INFINITY, 40.0];
    for (q_len, k_len) in [(5, 300), (16, 4100), (200, 300), (300, 129)] {
        let problem = problem(q_len, k_len).with_heads(3, 1).with_window_left(250);
        let qkv = qkv(problem);
        let (o, lse) = run(problem, &Attend::Dense, &qkv, Some(&sinks)).unwrap();
        for (head, sink) in sinks.into_iter().enumerate() {
            for row in (0..q_len).step_by(1 + q_len / 40) {
                let keys: Vec<usize> = (0..k_len)
                    .filter(|&key| oracle::sees(&problem, row, key))
                    .collect();
                let plain = attention_row(&problem, &qkv, head, row, &keys);
                let sink = f64::from(sink);
                let max = plain.lse.max(sink);
                let expected = match max {
                    f64::NEG_INFINITY => max,
                    _ => max + ((plain.lse - max).exp() + (sink - max).exp()).ln(),
                };
                let got = f64::from(lse[head * q_len + row]);
                assert!(
                    got == expected || (got - expected).abs() < 1e-5,
                    "{got} {expected}"
                );
                let share = if keys.is_empty() {
                    0.0
                } else {
                    (plain.lse - expected).exp()
                };
                let got = &o[(head * q_len + row) * 32..][..32];
                for (&got, plain) in got.iter().zip(&plain.o) {
                    assert!(
                        (f64::from(got) - plain * share).abs() < 2e-5,
                        "{head} {row}"
                    );
                }
            }
        }
    }
}

/// The mass of a sink is of no key: it is covered from the start.
#[test]
fn what_a_sink_takes_is_covered() {
    let sinks = [6.0f32, 0.0];
    let problem = problem(700, 700);
    for budget in [Budget::Rows, Budget::Blocks, Budget::Residual] {
        let policy = policy(budget);
        let case = Case {
            data: Data::Structured,
            ..Case::new(problem, Attend::Policy(policy))
        };
        let qkv = case.inputs();
        let plan = Plan::new(problem, policy).unwrap();
        let inputs = Inputs::new(
            TensorView::bhsd(&qkv.q.values, problem.q_shape()).unwrap(),
            TensorView::bhsd(&qkv.k.values, problem.kv_shape()).unwrap(),
            TensorView::bhsd(&qkv.v.values, problem.kv_shape()).unwrap(),
        )
        .with_sink_logits(&sinks);
        let mut workspace = vec![0; plan.workspace_bytes()];
        let mut o = vec![0f32; qkv.q.values.len()];
        let mut stages = plan.stages(&inputs, &mut workspace).unwrap();
        let outputs = Outputs::new(TensorViewMut::bhsd(&mut o, problem.q_shape()).unwrap());
        let report = stages.run(outputs).unwrap();
        let mask = Mask::of(&problem, &stages.selection().unwrap());
        for (head, sink) in sinks.into_iter().enumerate() {
            let rows = oracle::sampled_rows(&problem, &policy, head);
            let shares = rows.iter().map(|&row| {
                let mass = |keys: &[usize]| {
                    let lse = attention_row(&problem, &qkv, head, row, keys).lse;
                    lse.exp() + f64::from(sink).exp()
                };
                let all: Vec<usize> = (0..=row).collect();
                mass(&mask.kept_keys(&problem, head, row)) / mass(&all)
            });
            let mean = shares.sum::<f64>() / rows.len() as f64;
            let told = report.heads[head].sampled_coverage.unwrap();
            assert!(
                (told - mean).abs() < 1e-3,
                "{budget:?} {head}: {told} {mean}"
            );
            assert!(told >= 0.7 - 1e-3);
        }
    }
}

#[test]
fn heads_and_sequences_have_the_bits_that_they_have_alone() {
    let sinks = [1.5f32, -2.0];
    let problem = problem(300, 300).with_window_left(150).with_softcap(4.0);
    let qkv = qkv(problem);
    let dense = run(problem, &Attend::Dense, &qkv, Some(&sinks)).unwrap();
    let inputs = Inputs::new(
        TensorView::bhsd(&qkv.q.values, problem.q_shape()).unwrap(),
        TensorView::bhsd(&qkv.k.values, problem.kv_shape()).unwrap(),
        TensorView::bhsd(&qkv.v.values, problem.kv_shape()).unwrap(),
    )
    .with_sink_logits(&sinks);
    let mut o = vec![0f32; dense.0.len()];
    let mut lse = vec![0f32; dense.1.len()];
    let plan = HeadPlan::new(problem, &[HeadPolicy::Dense; 2]).unwrap();
    let outputs =
        Outputs::new(TensorViewMut::bhsd(&mut o, problem.q_shape()).unwrap()).with_lse(&mut lse);
    plan.run(&inputs, outputs, &mut vec![0; plan.workspace_bytes()])
        .unwrap();
    assert_eq!((o, lse), dense);

    // The batch has [token, head, dim]: the same tensor by its strides.
    let bounds = VarlenBounds::causal(2, 300, 32, Dtype::F32)
        .with_heads(2, 1)
        .with_softmax_scale(problem.softmax_scale)
        .with_window_left(150)
        .with_softcap(4.0);
    let plan = VarlenPlan::dense(bounds).unwrap();
    let mut o = vec![0f32; dense.0.len()];
    let mut lse = vec![0f32; dense.1.len()];
    let inputs = VarlenInputs::new(
        inputs.q,
        inputs.k,
        inputs.v,
        SeqLens::cumulative(&[0u32, 300, 300]),
        SeqLens::cumulative(&[0u32, 300, 300]),
    )
    .with_sink_logits(&sinks);
    let outputs =
        Outputs::new(TensorViewMut::bhsd(&mut o, problem.q_shape()).unwrap()).with_lse(&mut lse);
    plan.run(&inputs, outputs, &mut vec![0; plan.workspace_bytes()])
        .unwrap();
    assert_eq!((o, lse), dense);
}

#[test]
fn what_is_wrong_or_has_no_kernel_is_told() {
    let problem = problem(64, 64);
    for softcap in [0.0, -1.0, f32::NAN, f32::INFINITY, f32::MIN_POSITIVE / 4.0] {
        let error = Plan::dense(problem.with_softcap(softcap)).unwrap_err();
        assert!(matches!(error, Error::Softcap { .. }), "{error}");
    }
    let qkv = qkv(problem);
    let error = run(problem, &Attend::Dense, &qkv, Some(&[0.0])).unwrap_err();
    assert_eq!(
        error,
        Error::SinkLogits {
            given: 1,
            q_heads: 2
        }
    );
    let problem = Problem::causal(64, 64, Dtype::Bf16);
    for problem in [problem.with_window_left(5), problem.with_softcap(5.0)] {
        let error = GpuPlan::dense(problem).unwrap_err();
        assert!(matches!(error, Error::KernelModel { .. }), "{error}");
    }
    let data = [bf16::ONE; 64 * 64];
    let view = TensorView::bhsd(&data, problem.q_shape()).unwrap();
    let inputs = Inputs::new(view, view, view).with_sink_logits(&[0.0]);
    let mut o = data;
    let outputs = Outputs::new(TensorViewMut::bhsd(&mut o, problem.q_shape()).unwrap());
    let plan = GpuPlan::dense(problem).unwrap();
    let emulator = sample_attention::emulator::Emulator::FAST;
    let error = emulator.run(&plan, &inputs, outputs).unwrap_err();
    assert_eq!(
        error,
        Error::KernelModel {
            what: "sink_logits"
        }
    );
}
