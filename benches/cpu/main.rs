//! Microbenchmarks of the CPU backend, one group a stage, plus `dense`, `decode`, `heads` and `pipeline`, and `index`, `lookup` and `squeeze` of
//! Squeezed Attention.
//!
//! ```text
//! cargo bench --bench cpu                  everything
//! cargo bench --bench cpu -- sampling      one stage
//! ```
//!
//! Except for `decode` and Squeezed Attention, two query heads share one key/value head; inputs are bf16, head_dim 128, synthetic (`testkit::synthetic`).

mod decode;
mod dense;
mod heads;
mod pipeline;
mod squeeze;
mod stages;

use criterion::{Criterion, criterion_group, criterion_main};
use sample_attention::{Dtype, Fallback, Plan, Policy, Problem};
use testkit::capture::Capture;
use testkit::synthetic::{Structure, Synthetic};

/// Lengths that finish in seconds on a laptop.
const LENGTHS: [usize; 2] = [8192, 32768];

/// The input that a length is measured on.
fn input(len: usize, structure: Structure) -> Capture {
    Synthetic {
        problem: Problem::causal(len, 128, Dtype::Bf16).with_heads(2, 1),
        structure,
        seed: 1,
    }
    .generate()
    .expect("the sizes are valid")
}

/// A plan that selects whatever it costs.
fn sparse_plan(problem: Problem) -> Plan {
    let policy = Policy::default().with_fallback(Fallback::Never);
    Plan::new(problem, policy).expect("the policy is valid")
}

fn settings() -> Criterion {
    Criterion::default().sample_size(10)
}

criterion_group! {
    name = cpu;
    config = settings();
    targets = stages::sampling, stages::reduction, stages::top_k, stages::sparse_flash, dense::dense, decode::decode, heads::selection, pipeline::pipeline,
        squeeze::index, squeeze::lookup, squeeze::squeeze
}
criterion_main!(cpu);
