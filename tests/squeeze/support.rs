//! Fixed contexts with queries after them.

use sample_attention::squeeze::{Index, IndexOptions, Report, Squeeze, Workspace};
use sample_attention::{Dtype, Inputs, Outputs, Problem, TensorView, TensorViewMut};
use testkit::capture::{Capture, Tensor};
use testkit::oracle;
use testkit::synthetic::{Structure, Synthetic};
use testkit::tensor::{self, Qkv};

/// A fixed context, and queries with their own tokens after it.
pub struct Text {
    /// Queries of the own tokens, keys and values of everything.
    pub capture: Capture,
    pub fixed: usize,
}

impl Text {
    pub fn new(problem: Problem, fixed: usize) -> Self {
        let capture = Synthetic {
            problem,
            structure: Structure::EASY,
            seed: 3,
        }
        .generate()
        .unwrap();
        Text { capture, fixed }
    }

    /// 4 query heads on 2 key/value heads; 900 fixed tokens and 40 after them.
    pub fn small(dtype: Dtype, dim: usize) -> Self {
        let problem = Problem::causal(940, dim, dtype)
            .with_heads(4, 2)
            .with_q_len(40);
        Text::new(problem, 900)
    }

    pub fn problem(&self) -> &Problem {
        &self.capture.problem
    }

    fn tokens<'a>(&self, data: &'a Tensor, tokens: std::ops::Range<usize>) -> TensorView<'a> {
        let [_, heads, len, dim] = self.problem().kv_shape();
        let shape = [1, heads, tokens.len(), dim];
        let strides = [heads * len * dim, len * dim, dim, 1];
        let start = tokens.start * dim;
        match data {
            Tensor::F32(data) => TensorView::new(&data[start..], shape, strides),
            Tensor::F16(data) => TensorView::new(&data[start..], shape, strides),
            Tensor::Bf16(data) => TensorView::new(&data[start..], shape, strides),
        }
        .unwrap()
    }

    pub fn keys(&self, tokens: std::ops::Range<usize>) -> TensorView<'_> {
        self.tokens(&self.capture.k, tokens)
    }

    pub fn values(&self, tokens: std::ops::Range<usize>) -> TensorView<'_> {
        self.tokens(&self.capture.v, tokens)
    }

    pub fn index(&self, options: IndexOptions) -> Index {
        Index::build(
            &self.keys(0..self.fixed),
            &self.values(0..self.fixed),
            options,
        )
        .unwrap()
    }

    /// The queries with their own tokens.
    pub fn inputs(&self) -> Inputs<'_> {
        let own = self.fixed..self.problem().k_len;
        Inputs::new(
            self.capture.q.view(self.problem().q_shape()).unwrap(),
            self.keys(own.clone()),
            self.values(own),
        )
    }

    pub fn attend(&self, squeeze: &Squeeze<'_>) -> Attended {
        attend(squeeze, &self.inputs())
    }

    /// As the oracle takes it.
    pub fn qkv(&self) -> Qkv {
        let tensor = |data: &Tensor, shape| tensor::Tensor {
            shape,
            values: data.to_f32(),
        };
        let problem = self.problem();
        Qkv {
            q: tensor(&self.capture.q, problem.q_shape()),
            k: tensor(&self.capture.k, problem.kv_shape()),
            v: tensor(&self.capture.v, problem.kv_shape()),
        }
    }

    /// Compares every row with attention over the positions that the report says were kept, in f64.
    pub fn check(&self, index: &Index, squeeze: &Squeeze<'_>, attended: &Attended) {
        let (problem, qkv) = (self.problem(), self.qkv());
        let mut worst = 0f64;
        for head in 0..problem.q_heads {
            for row in 0..problem.q_len {
                let keys = self.kept(index, squeeze, &attended.report, head, row);
                let expected = oracle::attention_row(problem, &qkv, head, row, &keys);
                let at = head * problem.q_len + row;
                let o = &attended.o[at * problem.head_dim..][..problem.head_dim];
                let length = expected.o.iter().map(|x| x * x).sum::<f64>().sqrt();
                for (o, expected) in o.iter().zip(&expected.o) {
                    worst = worst.max((f64::from(*o) - expected).abs() / length);
                }
                let lse = f64::from(attended.lse[at]);
                assert!((lse - expected.lse).abs() < 1e-5, "{lse} {}", expected.lse);
            }
        }
        // Inputs are exact in f32, in which everything is computed: a few roundings of sums of a hundred keys.
        assert!(worst < 2e-5, "{worst:e}");
    }

    /// Positions that a row attends to, by the report.
    pub fn kept(
        &self,
        index: &Index,
        squeeze: &Squeeze<'_>,
        report: &Report,
        head: usize,
        row: usize,
    ) -> Vec<usize> {
        let problem = self.problem();
        let kv_head = head / problem.group_size();
        let kept = &report.heads[kv_head].kept[row / squeeze.rule().block];
        let clusters = kept
            .iter()
            .flat_map(|&cluster| index.positions(kv_head, cluster as usize));
        let own = self.fixed..=self.fixed + row;
        let mut keys: Vec<usize> = clusters
            .map(|&position| position as usize)
            .chain(outside(index))
            .chain(own)
            .collect();
        keys.sort_unstable();
        keys
    }
}

/// Positions in no cluster.
pub fn outside(index: &Index) -> impl Iterator<Item = usize> + use<> {
    let (len, window) = (index.len(), index.window());
    (0..index.outside() - window).chain(len - window..len)
}

#[derive(Debug, PartialEq)]
pub struct Attended {
    pub o: Vec<f32>,
    pub lse: Vec<f32>,
    pub report: Report,
}

pub fn attend(squeeze: &Squeeze<'_>, inputs: &Inputs<'_>) -> Attended {
    let [batch, _, q_len, _] = inputs.q.shape();
    let problem = squeeze.problem(batch, q_len, inputs.k.shape()[2]);
    let mut o = vec![0f32; problem.q_shape().iter().product()];
    let mut lse = vec![0f32; problem.lse_len()];
    let outputs = Outputs::new(TensorViewMut::bhsd(&mut o, problem.q_shape()).unwrap());
    let mut workspace = Workspace::new();
    let report = squeeze
        .attend(inputs, outputs.with_lse(&mut lse), &mut workspace)
        .unwrap();
    let bound = squeeze
        .workspace_bytes(batch, q_len, inputs.k.shape()[2])
        .unwrap();
    assert!(workspace.bytes() <= bound);
    Attended { o, lse, report }
}

impl Attended {
    /// O and LSE as bits.
    pub fn bits(&self) -> (Vec<u32>, Vec<u32>) {
        let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect();
        (bits(&self.o), bits(&self.lse))
    }
}
