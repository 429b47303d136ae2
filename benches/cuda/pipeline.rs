//! The whole pipeline, selection included, on inputs that cannot be made sparse and that are easily.

use criterion::{BenchmarkId, Criterion, Throughput};
use sample_attention::pipeline::GpuPlan;
use sample_attention::{Policy, Stage};

use crate::attention::flop;
use crate::inputs::Structure;
use crate::rig::{Rig, Tensors};
use crate::{LENGTHS, group, problem};

/// Throughput is in the operations of attention on what is kept.
pub fn pipeline(criterion: &mut Criterion) {
    let mut group = group(criterion, "pipeline");
    for len in LENGTHS {
        for structure in Structure::ALL {
            let problem = problem(len, 128);
            let tensors = Tensors::new(problem, structure);
            let plan = GpuPlan::new(problem, Policy::of(sample_attention::Budget::Blocks))
                .expect("the policy is valid");
            let rig = Rig::new(plan, &tensors, None);
            let density = rig.report().mean_density();
            let pairs = density * (problem.q_heads * len * (len + 1) / 2) as f64;
            group.throughput(Throughput::Elements(flop(&problem, pairs as u64)));
            let name = format!("{}-{:.0}%", structure.name(), 100.0 * density);
            group.bench_function(BenchmarkId::new(name, len), |bencher| {
                rig.bench(bencher, &Stage::ALL);
            });
        }
    }
    group.finish();
}
