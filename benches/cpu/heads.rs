//! What selecting costs a layer by how many of its heads are sampled: those that are local or dense cost nothing there.

use std::time::Duration;

use criterion::{BenchmarkId, Criterion};
use sample_attention::{
    Dtype, Fallback, HeadPlan, HeadPolicy, Outputs, Policy, Problem, TensorViewMut, Window,
};
use testkit::synthetic::{Structure, Synthetic};

const LEN: usize = 8192;
const HEADS: usize = 4;

/// Time of sampling, reduction and top-k alone, of four heads of which 4, 2, 1 or none are sampled and the others local or dense.
pub fn selection(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("heads");
    let problem = Problem::causal(LEN, 128, Dtype::Bf16).with_heads(HEADS, 2);
    let recipe = Synthetic {
        problem,
        structure: Structure::EASY,
        seed: 1,
    };
    let capture = recipe.generate().expect("the sizes are valid");
    let inputs = capture.inputs().expect("the capture is whole");
    let mut o = vec![0f32; problem.q_shape().iter().product()];
    let rows = HeadPolicy::Selected(Policy::default().with_fallback(Fallback::Never));
    let local = HeadPolicy::Local {
        window: Window::Tokens(128),
        sinks: 16,
    };
    for (name, other) in [("others local", local), ("others dense", HeadPolicy::Dense)] {
        for sampled in [4, 2, 1, 0] {
            let mut policies = vec![rows; sampled];
            policies.resize(HEADS, other);
            let plan = HeadPlan::new(problem, &policies).expect("the policies are valid");
            let mut workspace = vec![0; plan.workspace_bytes()];
            let mut selecting = || -> Duration {
                let o = TensorViewMut::bhsd(&mut o, problem.q_shape()).expect("the shape of q");
                let report = plan.run(&inputs, Outputs::new(o), &mut workspace);
                // Criterion takes no time of zero.
                let time = report.expect("everything fits").times.selection();
                time.max(Duration::from_nanos(1))
            };
            group.bench_function(
                BenchmarkId::new(format!("selection, {name}"), sampled),
                |bencher| {
                    bencher.iter_custom(|runs| (0..runs).map(|_| selecting()).sum());
                },
            );
        }
    }
    group.finish();
}
