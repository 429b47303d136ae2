//! A policy for each head: every head is what it would be if all had its policy.

use sample_attention::{
    BLOCK, Budget, Dtype, Error, Fallback, HeadPath, HeadPlan, HeadPolicy, Inputs, Outputs, Plan,
    Policy, Problem, Report, Selection, TensorView, TensorViewMut, Window,
};
use testkit::runner::{Attend, Case, Data};
use testkit::tensor::Qkv;

const LOCAL: HeadPolicy = HeadPolicy::Local {
    window: Window::Tokens(200),
    sinks: 7,
};

fn selected(budget: Budget) -> HeadPolicy {
    HeadPolicy::Selected(Policy::of(budget).with_fallback(Fallback::Never))
}

/// Two sequences with grouped heads, a chunk of a prompt.
fn problem(q_heads: usize) -> Problem {
    Problem::causal(900, 16, Dtype::F32)
        .with_q_len(700)
        .with_batch(2)
        .with_heads(q_heads, 2)
}

fn inputs(problem: Problem) -> Qkv {
    let case = Case {
        data: Data::Structured,
        ..Case::new(problem, Attend::Dense)
    };
    case.inputs()
}

/// O, LSE and the report; `run` takes a workspace of its own.
fn outcome(
    problem: &Problem,
    qkv: &Qkv,
    run: impl FnOnce(&Inputs<'_>, Outputs<'_>) -> Report,
) -> (Vec<f32>, Vec<f32>, Report) {
    let mut o = vec![f32::NAN; qkv.q.values.len()];
    let mut lse = vec![f32::NAN; problem.lse_len()];
    let inputs = Inputs::new(
        TensorView::bhsd(&qkv.q.values, problem.q_shape()).unwrap(),
        TensorView::bhsd(&qkv.k.values, problem.kv_shape()).unwrap(),
        TensorView::bhsd(&qkv.v.values, problem.kv_shape()).unwrap(),
    );
    let outputs = Outputs::new(TensorViewMut::bhsd(&mut o, problem.q_shape()).unwrap());
    let report = run(&inputs, outputs.with_lse(&mut lse));
    (o, lse, report)
}

fn by_heads(problem: Problem, policies: &[HeadPolicy], qkv: &Qkv) -> (Vec<f32>, Vec<f32>, Report) {
    let plan = HeadPlan::new(problem, policies).unwrap();
    let mut workspace = vec![0xff; plan.workspace_bytes()];
    outcome(&problem, qkv, |inputs, outputs| {
        plan.run(inputs, outputs, &mut workspace).unwrap()
    })
}

/// All heads by one plan.
fn alike(problem: Problem, policy: HeadPolicy, qkv: &Qkv) -> (Vec<f32>, Vec<f32>, Report) {
    let plan = match policy {
        HeadPolicy::Selected(policy) => Plan::new(problem, policy).unwrap(),
        _ => Plan::dense(problem).unwrap(),
    };
    let mut workspace = vec![0; plan.workspace_bytes()];
    outcome(&problem, qkv, |inputs, outputs| {
        plan.run(inputs, outputs, &mut workspace).unwrap()
    })
}

#[test]
fn each_head_has_the_bits_and_the_report_of_its_own_policy() {
    let policies = [
        selected(Budget::Rows),
        HeadPolicy::Dense,
        selected(Budget::Blocks),
        selected(Budget::Rows),
        selected(Budget::Residual),
        selected(Budget::Paper),
    ];
    let problem = problem(policies.len());
    let qkv = inputs(problem);
    let (o, lse, report) = by_heads(problem, &policies, &qkv);
    let (of_head, of_rows) = (problem.q_len * problem.head_dim, problem.q_len);
    for (head, policy) in policies.iter().cycle().take(2 * policies.len()).enumerate() {
        let (expected_o, expected_lse, expected) = alike(problem, *policy, &qkv);
        let of_head = head * of_head..(head + 1) * of_head;
        let of_rows = head * of_rows..(head + 1) * of_rows;
        assert_eq!(o[of_head.clone()], expected_o[of_head], "head {head}");
        assert_eq!(lse[of_rows.clone()], expected_lse[of_rows], "head {head}");
        assert_eq!(report.heads[head], expected.heads[head]);
    }
}

#[test]
fn local_heads_keep_window_and_sinks_and_are_not_sampled() {
    let problem = problem(2);
    let qkv = inputs(problem);
    let (o, lse, report) = by_heads(problem, &[LOCAL; 2], &qkv);
    // 200 tokens reach into two blocks before a query's own.
    let mut selection = Selection::new(&problem).unwrap();
    selection.set_sinks(7);
    for block in 0..problem.k_len.div_ceil(BLOCK) {
        let window: Vec<usize> = (block.saturating_sub(2)..=block).collect();
        for head in 0..4 {
            selection
                .set_blocks(head / 2, head % 2, block, &window)
                .unwrap();
        }
    }
    let dense = Plan::dense(problem).unwrap();
    let mut workspace = vec![0; dense.workspace_bytes()];
    let (expected_o, expected_lse, _) = outcome(&problem, &qkv, |inputs, outputs| {
        dense
            .attend(inputs, &selection, outputs, &mut workspace)
            .unwrap();
        report.clone()
    });
    assert_eq!((o, lse), (expected_o, expected_lse));
    assert!(report.times.selection().is_zero());
    for (index, head) in report.heads.iter().enumerate() {
        let mask = selection.head(index / 2, index % 2);
        assert_eq!((head.batch, head.q_head), (index / 2, index % 2));
        assert_eq!((head.path, head.sampled_coverage), (HeadPath::Sparse, None));
        assert_eq!(
            (head.density, head.blocks_kept),
            (mask.density(), mask.blocks_kept())
        );
    }
}

#[test]
fn what_is_wrong_with_head_policies_is_told() {
    let few = HeadPlan::new(problem(4), &[LOCAL; 3]);
    assert_eq!(
        few,
        Err(Error::HeadPolicies {
            given: 3,
            q_heads: 4
        })
    );
    let empty = HeadPolicy::Local {
        window: Window::Tokens(0),
        sinks: 0,
    };
    assert_eq!(
        HeadPlan::new(problem(2), &[LOCAL, empty]),
        Err(Error::WindowTokens)
    );
    let not_causal = problem(2).with_causal(false);
    assert_eq!(
        HeadPlan::new(not_causal, &[LOCAL; 2]),
        Err(Error::SparseNeedsCausal)
    );
    assert!(HeadPlan::new(not_causal, &[HeadPolicy::Dense; 2]).is_ok());
    let nan = HeadPolicy::Selected(Policy::default().with_coverage(f32::NAN));
    assert!(matches!(
        HeadPlan::new(problem(2), &[LOCAL, nan]),
        Err(Error::Coverage { .. })
    ));

    let problem = problem(2);
    let qkv = inputs(problem);
    let plan = HeadPlan::new(problem, &[LOCAL, selected(Budget::Rows)]).unwrap();
    let mut workspace = vec![0; plan.workspace_bytes() - 1];
    let mut o = vec![0.5f32; qkv.q.values.len()];
    let inputs = Inputs::new(
        TensorView::bhsd(&qkv.q.values, problem.q_shape()).unwrap(),
        TensorView::bhsd(&qkv.k.values, problem.kv_shape()).unwrap(),
        TensorView::bhsd(&qkv.v.values, problem.kv_shape()).unwrap(),
    );
    let outputs = Outputs::new(TensorViewMut::bhsd(&mut o, problem.q_shape()).unwrap());
    let refused = plan.run(&inputs, outputs, &mut workspace);
    assert!(matches!(refused, Err(Error::WorkspaceTooSmall { .. })));
    assert!(o.iter().all(|&x| x == 0.5), "nothing was written");
}

#[test]
fn what_every_head_kept_is_what_its_own_plan_keeps() {
    let problem = problem(4);
    let qkv = inputs(problem);
    let other_sinks = Policy::default()
        .with_fallback(Fallback::Never)
        .with_sinks(40);
    let policies = [
        LOCAL,
        HeadPolicy::Dense,
        selected(Budget::Residual),
        HeadPolicy::Selected(other_sinks),
    ];
    let plan = HeadPlan::new(problem, &policies).unwrap();
    let mut workspace = vec![0; plan.workspace_bytes()];
    let mut kept = None;
    let (o, lse, report) = outcome(&problem, &qkv, |inputs, outputs| {
        let (report, selection) = plan.run_selecting(inputs, outputs, &mut workspace).unwrap();
        kept = Some(selection);
        report
    });
    let kept = kept.unwrap();
    assert_eq!(kept.sinks(), 7);
    for (head, found) in report.heads.iter().enumerate() {
        let mask = kept.head(head / 4, head % 4);
        assert_eq!(mask.is_dense(), head % 4 == 1);
        assert_eq!(mask.density(), found.density, "head {head}");
    }
    // The same mask, attended to by itself, gives the same sums but for their order, and nothing but rounding between them.
    let dense = Plan::dense(problem).unwrap();
    let mut workspace = vec![0; dense.workspace_bytes()];
    let (again, lse_again, _) = outcome(&problem, &qkv, |inputs, outputs| {
        dense
            .attend(inputs, &kept, outputs, &mut workspace)
            .unwrap();
        report.clone()
    });
    let close = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4);
    assert!(close(&o, &again) && close(&lse, &lse_again));
}
