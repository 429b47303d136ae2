//! A decoder of Llama's kind.

use candle_core::{DType, Device, Module, Tensor};
use candle_nn::ops::rms_norm;
use candle_sample_attention::{
    flash_attn, flash_attn_varlen_paged_windowed, sample_attn, sample_attn_varlen_paged,
};

use crate::cache::{Cache, Keys, Shape};
use crate::config::Config;
use crate::failure::Failure;
use crate::policies::LayerPolicies;
use crate::rope::Rope;
use crate::weights::Weights;

pub struct Model {
    pub config: Config,
    embedding: Tensor,
    layers: Vec<Layer>,
    norm: Tensor,
    head: Tensor,
    rope: Rope,
    eps: f32,
    dtype: DType,
    device: Device,
}

struct Layer {
    input_norm: Tensor,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    q_norm: Option<Tensor>,
    k_norm: Option<Tensor>,
    after_norm: Tensor,
    gate: Linear,
    up: Linear,
    down: Linear,
}

/// x · weightᵀ + bias.
struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    fn load(weights: &Weights, name: &str, (out, input): (usize, usize)) -> Result<Self, Failure> {
        let bias = format!("{name}.bias");
        Ok(Linear {
            weight: weights.get(&format!("{name}.weight"), &[out, input])?,
            bias: match weights.has(&bias) {
                true => Some(weights.get(&bias, &[out])?),
                false => None,
            },
        })
    }
}

impl Module for Linear {
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let x = x.matmul(&self.weight.t()?)?;
        match &self.bias {
            Some(bias) => x.broadcast_add(bias),
            None => Ok(x),
        }
    }
}

/// What queries attend to.
#[derive(Clone, Copy)]
pub enum Attention<'a> {
    Dense,
    Sparse(&'a LayerPolicies),
}

impl Layer {
    fn load(weights: &Weights, config: &Config, layer: usize) -> Result<Self, Failure> {
        let (hidden, head_dim) = (config.hidden_size, config.head_dim());
        let q_width = config.num_attention_heads * head_dim;
        let kv_width = config.kv_heads() * head_dim;
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        let linear = |part: &str, shape| Linear::load(weights, &name(part), shape);
        let norm = |part: &str, size| weights.get(&name(&format!("{part}.weight")), &[size]);
        let optional = |part: &str| match weights.has(&name(&format!("{part}.weight"))) {
            true => norm(part, head_dim).map(Some),
            false => Ok(None),
        };
        Ok(Layer {
            input_norm: norm("input_layernorm", hidden)?,
            q: linear("self_attn.q_proj", (q_width, hidden))?,
            k: linear("self_attn.k_proj", (kv_width, hidden))?,
            v: linear("self_attn.v_proj", (kv_width, hidden))?,
            o: linear("self_attn.o_proj", (hidden, q_width))?,
            q_norm: optional("self_attn.q_norm")?,
            k_norm: optional("self_attn.k_norm")?,
            after_norm: norm("post_attention_layernorm", hidden)?,
            gate: linear("mlp.gate_proj", (config.intermediate_size, hidden))?,
            up: linear("mlp.up_proj", (config.intermediate_size, hidden))?,
            down: linear("mlp.down_proj", (hidden, config.intermediate_size))?,
        })
    }
}

impl Model {
    /// # Errors
    /// Tensors that are missing or have another shape than the config says.
    pub fn load(
        config: Config,
        weights: &Weights,
        positions: usize,
        dtype: DType,
        device: &Device,
    ) -> Result<Self, Failure> {
        let (vocabulary, hidden) = (config.vocab_size, config.hidden_size);
        let embedding = weights.get("model.embed_tokens.weight", &[vocabulary, hidden])?;
        let head = match config.tie_word_embeddings && !weights.has("lm_head.weight") {
            true => embedding.clone(),
            false => weights.get("lm_head.weight", &[vocabulary, hidden])?,
        };
        let layers = (0..config.num_hidden_layers)
            .map(|layer| Layer::load(weights, &config, layer))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Model {
            embedding,
            layers,
            norm: weights.get("model.norm.weight", &[hidden])?,
            head,
            rope: Rope::new(&config, positions, dtype, device)?,
            eps: config.rms_norm_eps as f32,
            config,
            dtype,
            device: device.clone(),
        })
    }

    /// An empty cache for each layer.
    pub fn caches(&self, capacity: usize, page: usize) -> candle_core::Result<Vec<Cache>> {
        let shape = Shape {
            capacity,
            kv_heads: self.config.kv_heads(),
            head_dim: self.config.head_dim(),
            page,
            dtype: self.dtype,
        };
        self.layers
            .iter()
            .map(|_| Cache::new(&shape, &self.device))
            .collect()
    }

    /// Hidden states [tokens, hidden_size] behind the last norm. `after_layer` is called with each layer's number.
    pub fn forward(
        &self,
        tokens: &[u32],
        caches: &mut [Cache],
        attention: Attention<'_>,
        mut after_layer: impl FnMut(usize),
    ) -> candle_core::Result<Tensor> {
        let tokens = Tensor::new(tokens, &self.device)?;
        let mut x = self.embedding.index_select(&tokens, 0)?;
        for (at, (layer, cache)) in self.layers.iter().zip(caches).enumerate() {
            let h = rms_norm(&x, &layer.input_norm, self.eps)?;
            x = (x + self.attend((at, layer), &h, cache, attention)?)?;
            let h = rms_norm(&x, &layer.after_norm, self.eps)?;
            let gated = (layer.gate.forward(&h)?.silu()? * layer.up.forward(&h)?)?;
            x = (x + layer.down.forward(&gated)?)?;
            after_layer(at);
        }
        rms_norm(&x, &self.norm, self.eps)
    }

    fn attend(
        &self,
        (at, layer): (usize, &Layer),
        h: &Tensor,
        cache: &mut Cache,
        attention: Attention<'_>,
    ) -> candle_core::Result<Tensor> {
        let (tokens, head_dim) = (h.dim(0)?, self.config.head_dim());
        let heads_of = |linear: &Linear, norm: &Option<Tensor>| {
            let x = linear.forward(h)?.reshape((1, tokens, (), head_dim))?;
            match norm {
                Some(norm) => rms_norm(&x, norm, self.eps),
                None => Ok(x),
            }
        };
        let position = cache.len();
        let q = self
            .rope
            .apply(&heads_of(&layer.q, &layer.q_norm)?, position)?;
        let k = self
            .rope
            .apply(&heads_of(&layer.k, &layer.k_norm)?, position)?;
        let v = heads_of(&layer.v, &None)?;
        cache.append(&k.squeeze(0)?, &v.squeeze(0)?)?;
        let scale = 1.0 / (head_dim as f32).sqrt();
        let o = match cache.keys()? {
            Keys::Whole { k, v } => match attention {
                Attention::Dense => flash_attn(&q, &k, &v, scale, true),
                Attention::Sparse(policies) => sample_attn(&q, &k, &v, scale, policies.of(at)),
            },
            Keys::Paged { k, v, table, page } => {
                let q = q.squeeze(0)?;
                let k_len = cache.len();
                let ends_q = Tensor::new(&[0, tokens as u32], &self.device)?;
                let ends_k = Tensor::new(&[0, k_len as u32], &self.device)?;
                match attention {
                    Attention::Dense => flash_attn_varlen_paged_windowed(
                        &q,
                        &k,
                        &v,
                        &ends_q,
                        &ends_k,
                        &table,
                        None,
                        tokens,
                        k_len,
                        scale,
                        None,
                        Some(0),
                        page,
                        None,
                    ),
                    Attention::Sparse(policies) => sample_attn_varlen_paged(
                        &q,
                        &k,
                        &v,
                        &ends_q,
                        &ends_k,
                        &table,
                        tokens,
                        k_len,
                        scale,
                        page,
                        policies.of(at),
                    ),
                }
            }
        }?;
        layer.o.forward(&o.reshape((tokens, ()))?)
    }

    /// Logits [tokens, vocabulary] of hidden states, f32.
    pub fn logits(&self, hidden: &Tensor) -> candle_core::Result<Tensor> {
        hidden.matmul(&self.head.t()?)?.to_dtype(DType::F32)
    }

    /// The likeliest token behind the last hidden state.
    pub fn next_token(&self, hidden: &Tensor) -> candle_core::Result<u32> {
        let last = hidden.narrow(0, hidden.dim(0)? - 1, 1)?;
        self.logits(&last)?.squeeze(0)?.argmax(0)?.to_scalar()
    }

    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    pub fn device(&self) -> &Device {
        &self.device
    }
}
