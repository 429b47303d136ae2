//! Squeezed Attention: building an index, looking it up, and attention over what was looked up, beside dense attention over everything.

use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput};
use sample_attention::squeeze::{Centroids, Index, IndexOptions, Keep, Squeeze, Workspace};
use sample_attention::{Dtype, Inputs, Outputs, Plan, Problem, TensorView, TensorViewMut};
use testkit::capture::{Capture, Tensor};
use testkit::synthetic::{Structure, Synthetic};

/// Fixed positions.
const FIXED: usize = 32_768;

/// Query heads on key/value heads.
const HEADS: (usize, usize) = (8, 2);

/// Queries after the fixed context: a token, and a user's input in blocks of 64.
const QUERIES: [(usize, usize); 2] = [(1, 1), (512, 64)];

struct Text {
    capture: Capture,
    len: usize,
}

impl Text {
    fn new() -> Self {
        let len = FIXED + 512;
        let problem = Problem::causal(len, 128, Dtype::Bf16).with_heads(HEADS.0, HEADS.1);
        let capture = Synthetic {
            problem,
            structure: Structure::EASY,
            seed: 1,
        }
        .generate()
        .expect("the sizes are valid");
        Text { capture, len }
    }

    fn view<'a>(
        &self,
        tensor: &'a Tensor,
        heads: usize,
        tokens: std::ops::Range<usize>,
    ) -> TensorView<'a> {
        let Tensor::Bf16(data) = tensor else {
            unreachable!("made as bf16")
        };
        let strides = [heads * self.len * 128, self.len * 128, 128, 1];
        let shape = [1, heads, tokens.len(), 128];
        TensorView::new(&data[tokens.start * 128..], shape, strides).expect("inside the text")
    }

    fn keys(&self, tokens: std::ops::Range<usize>) -> [TensorView<'_>; 2] {
        [&self.capture.k, &self.capture.v].map(|data| self.view(data, HEADS.1, tokens.clone()))
    }

    fn inputs(&self, queries: usize, keys: std::ops::Range<usize>) -> Inputs<'_> {
        let first = keys.end - queries;
        let [k, v] = self.keys(keys.clone());
        Inputs::new(self.view(&self.capture.q, HEADS.0, first..keys.end), k, v)
    }

    fn index(&self, options: IndexOptions) -> Index {
        let [k, v] = self.keys(0..FIXED);
        Index::build(&k, &v, options).expect("the keys are finite")
    }
}

/// Throughput is in keys.
pub fn index(criterion: &mut Criterion) {
    let text = Text::new();
    let mut group = criterion.benchmark_group("index");
    group.sampling_mode(SamplingMode::Flat);
    group.throughput(Throughput::Elements((FIXED * HEADS.1) as u64));
    for span in [1024, 8192] {
        let options = IndexOptions::default().with_span(span);
        group.bench_function(BenchmarkId::new(format!("span-{span}"), FIXED), |bencher| {
            bencher.iter(|| text.index(options));
        });
    }
    group.finish();
}

/// Look-up with the dense part, of a rule that keeps nothing: own tokens, sinks and window. Throughput is in queries.
pub fn lookup(criterion: &mut Criterion) {
    let text = Text::new();
    let index = text.index(IndexOptions::default());
    let mut group = criterion.benchmark_group("lookup");
    group.sampling_mode(SamplingMode::Flat);
    for (queries, block) in QUERIES {
        let rule = Centroids::default()
            .with_block(block)
            .with_keep(Keep::Threshold(2.0));
        group.throughput(Throughput::Elements(queries as u64));
        for (name, coarse) in [("one-level", None), ("two-levels", Some(1e-5))] {
            let rule = rule.with_coarse_threshold(coarse);
            let id = BenchmarkId::new(name, format!("{queries}-queries"));
            group.bench_function(id, |bencher| {
                let mut run = squeezed(&text, &index, rule, queries);
                bencher.iter(&mut run);
            });
        }
    }
    group.finish();
}

/// Attention over what a threshold for a coverage of 0.98 keeps, beside dense attention. Throughput is in queries.
pub fn squeeze(criterion: &mut Criterion) {
    let text = Text::new();
    let index = text.index(IndexOptions::default());
    let mut group = criterion.benchmark_group("squeeze");
    group.sampling_mode(SamplingMode::Flat);
    for (queries, block) in QUERIES {
        let rule = Centroids::default().with_block(block);
        let scale = text.capture.problem.softmax_scale;
        let squeeze = Squeeze::new(&index, rule, HEADS.0, scale).expect("the rule is valid");
        let window = FIXED - index.window()..FIXED;
        let observed = squeeze
            .observe(&text.view(&text.capture.q, HEADS.0, window))
            .expect("the window's queries");
        let threshold = observed
            .threshold_for_coverage(0.98)
            .expect("there are clusters");
        let rule = rule.with_keep(Keep::Threshold(threshold));
        group.throughput(Throughput::Elements(queries as u64));
        let id = BenchmarkId::new("squeezed", format!("{queries}-queries"));
        group.bench_function(id, |bencher| {
            let mut run = squeezed(&text, &index, rule, queries);
            bencher.iter(&mut run);
        });
        let id = BenchmarkId::new("dense", format!("{queries}-queries"));
        group.bench_function(id, |bencher| {
            let end = FIXED + queries;
            let problem = text.capture.problem.with_k_len(end).with_q_len(queries);
            let inputs = text.inputs(queries, 0..end);
            let plan = Plan::dense(problem).expect("the problem is valid");
            let mut workspace = vec![0; plan.workspace_bytes()];
            let mut o = vec![0f32; problem.q_shape().iter().product()];
            bencher.iter(|| {
                let o = TensorViewMut::bhsd(&mut o, problem.q_shape()).expect("the shape of q");
                plan.run(&inputs, Outputs::new(o), &mut workspace)
                    .expect("everything fits");
            });
        });
    }
    group.finish();
}

/// One call over the index, to be repeated.
fn squeezed<'a>(
    text: &'a Text,
    index: &'a Index,
    rule: Centroids,
    queries: usize,
) -> impl FnMut() + 'a {
    let scale = text.capture.problem.softmax_scale;
    let squeeze = Squeeze::new(index, rule, HEADS.0, scale).expect("the rule is valid");
    let inputs = text.inputs(queries, FIXED..FIXED + queries);
    let shape = [1, HEADS.0, queries, 128];
    let mut o = vec![0f32; shape.iter().product()];
    let mut workspace = Workspace::new();
    move || {
        let o = TensorViewMut::bhsd(&mut o, shape).expect("the shape of q");
        squeeze
            .attend(&inputs, Outputs::new(o), &mut workspace)
            .expect("everything fits");
    }
}
