//! Selections too large to be made at once: waves, the last of them not full, and what a watcher is told.

use std::sync::Mutex;

use sample_attention::{
    Budget, Dtype, Fallback, Inputs, Outputs, Plan, Policy, Problem, Progress, Stage, TensorView,
    TensorViewMut,
};
use testkit::runner::{Attend, Case, Cpu, Data, run_with};

/// Cases whose selection takes several waves of one thread, with one unit or two in the last.
fn large() -> [Case; 3] {
    let case = |problem, budget| {
        let policy = Policy::of(Budget::Blocks)
            .with_budget(budget)
            .with_coverage(0.7)
            .with_row_stride(1)
            .with_fallback(Fallback::Never);
        Case {
            data: Data::Structured,
            ..Case::new(problem, Attend::Policy(policy))
        }
    };
    [
        case(
            Problem::causal(8192 + 200, 8, Dtype::F32).with_heads(4, 1),
            Budget::Blocks,
        ),
        // All row statistics fit into one wave, whatever its tasks.
        case(
            Problem::causal(2000, 8, Dtype::F32).with_heads(4, 1),
            Budget::Rows,
        ),
        case(
            Problem::causal(2000, 256, Dtype::F32).with_heads(9, 1),
            Budget::Paper,
        ),
    ]
}

#[test]
fn the_number_of_waves_does_not_change_a_bit() {
    for case in large() {
        let Attend::Policy(policy) = case.attend else {
            unreachable!("made from policies")
        };
        let bytes = |threads| {
            let plan = Plan::new(case.problem, policy).unwrap();
            plan.with_threads(threads).unwrap()
        };
        let qkv = case.inputs();
        let view = |tensor: &testkit::tensor::Tensor| -> Vec<f32> { tensor.values.clone() };
        let (q, k, v) = (view(&qkv.q), view(&qkv.k), view(&qkv.v));
        let inputs = Inputs::new(
            TensorView::bhsd(&q, case.problem.q_shape()).unwrap(),
            TensorView::bhsd(&k, case.problem.kv_shape()).unwrap(),
            TensorView::bhsd(&v, case.problem.kv_shape()).unwrap(),
        );
        let waves = [1, 5].map(|threads| {
            let plan = bytes(threads);
            let mut workspace = vec![0; plan.workspace_bytes()];
            plan.stages(&inputs, &mut workspace).unwrap().waves()
        });
        let large = waves[0] > waves[1] || policy.budget == Budget::Rows;
        assert!(large, "{waves:?}: the case is too small");
        let [few, many] = [1, 5].map(|threads| {
            run_with(
                &Cpu {
                    threads,
                    ..Cpu::default()
                },
                &case,
                &qkv,
            )
        });
        assert_eq!(few.bits(), many.bits());
        assert_eq!(few.found.units, many.found.units);
        assert_eq!(few.found.selection, many.found.selection);
        assert_eq!(
            few.found.report.unwrap().heads,
            many.found.report.unwrap().heads
        );
    }
}

#[derive(Default)]
struct Seen(Mutex<Vec<(Stage, usize, usize)>>);

impl Progress for Seen {
    fn advance(&self, stage: Stage, done: usize, total: usize) {
        self.0.lock().unwrap().push((stage, done, total));
    }
}

#[test]
fn a_watcher_sees_every_stage_go_from_the_first_piece_to_the_last() {
    for case in large() {
        let Attend::Policy(policy) = case.attend else {
            unreachable!("made from policies")
        };
        let problem = case.problem;
        let qkv = case.inputs();
        let inputs = Inputs::new(
            TensorView::bhsd(&qkv.q.values, problem.q_shape()).unwrap(),
            TensorView::bhsd(&qkv.k.values, problem.kv_shape()).unwrap(),
            TensorView::bhsd(&qkv.v.values, problem.kv_shape()).unwrap(),
        );
        let plan = Plan::new(problem, policy).unwrap().with_threads(1).unwrap();
        let mut workspace = vec![0; plan.workspace_bytes()];
        let mut o = vec![0f32; qkv.q.values.len()];
        let outputs = Outputs::new(TensorViewMut::bhsd(&mut o, problem.q_shape()).unwrap());
        let seen = Seen::default();
        plan.stages_watched(&inputs, &mut workspace, &seen)
            .unwrap()
            .run(outputs)
            .unwrap();
        let seen = seen.0.into_inner().unwrap();
        for stage in Stage::ALL {
            let counts: Vec<(usize, usize)> = seen
                .iter()
                .filter(|(of, ..)| *of == stage)
                .map(|&(_, done, total)| (done, total))
                .collect();
            let total = counts.len();
            let expected: Vec<(usize, usize)> = (1..=total).map(|done| (done, total)).collect();
            assert!(total > 0);
            assert_eq!(counts, expected, "{}", stage.name());
        }
    }
}
