//! The same bits whatever the threads, the workspace's contents, the number of repeats, or the order of the heads.

use sample_attention::{
    Budget, Dtype, Fallback, Inputs, Outputs, Plan, Policy, Problem, TensorView, TensorViewMut,
};
use testkit::runner::{Attend, Case, Cpu, Data, Outcome, run_with};

fn cases() -> Vec<Case> {
    let problem = Problem::causal(900, 32, Dtype::Bf16)
        .with_batch(2)
        .with_heads(4, 2)
        .with_q_len(700);
    let policies = [Budget::Blocks, Budget::Residual, Budget::Paper].map(|budget| {
        Attend::Policy(
            Policy::default()
                .with_budget(budget)
                .with_fallback(Fallback::Never),
        )
    });
    policies
        .into_iter()
        .chain([Attend::Dense])
        .map(|attend| Case {
            data: Data::Structured,
            ..Case::new(problem, attend)
        })
        .collect()
}

fn assert_same(a: &Outcome, b: &Outcome, what: &str) {
    assert_eq!(a.bits(), b.bits(), "{what}: O or LSE");
    assert_eq!(a.found.selection, b.found.selection, "{what}: selection");
    assert_eq!(a.found.units, b.found.units, "{what}: masses");
    assert_eq!(a.found.coverage, b.found.coverage, "{what}: coverage");
    let heads = |outcome: &Outcome| outcome.found.report.clone().map(|report| report.heads);
    assert_eq!(heads(a), heads(b), "{what}: report");
}

#[test]
fn thread_counts_and_workspace_contents_do_not_change_a_bit() {
    for case in cases() {
        let one = Cpu {
            threads: 1,
            workspace_fill: 0,
            coverage: true,
            ..Cpu::default()
        };
        let expected = run_with(&one, &case, &case.inputs());
        for threads in [1, 2, 5] {
            for workspace_fill in [0x00, 0xff, 0x7f] {
                let backend = Cpu {
                    threads,
                    workspace_fill,
                    coverage: true,
                    ..Cpu::default()
                };
                let outcome = run_with(&backend, &case, &case.inputs());
                assert_same(&expected, &outcome, &format!("{backend:?}, {case:?}"));
            }
        }
    }
}

#[test]
fn a_hundred_repeats_are_the_same_bits() {
    let problem = Problem::causal(300, 16, Dtype::F32).with_heads(2, 1);
    let policy = Policy::default()
        .with_coverage(0.8)
        .with_fallback(Fallback::Never);
    let case = Case::new(problem, Attend::Policy(policy));
    let qkv = case.inputs();
    let backend = Cpu {
        threads: 3,
        ..Cpu::default()
    };
    let expected = run_with(&backend, &case, &qkv);
    for repeat in 0..100 {
        assert_same(
            &expected,
            &run_with(&backend, &case, &qkv),
            &format!("repeat {repeat}"),
        );
    }
}

#[test]
fn permuted_heads_give_permuted_results() {
    for mut case in cases() {
        case.problem.kv_heads = 4;
        let qkv = case.inputs();
        let order = [2, 0, 3, 1];
        let mut permuted = qkv.clone();
        for batch in 0..2 {
            for (head, &from) in order.iter().enumerate() {
                for token in 0..qkv.q.shape[2] {
                    permuted
                        .q
                        .row_mut(batch, head, token)
                        .copy_from_slice(qkv.q.row(batch, from, token));
                }
                for token in 0..qkv.k.shape[2] {
                    permuted
                        .k
                        .row_mut(batch, head, token)
                        .copy_from_slice(qkv.k.row(batch, from, token));
                    permuted
                        .v
                        .row_mut(batch, head, token)
                        .copy_from_slice(qkv.v.row(batch, from, token));
                }
            }
        }
        let expected = run_with(&Cpu::default(), &case, &qkv);
        let outcome = run_with(&Cpu::default(), &case, &permuted);
        for batch in 0..2 {
            for (head, &from) in order.iter().enumerate() {
                for token in 0..qkv.q.shape[2] {
                    assert_eq!(
                        outcome.o.row(batch, head, token),
                        expected.o.row(batch, from, token)
                    );
                }
                if let (Some(a), Some(b)) = (&outcome.found.selection, &expected.found.selection) {
                    let (a, b) = (a.head(batch, head), b.head(batch, from));
                    assert_eq!(a.stripes(), b.stripes());
                    assert!((0..8).all(|block| a.blocks(block).eq(b.blocks(block))));
                }
            }
        }
    }
}

#[test]
fn one_call_gives_what_the_stages_give() {
    for case in cases() {
        let Attend::Policy(policy) = case.attend else {
            continue;
        };
        let problem = case.problem;
        let qkv = Case {
            problem: problem.with_dtype(Dtype::F32),
            ..case.clone()
        }
        .inputs();
        let problem = problem.with_dtype(Dtype::F32);
        let case = Case {
            problem,
            output: Dtype::F32,
            ..case
        };
        let expected = run_with(&Cpu::default(), &case, &qkv);
        let plan = Plan::new(problem, policy).unwrap();
        let mut o = vec![f32::NAN; qkv.q.values.len()];
        let mut lse = vec![f32::NAN; problem.lse_len()];
        let mut workspace = vec![0xff; plan.workspace_bytes()];
        let inputs = Inputs::new(
            TensorView::bhsd(&qkv.q.values, problem.q_shape()).unwrap(),
            TensorView::bhsd(&qkv.k.values, problem.kv_shape()).unwrap(),
            TensorView::bhsd(&qkv.v.values, problem.kv_shape()).unwrap(),
        );
        for with_lse in [true, false] {
            let o_view = TensorViewMut::bhsd(&mut o, problem.q_shape()).unwrap();
            let mut outputs = Outputs::new(o_view);
            outputs.lse = with_lse.then_some(&mut lse);
            let report = plan.run(&inputs, outputs, &mut workspace).unwrap();
            assert_eq!(o, expected.o.values);
            assert_eq!(lse, expected.lse);
            assert_eq!(report.heads, expected.found.report.as_ref().unwrap().heads);
            o.fill(f32::NAN);
        }
    }
}
