//! The stages of the selection, each by itself, after the ones that it needs.

use criterion::{BenchmarkId, Criterion, Throughput};
use sample_attention::pipeline::GpuPlan;
use sample_attention::{Budget, Fallback, Policy, Stage};

use crate::inputs::Structure;
use crate::rig::{Rig, Tensors};
use crate::{LENGTHS, group, problem};

const BUDGETS: [(&str, Budget); 3] = [
    ("blocks", Budget::Blocks),
    ("residual", Budget::Residual),
    ("paper", Budget::Paper),
];

/// The length at which the other budgets are measured too.
const ALL_BUDGETS_AT: usize = 32_768;

pub fn sampling(criterion: &mut Criterion) {
    selection_stage(criterion, Stage::Sampling);
}

pub fn reduction(criterion: &mut Criterion) {
    selection_stage(criterion, Stage::Reduction);
}

pub fn top_k(criterion: &mut Criterion) {
    selection_stage(criterion, Stage::TopK);
}

/// One stage over the whole input: all waves. Throughput is in query rows.
fn selection_stage(criterion: &mut Criterion, stage: Stage) {
    let mut group = group(criterion, stage.name());
    for len in LENGTHS {
        let problem = problem(len, 128);
        let tensors = Tensors::new(problem, Structure::Uniform);
        group.throughput(Throughput::Elements((len * problem.q_heads) as u64));
        for (name, budget) in BUDGETS {
            if budget != Budget::Blocks && len != ALL_BUDGETS_AT {
                continue;
            }
            let policy = Policy::of(Budget::Blocks)
                .with_budget(budget)
                .with_fallback(Fallback::Never);
            let plan = GpuPlan::new(problem, policy).expect("the policy is valid");
            let rig = Rig::new(plan, &tensors, None);
            group.bench_function(BenchmarkId::new(name, len), |bencher| {
                rig.bench(bencher, &[stage]);
            });
        }
    }
    group.finish();
}
