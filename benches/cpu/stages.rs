//! Each stage by itself, after the ones that it needs.

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, SamplingMode, Throughput};
use sample_attention::{Budget, Fallback, Outputs, Plan, Policy, Selection, TensorViewMut};
use testkit::capture::Capture;
use testkit::synthetic::Structure;

use crate::{LENGTHS, input, sparse_plan};

const BUDGETS: [(&str, Budget); 3] = [
    ("blocks", Budget::Blocks),
    ("residual", Budget::Residual),
    ("paper", Budget::Paper),
];

/// The stages of the selection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum SelectionStage {
    Sampling,
    Reduction,
    TopK,
}

pub fn sampling(criterion: &mut Criterion) {
    selection_stage(criterion, "sampling", SelectionStage::Sampling);
}

pub fn reduction(criterion: &mut Criterion) {
    selection_stage(criterion, "reduction", SelectionStage::Reduction);
}

pub fn top_k(criterion: &mut Criterion) {
    selection_stage(criterion, "top_k", SelectionStage::TopK);
}

/// One stage over the whole input, for each budget; the stages before it have run.
fn selection_stage(criterion: &mut Criterion, name: &str, stage: SelectionStage) {
    let mut group = group(criterion, name);
    for len in LENGTHS {
        let capture = input(len, Structure::EASY);
        group.throughput(Throughput::Elements((len * capture.problem.q_heads) as u64));
        for (budget_name, budget) in BUDGETS {
            let policy = Policy::default()
                .with_budget(budget)
                .with_fallback(Fallback::Never);
            let plan = Plan::new(capture.problem, policy).expect("the policy is valid");
            let inputs = capture.inputs().expect("the capture is whole");
            let mut workspace = vec![0; plan.workspace_bytes()];
            let mut stages = plan
                .stages(&inputs, &mut workspace)
                .expect("the workspace is the plan's");
            assert_eq!(stages.waves(), 1, "one call is then the whole stage");
            stages.sampling(0).expect("the wave exists");
            stages.reduction(0).expect("the wave exists");
            group.bench_function(BenchmarkId::new(budget_name, len), |bencher| {
                bencher.iter(|| match stage {
                    SelectionStage::Sampling => stages.sampling(0).expect("the wave exists"),
                    SelectionStage::Reduction => stages.reduction(0).expect("the wave exists"),
                    SelectionStage::TopK => stages.top_k(0).expect("the wave exists"),
                });
            });
        }
    }
    group.finish();
}

/// Attention over what the default policy selects, and over windows of given densities.
pub fn sparse_flash(criterion: &mut Criterion) {
    let mut group = group(criterion, "sparse_flash");
    for len in LENGTHS {
        let capture = input(len, Structure::EASY);
        let plan = sparse_plan(capture.problem);
        let inputs = capture.inputs().expect("the capture is whole");
        let mut workspace = vec![0; plan.workspace_bytes()];
        let mut stages = plan
            .stages(&inputs, &mut workspace)
            .expect("the workspace is the plan's");
        for wave in 0..stages.waves() {
            stages.sampling(wave).expect("the wave exists");
            stages.reduction(wave).expect("the wave exists");
            stages.top_k(wave).expect("the wave exists");
        }
        let selected = stages.selection().expect("the plan selects");
        let density = selected.head(0, 0).density();
        let name = format!("selected-{:.0}%", 100.0 * density);
        bench_attend(&mut group, &name, &capture, &selected);
        for percent in [5, 10, 20] {
            let selection = strided_blocks(&capture, percent);
            bench_attend(&mut group, &format!("{percent}%"), &capture, &selection);
        }
    }
    group.finish();
}

fn bench_attend(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    capture: &Capture,
    selection: &Selection,
) {
    let problem = capture.problem;
    let plan = Plan::dense(problem).expect("the problem is valid");
    let inputs = capture.inputs().expect("the capture is whole");
    let mut workspace = vec![0; plan.workspace_bytes()];
    let mut o = vec![0f32; problem.q_shape().iter().product()];
    let pairs: u64 = (0..problem.q_heads)
        .map(|head| selection.head(0, head).pairs())
        .sum();
    group.throughput(Throughput::Elements(4 * pairs * problem.head_dim as u64));
    group.bench_function(BenchmarkId::new(name, problem.k_len), |bencher| {
        bencher.iter(|| {
            let o = TensorViewMut::bhsd(&mut o, problem.q_shape()).expect("o has the shape of q");
            plan.attend(&inputs, selection, Outputs::new(o), &mut workspace)
                .expect("the selection fits");
        });
    });
}

/// Every query block's own block, and of those before it about `percent` in a hundred, evenly spread.
fn strided_blocks(capture: &Capture, percent: usize) -> Selection {
    let mut selection = Selection::new(&capture.problem).expect("the problem is valid");
    let blocks = capture.problem.k_len.div_ceil(sample_attention::BLOCK);
    for head in 0..capture.problem.q_heads {
        for query_block in 0..blocks {
            let kept: Vec<usize> = (0..query_block)
                .filter(|block| (block + query_block) * percent % 100 < percent)
                .collect();
            selection
                .set_blocks(0, head, query_block, &kept)
                .expect("the blocks exist");
        }
    }
    selection
}

fn group<'a>(criterion: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group.sampling_mode(SamplingMode::Flat);
    group
}
