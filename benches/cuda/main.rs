//! Microbenchmarks of the kernels on a GPU, one group a stage, plus `dense` and `pipeline`. Times are the device's own, by events.
//!
//! ```text
//! cargo bench --features cuda --bench cuda                  everything: about two minutes
//! cargo bench --features cuda --bench cuda -- sampling      one stage
//! ```
//!
//! 32 query heads share 8 key/value heads; inputs are bf16, head_dim 128 unless a name says otherwise. Nothing is measured, and
//! a line says so, where there is no GPU. Comparisons with other libraries' kernels are `benches/peers.py`.

mod attention;
mod inputs;
mod pipeline;
mod rig;
mod stages;

use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, SamplingMode, criterion_group};
use sample_attention::cuda::Device;
use sample_attention::{Dtype, Problem};

/// From where attention is short to where it is all that a prompt costs.
const LENGTHS: [usize; 6] = [4096, 8192, 16_384, 32_768, 65_536, 131_072];

fn problem(len: usize, head_dim: usize) -> Problem {
    Problem::causal(len, head_dim, Dtype::Bf16).with_heads(32, 8)
}

fn group<'a>(criterion: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group.sampling_mode(SamplingMode::Flat);
    group
}

/// A GPU repeats its times closely, so few samples do.
fn settings() -> Criterion {
    Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(500))
}

criterion_group! {
    name = cuda;
    config = settings();
    targets = stages::sampling, stages::reduction, stages::top_k, attention::sparse_flash, attention::dense, pipeline::pipeline
}

fn main() {
    match Device::new(0) {
        Ok(device) => {
            eprintln!("{device:?}");
            rig::DEVICE.set(device).expect("nobody set it before");
            cuda();
            Criterion::default().configure_from_args().final_summary();
        }
        Err(error) => eprintln!("SKIPPED: no benchmark of the GPU was run: {error}"),
    }
}
