//! The whole pipeline, selection included, on inputs from easily sparse to not sparse at all.

use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput};
use sample_attention::{Outputs, Plan, Policy, TensorViewMut};
use testkit::synthetic::Structure;

use crate::{LENGTHS, input};

/// Throughput is in query rows.
pub fn pipeline(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("pipeline");
    group.sampling_mode(SamplingMode::Flat);
    for len in LENGTHS {
        for (name, structure) in [
            ("easy", Structure::EASY),
            ("hard", Structure::HARD),
            ("uniform", Structure::UNIFORM),
        ] {
            let capture = input(len, structure);
            let problem = capture.problem;
            let plan = Plan::new(problem, Policy::default()).expect("the policy is valid");
            let inputs = capture.inputs().expect("the capture is whole");
            let mut workspace = vec![0; plan.workspace_bytes()];
            let mut o = vec![0f32; problem.q_shape().iter().product()];
            group.throughput(Throughput::Elements((len * problem.q_heads) as u64));
            group.bench_function(BenchmarkId::new(name, len), |bencher| {
                bencher.iter(|| {
                    let o = TensorViewMut::bhsd(&mut o, problem.q_shape()).expect("the shape of q");
                    plan.run(&inputs, Outputs::new(o), &mut workspace)
                        .expect("everything fits")
                });
            });
        }
    }
    group.finish();
}
