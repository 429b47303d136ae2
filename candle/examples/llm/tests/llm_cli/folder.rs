//! Model folders.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Shape and values of a tensor.
pub type Weight = (Vec<usize>, Vec<f32>);

/// A model of Llama's kind with random weights.
#[derive(Clone)]
pub struct Tiny {
    pub config: Value,
    pub tensors: BTreeMap<String, Weight>,
}

pub const HIDDEN: usize = 32;
pub const LAYERS: usize = 2;
pub const HEADS: usize = 4;
pub const KV_HEADS: usize = 2;
pub const HEAD_DIM: usize = 16;
pub const FFN: usize = 48;
pub const VOCABULARY: usize = 256;
pub const EPS: f64 = 1e-5;
pub const THETA: f64 = 10_000.0;

/// What models of the kind differ in.
#[derive(Clone, Copy)]
pub struct Kind {
    pub model_type: &'static str,
    pub biases: bool,
    pub head_norms: bool,
    pub tied: bool,
}

pub const LLAMA: Kind = Kind {
    model_type: "llama",
    biases: false,
    head_norms: false,
    tied: false,
};

pub const QWEN2: Kind = Kind {
    model_type: "qwen2",
    biases: true,
    ..LLAMA
};

pub const QWEN3: Kind = Kind {
    model_type: "qwen3",
    head_norms: true,
    tied: true,
    ..LLAMA
};

impl Tiny {
    pub fn new(kind: Kind) -> Self {
        let mut state = 1u64;
        let mut random = || {
            // Knuth's MMIX generator; its high bits are good.
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
        };
        let mut tensors = BTreeMap::new();
        let mut matrix = |name: String, shape: &[usize], scale: f32, mean: f32| {
            let count = shape.iter().product();
            let values = (0..count).map(|_| mean + scale * random()).collect();
            tensors.insert(name, (shape.to_vec(), values));
        };
        let (q, kv) = (HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM);
        matrix(
            "model.embed_tokens.weight".into(),
            &[VOCABULARY, HIDDEN],
            2.0,
            0.0,
        );
        matrix("model.norm.weight".into(), &[HIDDEN], 0.5, 1.0);
        if !kind.tied {
            matrix("lm_head.weight".into(), &[VOCABULARY, HIDDEN], 1.0, 0.0);
        }
        for layer in 0..LAYERS {
            let name = |part: &str| format!("model.layers.{layer}.{part}");
            for (part, out, input) in [
                ("self_attn.q_proj", q, HIDDEN),
                ("self_attn.k_proj", kv, HIDDEN),
                ("self_attn.v_proj", kv, HIDDEN),
                ("self_attn.o_proj", HIDDEN, q),
                ("mlp.gate_proj", FFN, HIDDEN),
                ("mlp.up_proj", FFN, HIDDEN),
                ("mlp.down_proj", HIDDEN, FFN),
            ] {
                matrix(name(&format!("{part}.weight")), &[out, input], 0.8, 0.0);
                if kind.biases
                    && ["q_proj", "k_proj", "v_proj"]
                        .iter()
                        .any(|p| part.ends_with(p))
                {
                    matrix(name(&format!("{part}.bias")), &[out], 1.0, 0.0);
                }
            }
            matrix(name("input_layernorm.weight"), &[HIDDEN], 0.5, 1.0);
            matrix(name("post_attention_layernorm.weight"), &[HIDDEN], 0.5, 1.0);
            if kind.head_norms {
                matrix(name("self_attn.q_norm.weight"), &[HEAD_DIM], 0.5, 1.0);
                matrix(name("self_attn.k_norm.weight"), &[HEAD_DIM], 0.5, 1.0);
            }
        }
        let config = json!({
            "model_type": kind.model_type,
            "hidden_act": "silu",
            "hidden_size": HIDDEN,
            "intermediate_size": FFN,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KV_HEADS,
            "head_dim": HEAD_DIM,
            "vocab_size": VOCABULARY,
            "rms_norm_eps": EPS,
            "rope_theta": THETA,
            "tie_word_embeddings": kind.tied,
        });
        Tiny { config, tensors }
    }

    /// A folder with config.json, and one file of weights or three with an index.
    pub fn write(&self, is_sharded: bool) -> TempDir {
        let folder = TempDir::new().unwrap();
        self.write_config(folder.path());
        let count = if is_sharded { 3 } else { 1 };
        let mut weight_map = BTreeMap::new();
        for shard in 0..count {
            let name = match is_sharded {
                true => format!("model-{}-of-3.safetensors", shard + 1),
                false => "model.safetensors".to_owned(),
            };
            let of_shard = self.tensors.iter().skip(shard).step_by(count);
            let of_shard: Vec<_> = of_shard.collect();
            for (tensor, _) in &of_shard {
                weight_map.insert((*tensor).clone(), name.clone());
            }
            write_tensors(&folder.path().join(name), &of_shard);
        }
        if is_sharded {
            let index = json!({"metadata": {}, "weight_map": weight_map});
            fs::write(
                folder.path().join("model.safetensors.index.json"),
                index.to_string(),
            )
            .unwrap();
        }
        folder
    }

    pub fn write_config(&self, folder: &Path) {
        fs::write(folder.join("config.json"), self.config.to_string()).unwrap();
    }
}

/// A safetensors file of f32.
pub fn write_tensors(path: &Path, tensors: &[(&String, &Weight)]) {
    let bytes: Vec<(&String, &Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, (shape, values))| {
            (
                *name,
                shape,
                values.iter().flat_map(|x| x.to_le_bytes()).collect(),
            )
        })
        .collect();
    let views = bytes.iter().map(|(name, shape, bytes)| {
        let view = TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap();
        (name.as_str(), view)
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// Bytes that look a little like text.
pub fn prompt(folder: &Path, len: usize) -> Vec<u8> {
    let bytes: Vec<u8> = (0..len).map(|at| (at * at % 89 + 32) as u8).collect();
    fs::write(folder.join("prompt.txt"), &bytes).unwrap();
    bytes
}
