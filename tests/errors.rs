//! Errors of problems, policies and selections: what brings each about, and that its text names the remedy.

use sample_attention::{
    Dtype, Error, Fallback, Inputs, Outputs, Plan, Policy, Problem, Selection, TensorView,
    TensorViewMut, Window,
};
use testkit::refused;

fn problem() -> Problem {
    Problem::causal(100, 16, Dtype::F32).with_heads(4, 2)
}

fn problem_with(change: impl Fn(&mut Problem)) -> Problem {
    let mut problem = problem();
    change(&mut problem);
    problem
}

fn policy_with(change: impl Fn(&mut Policy)) -> Policy {
    let mut policy = Policy::default();
    change(&mut policy);
    policy
}

#[test]
fn sizes_of_zero() {
    for (name, problem) in [
        ("batch", problem_with(|p| p.batch = 0)),
        ("q_heads", problem_with(|p| p.q_heads = 0)),
        ("kv_heads", problem_with(|p| p.kv_heads = 0)),
        ("q_len", problem_with(|p| p.q_len = 0)),
        ("k_len", problem_with(|p| p.k_len = 0)),
        ("head_dim", problem_with(|p| p.head_dim = 0)),
    ] {
        let selecting = Plan::new(problem, Policy::default());
        refused!(selecting, Error::ZeroSize { .. }, name, "at least 1");
        refused!(Plan::dense(problem), Error::ZeroSize { .. }, name);
        refused!(Selection::new(&problem), Error::ZeroSize { .. }, name);
        refused!(Selection::dense(&problem), Error::ZeroSize { .. }, name);
    }
}

#[test]
fn heads_that_do_not_divide() {
    for kv_heads in [3, 8] {
        let plan = Plan::dense(problem_with(|p| p.kv_heads = kv_heads));
        let given = kv_heads.to_string();
        refused!(
            plan,
            Error::HeadsNotDivisible { .. },
            "(4)",
            &given,
            "multiple"
        );
    }
}

#[test]
fn head_dims_without_a_kernel() {
    for head_dim in [1, 7, 12, 100, 257, 264, 512, usize::MAX] {
        let plan = Plan::dense(problem_with(|p| p.head_dim = head_dim));
        let given = head_dim.to_string();
        refused!(
            plan,
            Error::HeadDim { .. },
            &given,
            "multiple of 8",
            "256",
            "padding"
        );
    }
}

#[test]
fn scales_that_are_not_finite_or_too_large() {
    for scale in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 3e38, -1.1e30] {
        let plan = Plan::dense(problem_with(|p| p.softmax_scale = scale));
        refused!(plan, Error::Scale { .. }, "finite", "1e30", "1/sqrt");
    }
    for scale in [1e30, -1e30, 0.0, 1e-45] {
        Plan::dense(problem_with(|p| p.softmax_scale = scale)).unwrap();
    }
}

#[test]
fn sizes_beyond_the_indices() {
    for len in [(1 << 30) + 1, usize::MAX] {
        let plan = Plan::dense(problem_with(|p| p.q_len = len));
        refused!(
            plan,
            Error::TooLong { name: "q_len", .. },
            "q_len",
            "chunks"
        );
        let plan = Plan::dense(problem_with(|p| p.k_len = len));
        refused!(
            plan,
            Error::TooLong { name: "k_len", .. },
            "k_len",
            "chunks"
        );
    }
    for batch in [1 << 60, usize::MAX] {
        let plan = Plan::dense(problem_with(|p| p.batch = batch));
        refused!(plan, Error::SizeOverflow { .. }, "split");
    }
}

#[test]
fn selecting_without_causality() {
    let plan = Plan::new(problem_with(|p| p.causal = false), Policy::default());
    refused!(plan, Error::SparseNeedsCausal, "Plan::dense", "Selection");
}

#[test]
fn an_automatic_plan_is_dense_where_selection_is_not_defined() {
    let policy = Policy::default().with_fallback(Fallback::Never);
    let dense = problem_with(|p| p.causal = false);
    assert_eq!(Plan::auto(dense, policy), Plan::dense(dense));
    assert_eq!(Plan::auto(problem(), policy), Plan::new(problem(), policy));
    let empty = policy.with_coverage(0.0);
    refused!(Plan::auto(dense, empty), Error::Coverage { .. }, "above 0");
}

#[test]
fn policies_out_of_range() {
    let plan = |policy| Plan::new(problem(), policy);
    for coverage in [0.0, -0.1, 1.000_001, f32::NAN, f32::INFINITY] {
        let policy = policy_with(|p| p.coverage = coverage);
        refused!(plan(policy), Error::Coverage { .. }, "above 0", "at most 1");
    }
    for ratio in [0.0, -1.0, 1.5, f32::NAN] {
        let policy = policy_with(|p| p.window = Window::Ratio(ratio));
        refused!(
            plan(policy),
            Error::WindowRatio { .. },
            "above 0",
            "at most 1"
        );
    }
    let policy = policy_with(|p| p.window = Window::Tokens(0));
    refused!(plan(policy), Error::WindowTokens, "at least 1");
    let policy = policy_with(|p| p.row_stride = 0);
    refused!(plan(policy), Error::RowStride, "use 1", "8");
    let policy = policy_with(|p| p.tail_stride = 0);
    refused!(plan(policy), Error::TailStride, "use 1", "tail = 0");
    let policy = policy_with(|p| p.stride_doubles_from = 0);
    refused!(
        plan(policy),
        Error::StrideDoublesFrom,
        "at least 1",
        "usize::MAX"
    );
}

#[test]
fn policies_at_the_limits_are_fine() {
    for policy in [
        policy_with(|p| (p.coverage, p.window) = (1.0, Window::Ratio(1.0))),
        policy_with(|p| (p.coverage, p.row_stride) = (f32::MIN_POSITIVE, usize::MAX)),
        policy_with(|p| (p.row_stride, p.stride_doubles_from) = (63, 1)),
        policy_with(|p| (p.row_stride, p.stride_doubles_from) = (usize::MAX, 1)),
        policy_with(|p| (p.window, p.sinks) = (Window::Tokens(usize::MAX), usize::MAX)),
    ] {
        let policy = policy.with_fallback(Fallback::Never);
        Plan::new(problem(), policy).unwrap();
    }
}

#[test]
fn plans_for_no_threads() {
    let plan = Plan::dense(problem()).unwrap().with_threads(0);
    refused!(plan, Error::NoThreads, "at least 1 thread");
}

#[test]
fn selections_out_of_range() {
    let problem = problem();
    let mut selection = Selection::new(&problem).unwrap();
    let stripes = selection.set_stripes(1, 0, &[1]);
    refused!(
        stripes,
        Error::SelectionIndex {
            index: 1,
            count: 1,
            ..
        },
        "batch 1"
    );
    let stripes = selection.set_stripes(0, 4, &[1]);
    refused!(
        stripes,
        Error::SelectionIndex { count: 4, .. },
        "query head 4"
    );
    let stripes = selection.set_stripes(0, 0, &[5, 100]);
    refused!(
        stripes,
        Error::SelectionIndex { .. },
        "stripe 100",
        "there are 100"
    );
    let blocks = selection.set_blocks(0, 0, 1, &[0]);
    refused!(
        blocks,
        Error::SelectionIndex { .. },
        "query block 1",
        "there are 1"
    );
    let blocks = selection.set_blocks(0, 0, 0, &[0, 1]);
    refused!(
        blocks,
        Error::SelectionIndex { .. },
        "key block 1",
        "there are 1"
    );
    let dense = selection.set_dense(0, 9, true);
    refused!(
        dense,
        Error::SelectionIndex { .. },
        "query head 9",
        "there are 4"
    );
    for stripes in [[5, 5], [6, 5]] {
        let stripes = selection.set_stripes(0, 0, &stripes);
        refused!(
            stripes,
            Error::StripesNotAscending { next: 5, .. },
            "ascend",
            "sort"
        );
    }
    let untouched = Selection::new(&problem).unwrap();
    assert_eq!(selection, untouched, "a refused call changed the selection");
}

#[test]
fn selections_of_another_problem() {
    let problem = problem();
    let data = vec![0f32; 4 * 100 * 16];
    let kv = TensorView::bhsd(&data, problem.kv_shape()).unwrap();
    let inputs = Inputs::new(TensorView::bhsd(&data, problem.q_shape()).unwrap(), kv, kv);
    let plan = Plan::dense(problem).unwrap();
    let mut workspace = vec![0; plan.workspace_bytes()];
    for other in [
        problem_with(|p| p.q_len = 99),
        problem_with(|p| p.k_len = 101),
        problem_with(|p| p.q_heads = 2),
        problem_with(|p| p.batch = 2),
        problem_with(|p| p.causal = false),
    ] {
        let mut o = vec![7f32; 4 * 100 * 16];
        let outputs = Outputs::new(TensorViewMut::bhsd(&mut o, problem.q_shape()).unwrap());
        let selection = Selection::new(&other).unwrap();
        let result = plan.attend(&inputs, &selection, outputs, &mut workspace);
        refused!(
            result,
            Error::SelectionShape { .. },
            "selection is for",
            "the problem has"
        );
        assert!(o.iter().all(|&x| x == 7.0), "O was written");
    }
}
