//! Few queries over many keys, beside reading the same keys and values from memory and doing nothing with them.

use criterion::{BenchmarkId, Criterion, Throughput};
use rayon::prelude::*;
use sample_attention::{Dtype, Outputs, Plan, Problem, TensorView, TensorViewMut};
use testkit::synthetic::{Structure, Synthetic};

/// Throughput is in bytes of keys and values.
pub fn decode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decode");
    for (q_len, k_len, dtype) in [
        (1, 4096, Dtype::Bf16),
        (1, 32_768, Dtype::Bf16),
        (4, 32_768, Dtype::Bf16),
        (16, 32_768, Dtype::Bf16),
        (17, 32_768, Dtype::Bf16),
        (1, 32_768, Dtype::F16),
        (1, 32_768, Dtype::F32),
    ] {
        let problem = Problem::causal(k_len, 128, dtype)
            .with_heads(32, 8)
            .with_q_len(q_len);
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
        let bytes = 2 * inputs.k.as_bytes().len();
        group.throughput(Throughput::Bytes(bytes as u64));
        if q_len == 1 {
            let id = BenchmarkId::new("read", format!("{k_len}-{dtype}"));
            group.bench_function(id, |bencher| {
                bencher.iter(|| read(&inputs.k).wrapping_add(read(&inputs.v)));
            });
        }
        let id = BenchmarkId::new(format!("{q_len}-queries"), format!("{k_len}-{dtype}"));
        group.bench_function(id, |bencher| {
            bencher.iter(|| {
                let o = TensorViewMut::bhsd(&mut o, problem.q_shape()).expect("the shape of q");
                plan.run(&inputs, Outputs::new(o), &mut workspace)
                    .expect("everything fits");
            });
        });
    }
    group.finish();
}

/// The sum of a tensor's bytes, on all threads: as fast as memory is read.
fn read(tensor: &TensorView<'_>) -> u64 {
    const TASK_BYTES: usize = 1 << 20;
    const LANES: usize = 32;
    let tasks = tensor.as_bytes().par_chunks(TASK_BYTES);
    let sums = tasks.map(|bytes| {
        let mut lanes = [0u64; LANES];
        for words in bytes.chunks_exact(LANES * size_of::<u64>()) {
            for (lane, word) in lanes.iter_mut().zip(words.as_chunks().0) {
                *lane = lane.wrapping_add(u64::from_le_bytes(*word));
            }
        }
        lanes.into_iter().fold(0, u64::wrapping_add)
    });
    sums.reduce(|| 0, u64::wrapping_add)
}
