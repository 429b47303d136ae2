//! Dense attention, beside a plain matrix product of the `gemm` crate on the same cores.

use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput};
use sample_attention::{Dtype, Outputs, Plan, Problem, TensorViewMut};
use testkit::synthetic::{Structure, Synthetic};

/// Throughput is in floating-point operations.
pub fn dense(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("dense");
    group.sampling_mode(SamplingMode::Flat);

    const SIZE: usize = 4096;
    let (a, b) = (vec![0.5f32; SIZE * SIZE], vec![0.25f32; SIZE * SIZE]);
    let mut c = vec![0f32; SIZE * SIZE];
    group.throughput(Throughput::Elements(2 * (SIZE as u64).pow(3)));
    group.bench_function(BenchmarkId::new("gemm-f32", SIZE), |bencher| {
        bencher.iter(|| testkit::product::square(SIZE, &a, &b, &mut c));
    });

    for (len, dtype) in [
        (8192, Dtype::F32),
        (8192, Dtype::Bf16),
        (8192, Dtype::F16),
        (32768, Dtype::Bf16),
    ] {
        let problem = Problem::causal(len, 128, dtype).with_heads(2, 1);
        let capture = Synthetic {
            problem,
            structure: Structure::EASY,
            seed: 1,
        }
        .generate()
        .expect("the sizes are valid");
        let plan = Plan::dense(problem).expect("the problem is valid");
        let inputs = capture.inputs().expect("the capture is whole");
        let mut workspace = vec![0; plan.workspace_bytes()];
        let mut o = vec![0f32; problem.q_shape().iter().product()];
        let pairs = problem.q_heads * len * (len + 1) / 2;
        group.throughput(Throughput::Elements((4 * pairs * problem.head_dim) as u64));
        group.bench_function(BenchmarkId::new(dtype.to_string(), len), |bencher| {
            bencher.iter(|| {
                let o = TensorViewMut::bhsd(&mut o, problem.q_shape()).expect("the shape of q");
                plan.run(&inputs, Outputs::new(o), &mut workspace)
                    .expect("everything fits");
            });
        });
    }
    group.finish();
}
