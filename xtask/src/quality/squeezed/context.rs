//! One text: its fixed part read once, and what each rule makes of the input after it.

use half::bf16;
use sample_attention::squeeze::{
    Centroids, Index, IndexOptions, Keep, Observed, Squeeze, Workspace,
};
use sample_attention::{Inputs, Outputs, Plan, Problem, TensorView, TensorViewMut};

use super::super::divergence::Predictions;
use super::super::model::{Attention, Model};
use super::super::retrieval::{Answered, Case};
use super::super::weights::VOCABULARY;
use super::pages;
use super::rules::{Method, Scope, Spec, Target};

/// The most positions of an observation window.
const WINDOW: usize = 128;

/// Queries, keys and values of the fixed text in one layer.
pub struct Layer {
    problem: Problem,
    /// Of the last [`WINDOW`] positions, [1, q_heads, WINDOW, head_dim].
    q: Vec<bf16>,
    /// [1, kv_heads, fixed, head_dim].
    pub k: Vec<bf16>,
    pub v: Vec<bf16>,
}

/// A text whose fixed part was read.
pub struct Context {
    fixed: usize,
    layers: Vec<Layer>,
    /// Of the input, by dense attention.
    pub logits: Vec<f32>,
    pub predictions: Predictions,
}

/// What a rule made of the input.
pub struct Read {
    pub logits: Vec<f32>,
    /// Means over layers and key/value heads: of clustered keys, of all fixed keys, and of coverage as estimated.
    pub share: f64,
    pub fixed_share: f64,
    pub coverage: f64,
    pub scored: f64,
}

/// Indices of all layers, by what they were built with.
pub type Indices = Vec<(IndexOptions, Vec<Index>)>;

impl Context {
    /// Reads a text densely.
    pub fn read(model: &Model, bytes: &[u8], fixed: usize) -> Result<Self, String> {
        let mut capture = Capture {
            fixed,
            layers: Vec::new(),
            workspace: Vec::new(),
        };
        let logits = model.forward(bytes, &mut capture)?;
        let logits = logits[fixed * VOCABULARY..].to_vec();
        Ok(Context {
            fixed,
            layers: capture.layers,
            predictions: Predictions::new(&logits),
            logits,
        })
    }

    /// Judges logits of the input by a text's questions.
    pub fn judge(&self, case: &Case, logits: &[f32]) -> Answered {
        let mut all = vec![0.0; self.fixed * VOCABULARY];
        all.extend_from_slice(logits);
        case.judge(&all)
    }

    /// Reads the input by a rule.
    pub fn read_by(
        &self,
        model: &Model,
        bytes: &[u8],
        spec: &Spec,
        indices: &mut Indices,
    ) -> Result<Read, String> {
        let at = match indices
            .iter()
            .position(|(options, _)| *options == spec.options)
        {
            Some(at) => at,
            None => {
                let built = self.layers.iter().map(|layer| layer.index(spec.options));
                indices.push((spec.options, built.collect::<Result<_, _>>()?));
                indices.len() - 1
            }
        };
        let indices = &indices[at].1;
        let rules = self.rules(spec, indices)?;
        let mut squeezed = Squeezed {
            spec,
            layers: &self.layers,
            indices,
            rules: &rules,
            workspace: Workspace::new(),
            read: Read {
                logits: Vec::new(),
                share: 0.0,
                fixed_share: 0.0,
                coverage: 0.0,
                scored: 0.0,
            },
        };
        let logits = model.forward_at(self.fixed, &bytes[self.fixed..], &mut squeezed)?;
        let parts = self.layers.len() as f64;
        let read = squeezed.read;
        Ok(Read {
            logits,
            share: read.share / parts,
            fixed_share: read.fixed_share / parts,
            coverage: read.coverage / parts,
            scored: read.scored / parts,
        })
    }

    /// The rule of each layer, with thresholds from the fixed text.
    fn rules(&self, spec: &Spec, indices: &[Index]) -> Result<Vec<Centroids>, String> {
        let Method::Squeeze { rule, target, .. } = spec.method else {
            return Ok(Vec::new());
        };
        let observed = self
            .layers
            .iter()
            .zip(indices)
            .map(|(layer, index)| layer.observe(index, rule))
            .collect::<Result<Vec<_>, _>>()?;
        let mut all = observed[0].clone();
        observed[1..]
            .iter()
            .for_each(|observed| all.merge(observed));
        observed
            .iter()
            .map(|observed| {
                let observed = match spec.scope {
                    Scope::Model => &all,
                    Scope::Layer => observed,
                };
                let threshold = match target {
                    Target::Given => return Ok(rule),
                    Target::Share(share) => observed.threshold_for_share(share),
                    Target::Coverage(coverage) => observed.threshold_for_coverage(coverage),
                };
                let threshold = threshold.map_err(|error| error.to_string())?;
                let coarse = spec.coarse.map(|factor| factor * threshold);
                Ok(rule
                    .with_keep(Keep::Threshold(threshold))
                    .with_coarse_threshold(coarse))
            })
            .collect()
    }
}

impl Layer {
    fn shape(&self) -> [usize; 4] {
        let [_, heads, _, dim] = self.problem.kv_shape();
        [1, heads, self.k.len() / heads / dim, dim]
    }

    fn index(&self, options: IndexOptions) -> Result<Index, String> {
        let view = |data| TensorView::bhsd::<bf16>(data, self.shape());
        let named = |error: sample_attention::Error| error.to_string();
        let (k, v) = (view(&self.k).map_err(named)?, view(&self.v).map_err(named)?);
        Index::build(&k, &v, options).map_err(|error| error.to_string())
    }

    fn observe(&self, index: &Index, rule: Centroids) -> Result<Observed, String> {
        let squeeze = self.squeeze(index, rule)?;
        let [_, heads, _, dim] = self.problem.q_shape();
        let window = index.window();
        let skipped = (WINDOW - window) * dim;
        let q = TensorView::new(
            &self.q[skipped..],
            [1, heads, window, dim],
            [0, WINDOW * dim, dim, 1],
        );
        let q = q.map_err(|error| error.to_string())?;
        squeeze.observe(&q).map_err(|error| error.to_string())
    }

    fn squeeze<'a>(&self, index: &'a Index, rule: Centroids) -> Result<Squeeze<'a>, String> {
        let scale = self.problem.softmax_scale;
        Squeeze::new(index, rule, self.problem.q_heads, scale).map_err(|error| error.to_string())
    }
}

/// Dense attention that keeps the fixed text's keys and values.
struct Capture {
    fixed: usize,
    layers: Vec<Layer>,
    workspace: Vec<u8>,
}

impl Attention for Capture {
    fn attend(
        &mut self,
        _layer: usize,
        problem: Problem,
        inputs: &Inputs<'_>,
        o: TensorViewMut<'_>,
    ) -> Result<(), String> {
        let window = self.fixed.saturating_sub(WINDOW)..self.fixed;
        if window.len() < WINDOW {
            return Err(format!("the fixed text has fewer than {WINDOW} bytes"));
        }
        self.layers.push(Layer {
            problem,
            q: tokens(&inputs.q, window),
            k: tokens(&inputs.k, 0..self.fixed),
            v: tokens(&inputs.v, 0..self.fixed),
        });
        let named = |error: sample_attention::Error| error.to_string();
        let plan = Plan::dense(problem).map_err(named)?;
        self.workspace.resize(plan.workspace_bytes(), 0);
        plan.run(inputs, Outputs::new(o), &mut self.workspace)
            .map_err(named)?;
        Ok(())
    }
}

/// Some tokens as [1, heads, tokens, head_dim].
fn tokens(view: &TensorView<'_>, tokens: std::ops::Range<usize>) -> Vec<bf16> {
    let [_, heads, _, dim] = view.shape();
    let [_, by_head, by_token, _] = view.strides();
    let data: &[bf16] = bytemuck::cast_slice(view.as_bytes());
    let rows = (0..heads).flat_map(|head| tokens.clone().map(move |token| (head, token)));
    rows.flat_map(|(head, token)| &data[head * by_head + token * by_token..][..dim])
        .copied()
        .collect()
}

/// The attention of the input's layers by a rule.
struct Squeezed<'a> {
    spec: &'a Spec,
    layers: &'a [Layer],
    indices: &'a [Index],
    rules: &'a [Centroids],
    workspace: Workspace,
    read: Read,
}

impl Attention for Squeezed<'_> {
    fn attend(
        &mut self,
        layer: usize,
        problem: Problem,
        inputs: &Inputs<'_>,
        o: TensorViewMut<'_>,
    ) -> Result<(), String> {
        let named = |error: &dyn std::fmt::Display| format!("layer {layer}: {error}");
        let of_layer = &self.layers[layer];
        if let Method::Pages { page, share } = self.spec.method {
            let q = tokens(&inputs.q, 0..problem.q_len);
            let own = [&inputs.k, &inputs.v].map(|view| tokens(view, 0..problem.k_len));
            let kept = pages::attend(
                &pages::Pages {
                    problem,
                    fixed: [&of_layer.k, &of_layer.v],
                    own: [&own[0], &own[1]],
                    q: &q,
                    options: &self.spec.options,
                    page,
                    share,
                },
                o,
            );
            self.read.share += kept.0;
            self.read.fixed_share += kept.1;
            return Ok(());
        }
        let squeeze = of_layer.squeeze(&self.indices[layer], self.rules[layer])?;
        let report = squeeze
            .attend(inputs, Outputs::new(o), &mut self.workspace)
            .map_err(|error| named(&error))?;
        let heads = report.heads.len() as f64;
        for head in &report.heads {
            self.read.share += head.share / heads;
            self.read.fixed_share += head.fixed_share / heads;
            self.read.coverage += head.coverage / heads;
            self.read.scored += head.scored / heads;
        }
        Ok(())
    }
}
