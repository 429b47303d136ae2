//! The forward pass of a decoder-only byte model: RMSNorm, rotary embedding, grouped-query attention, SwiGLU.

use half::bf16;
use half::slice::HalfFloatSliceExt;
use sample_attention::{Dtype, Inputs, Problem, TensorView, TensorViewMut};

use super::layers::{Rotary, gate, project, project_onto, rms_norm};
use super::weights::{Config, Matrix, VOCABULARY, Weights};

/// Positions that go through a layer's products at a time, which bounds the memory of the feed-forward layer.
const STRIP: usize = 1024;

/// What stands in for a layer's attention.
pub trait Attention {
    /// Attends one layer: `inputs` are bf16 and rotated already, `o` is f32.
    fn attend(
        &mut self,
        layer: usize,
        problem: Problem,
        inputs: &Inputs<'_>,
        o: TensorViewMut<'_>,
    ) -> Result<(), String>;
}

/// A model with its weights in f32.
pub struct Model {
    config: Config,
    embedding: Matrix,
    layers: Vec<Layer>,
    norm: Vec<f32>,
    head: Matrix,
}

/// What a layer's attention is given: [position, heads, head_dim], rotated.
pub struct Qkv {
    pub q: Vec<bf16>,
    pub k: Vec<bf16>,
    pub v: Vec<bf16>,
}

struct Layer {
    attention_norm: Vec<f32>,
    q: Matrix,
    k: Matrix,
    v: Matrix,
    o: Matrix,
    ffn_norm: Vec<f32>,
    gate: Matrix,
    up: Matrix,
    down: Matrix,
}

impl Model {
    /// Takes the tensors out of `weights` and checks their sizes.
    pub fn new(config: Config, mut weights: Weights) -> Result<Self, String> {
        let Config {
            model_dim,
            head_dim,
            ffn_dim,
            ..
        } = config;
        let (q_dim, kv_dim) = (config.q_heads * head_dim, config.kv_heads * head_dim);
        let layers = (0..config.layers)
            .map(|layer| {
                let mut take = |name: &str, outputs, inputs| {
                    weights.matrix(&format!("blocks.{layer}.{name}.weight"), outputs, inputs)
                };
                Ok(Layer {
                    attention_norm: take("n1", 1, model_dim)?.data,
                    q: take("wq", q_dim, model_dim)?,
                    k: take("wk", kv_dim, model_dim)?,
                    v: take("wv", kv_dim, model_dim)?,
                    o: take("wo", model_dim, q_dim)?,
                    ffn_norm: take("n2", 1, model_dim)?.data,
                    gate: take("w1", ffn_dim, model_dim)?,
                    up: take("w3", ffn_dim, model_dim)?,
                    down: take("w2", model_dim, ffn_dim)?,
                })
            })
            .collect::<Result<_, String>>()?;
        Ok(Model {
            embedding: weights.matrix("emb.weight", VOCABULARY, model_dim)?,
            layers,
            norm: weights.vector("nf.weight", model_dim)?,
            head: weights.matrix("head.weight", VOCABULARY, model_dim)?,
            config,
        })
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Logits [position, 256] of the byte after each of `bytes`, with every layer's attention done by `attention`:
    /// what it changes in one layer reaches the inputs of the next.
    pub fn forward(
        &self,
        bytes: &[u8],
        attention: &mut impl Attention,
    ) -> Result<Vec<f32>, String> {
        self.forward_at(0, bytes, attention)
    }

    /// The same of bytes that stand at the positions from `first` on: `attention` knows what stands before them.
    pub fn forward_at(
        &self,
        first: usize,
        bytes: &[u8],
        attention: &mut impl Attention,
    ) -> Result<Vec<f32>, String> {
        let config = &self.config;
        let rotary = Rotary::new(first, bytes.len(), config.head_dim, config.rope_theta);
        let mut x = self.embed(bytes);
        for layer in 0..self.layers.len() {
            self.layer(layer, &rotary, &mut x, attention)?;
        }
        Ok(self.logits(&x))
    }

    /// The residual stream [position, model_dim] before the first layer.
    pub fn embed(&self, bytes: &[u8]) -> Vec<f32> {
        let model_dim = self.config.model_dim;
        let rows = bytes.iter().flat_map(|&byte| {
            let row = usize::from(byte) * model_dim;
            &self.embedding.data[row..row + model_dim]
        });
        rows.copied().collect()
    }

    /// The turns of the first `len` positions.
    pub fn rotary(&self, len: usize) -> Rotary {
        Rotary::new(0, len, self.config.head_dim, self.config.rope_theta)
    }

    /// Attention of each layer over `len` positions.
    pub fn problem(&self, len: usize) -> Problem {
        let config = &self.config;
        Problem::causal(len, config.head_dim, Dtype::Bf16)
            .with_heads(config.q_heads, config.kv_heads)
    }

    /// Takes the residual stream through one layer.
    pub fn layer(
        &self,
        layer: usize,
        rotary: &Rotary,
        x: &mut [f32],
        attention: &mut impl Attention,
    ) -> Result<(), String> {
        let qkv = self.qkv(layer, rotary, x);
        let mut o = vec![0f32; qkv.q.len()];
        self.attend(layer, &qkv, &mut o, attention)?;
        self.after_attention(layer, &o, x);
        Ok(())
    }

    /// What a layer's attention is given.
    pub fn qkv(&self, layer: usize, rotary: &Rotary, x: &[f32]) -> Qkv {
        let (layer, config) = (&self.layers[layer], &self.config);
        let mut normed = vec![0.0; x.len()];
        rms_norm(x, &layer.attention_norm, config.norm_epsilon, &mut normed);
        Qkv {
            q: heads(&normed, &layer.q, Some((rotary, config.q_heads))),
            k: heads(&normed, &layer.k, Some((rotary, config.kv_heads))),
            v: heads(&normed, &layer.v, None),
        }
    }

    /// The rest of a layer, from attention's output on.
    pub fn after_attention(&self, layer: usize, o: &[f32], x: &mut [f32]) {
        let layer = &self.layers[layer];
        project_onto(o, &layer.o, x);
        self.feed_forward(layer, x);
    }

    /// A layer's output projection.
    pub fn output_projection(&self, layer: usize) -> &Matrix {
        &self.layers[layer].o
    }

    /// Logits [position, 256] of a residual stream after the last layer.
    pub fn logits(&self, x: &[f32]) -> Vec<f32> {
        let mut normed = vec![0.0; x.len()];
        rms_norm(x, &self.norm, self.config.norm_epsilon, &mut normed);
        let mut logits = vec![0.0; x.len() / self.config.model_dim * VOCABULARY];
        project(&normed, &self.head, &mut logits);
        logits
    }

    /// Attention of one layer; `o` is [position, q_heads, head_dim].
    pub fn attend(
        &self,
        layer: usize,
        Qkv { q, k, v }: &Qkv,
        o: &mut [f32],
        attention: &mut impl Attention,
    ) -> Result<(), String> {
        let problem = self.problem(q.len() / (self.config.q_heads * self.config.head_dim));
        let bshd = |[batch, heads, len, dim]: [usize; 4]| [batch, len, heads, dim];
        let (q_shape, kv_shape) = (bshd(problem.q_shape()), bshd(problem.kv_shape()));
        let named = |error: sample_attention::Error| format!("layer {layer}: {error}");
        let inputs = Inputs::new(
            TensorView::bshd(q, q_shape).map_err(named)?,
            TensorView::bshd(k, kv_shape).map_err(named)?,
            TensorView::bshd(v, kv_shape).map_err(named)?,
        );
        let o = TensorViewMut::bshd(o, q_shape).map_err(named)?;
        attention.attend(layer, problem, &inputs, o)
    }

    fn feed_forward(&self, layer: &Layer, x: &mut [f32]) {
        let (model_dim, ffn_dim) = (self.config.model_dim, self.config.ffn_dim);
        let strip = STRIP.min(x.len() / model_dim);
        let mut normed = vec![0.0; strip * model_dim];
        let mut gated = vec![0.0; strip * ffn_dim];
        let mut up = vec![0.0; strip * ffn_dim];
        for x in x.chunks_mut(STRIP * model_dim) {
            let rows = x.len() / model_dim;
            let normed = &mut normed[..x.len()];
            let (gated, up) = (&mut gated[..rows * ffn_dim], &mut up[..rows * ffn_dim]);
            rms_norm(x, &layer.ffn_norm, self.config.norm_epsilon, normed);
            project(normed, &layer.gate, gated);
            project(normed, &layer.up, up);
            gate(gated, up);
            project_onto(gated, &layer.down, x);
        }
    }
}

/// The heads [position, heads, head_dim] of one projection, rotated where it has positions, rounded to bf16.
fn heads(normed: &[f32], weight: &Matrix, rotary: Option<(&Rotary, usize)>) -> Vec<bf16> {
    let mut x = vec![0.0; normed.len() / weight.inputs * weight.outputs];
    project(normed, weight, &mut x);
    if let Some((rotary, heads)) = rotary {
        rotary.apply(&mut x, heads);
    }
    let mut rounded = vec![bf16::ZERO; x.len()];
    rounded.convert_from_f32_slice(&x);
    rounded
}
