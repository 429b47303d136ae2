//! Attention by itself: over lists of given densities, and dense. Throughput is in floating-point operations on what is kept.

use criterion::{BenchmarkId, Criterion, Throughput};
use sample_attention::pipeline::GpuPlan;
use sample_attention::{BLOCK, Problem, Selection, Stage};
use testkit::random::Random;

use crate::inputs::Structure;
use crate::rig::{Rig, Tensors};
use crate::{LENGTHS, group, problem};

/// The lengths at which lists pay, and a short one.
const LIST_LENGTHS: [usize; 4] = [4096, 16_384, 65_536, 131_072];

const PERCENTS: [usize; 5] = [5, 10, 20, 40, 100];

/// Blocks of a query block's window, its own included: what 256 tokens need.
const WINDOW_BLOCKS: usize = 3;

pub fn sparse_flash(criterion: &mut Criterion) {
    let mut group = group(criterion, "sparse_flash");
    for len in LIST_LENGTHS {
        let problem = problem(len, 128);
        let tensors = Tensors::new(problem, Structure::Uniform);
        for percent in PERCENTS {
            let lists = random_lists(&problem, percent);
            let pairs = (0..problem.q_heads)
                .map(|head| lists.head(0, head).pairs())
                .sum();
            let plan = GpuPlan::given(problem, 0).expect("the problem is valid");
            let rig = Rig::new(plan, &tensors, Some(&lists));
            group.throughput(Throughput::Elements(flop(&problem, pairs)));
            group.bench_function(BenchmarkId::new(format!("{percent}%"), len), |bencher| {
                rig.bench(bencher, &[Stage::SparseFlash]);
            });
        }
    }
    group.finish();
}

pub fn dense(criterion: &mut Criterion) {
    let mut group = group(criterion, "dense");
    for head_dim in [128, 64] {
        for len in LENGTHS {
            let problem = problem(len, head_dim);
            let tensors = Tensors::new(problem, Structure::Uniform);
            let plan = GpuPlan::dense(problem).expect("the problem is valid");
            let rig = Rig::new(plan, &tensors, None);
            let pairs = problem.q_heads * len * (len + 1) / 2;
            group.throughput(Throughput::Elements(flop(&problem, pairs as u64)));
            group.bench_function(BenchmarkId::new(format!("d{head_dim}"), len), |bencher| {
                rig.bench(bencher, &[Stage::SparseFlash]);
            });
        }
    }
    group.finish();
}

/// Two products over each pair of query and key.
pub fn flop(problem: &Problem, pairs: u64) -> u64 {
    4 * pairs * problem.head_dim as u64
}

/// Of the visible blocks of each query block, its window and others at random, `percent` in a hundred together.
fn random_lists(problem: &Problem, percent: usize) -> Selection {
    let mut selection = Selection::new(problem).expect("the problem is valid");
    let mut random = Random::new(percent as u64);
    let blocks = problem.k_len.div_ceil(BLOCK);
    for head in 0..problem.q_heads {
        for query_block in 0..blocks {
            let visible = query_block + 1;
            let window_start = visible.saturating_sub(WINDOW_BLOCKS);
            let wanted = (visible * percent).div_ceil(100);
            let others = wanted.saturating_sub(visible - window_start);
            let mut kept = sample(&mut random, window_start, others);
            kept.extend(window_start..visible);
            selection
                .set_blocks(0, head, query_block, &kept)
                .expect("the blocks exist");
        }
    }
    selection
}

/// `count` of the numbers below `end`, ascending.
fn sample(random: &mut Random, end: usize, count: usize) -> Vec<usize> {
    let mut missing = count.min(end);
    (0..end)
        .filter(|number| {
            let is_taken = random.below(end - number) < missing;
            missing -= usize::from(is_taken);
            is_taken
        })
        .collect()
}
