//! `config.json` of a Llama-format folder.

use std::fs;
use std::path::Path;

use serde::Deserialize;

use crate::failure::Failure;

/// As Hugging Face writes it, of Llama, Qwen 2 and 3 and Mistral models. Biases and the norms of queries and keys are not in it: they
/// are there where the weights have them.
#[derive(Debug, Deserialize)]
pub struct Config {
    #[serde(default)]
    pub model_type: String,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    pub vocab_size: usize,
    #[serde(default = "default_eps")]
    pub rms_norm_eps: f64,
    rope_theta: Option<f64>,
    pub rope_scaling: Option<RopeScaling>,
    /// Newer files have theta and scaling in here.
    rope_parameters: Option<RopeScaling>,
    #[serde(default)]
    pub tie_word_embeddings: bool,
    #[serde(default = "default_act")]
    hidden_act: String,
    sliding_window: Option<usize>,
    use_sliding_window: Option<bool>,
    eos_token_id: Option<EndOfText>,
}

fn default_eps() -> f64 {
    1e-6
}

fn default_act() -> String {
    "silu".to_owned()
}

/// How rotary frequencies are stretched.
#[derive(Clone, Debug, Deserialize)]
pub struct RopeScaling {
    #[serde(alias = "type")]
    pub rope_type: Option<String>,
    pub rope_theta: Option<f64>,
    pub factor: Option<f64>,
    pub low_freq_factor: Option<f64>,
    pub high_freq_factor: Option<f64>,
    pub original_max_position_embeddings: Option<f64>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum EndOfText {
    One(u32),
    Many(Vec<u32>),
}

impl Config {
    /// # Errors
    /// A file that is not there or not of such a model.
    pub fn read(folder: &Path) -> Result<Self, Failure> {
        let path = folder.join("config.json");
        let text = fs::read_to_string(&path).map_err(|error| Failure::of(path.display(), error))?;
        let mut config: Config =
            serde_json::from_str(&text).map_err(|error| Failure::of(path.display(), error))?;
        if config.rope_scaling.is_none() {
            config.rope_scaling = config.rope_parameters.clone();
        }
        config
            .validate()
            .map_err(|reason| Failure::of(path.display(), reason))?;
        Ok(config)
    }

    fn validate(&self) -> Result<(), String> {
        let known = ["", "llama", "mistral", "qwen2", "qwen3"];
        if !known.contains(&self.model_type.as_str()) {
            return Err(format!(
                "model_type {:?} is not supported; these are: llama, mistral, qwen2, qwen3",
                self.model_type
            ));
        }
        if self.hidden_act != "silu" {
            return Err(format!(
                "hidden_act {:?} is not supported, only silu",
                self.hidden_act
            ));
        }
        let sizes = [
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.kv_heads()),
            ("head_dim", self.head_dim()),
            ("vocab_size", self.vocab_size),
        ];
        // Sizes whose products are those of tensors.
        for (name, size) in sizes {
            if size == 0 || size > 1 << 24 {
                return Err(format!("{name} is {size}, which no model has"));
            }
        }
        if !self.num_attention_heads.is_multiple_of(self.kv_heads()) {
            return Err(format!(
                "num_attention_heads {} is not a multiple of num_key_value_heads {}",
                self.num_attention_heads,
                self.kv_heads()
            ));
        }
        Ok(())
    }

    pub fn kv_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    pub fn head_dim(&self) -> usize {
        self.head_dim
            .unwrap_or(self.hidden_size / self.num_attention_heads.max(1))
    }

    pub fn rope_theta(&self) -> f64 {
        let in_parameters = self
            .rope_parameters
            .as_ref()
            .and_then(|rope| rope.rope_theta);
        self.rope_theta.or(in_parameters).unwrap_or(10_000.0)
    }

    /// Tokens that a query sees at most, where the model has such a window.
    pub fn sliding_window(&self) -> Option<usize> {
        self.sliding_window
            .filter(|_| self.use_sliding_window.unwrap_or(true))
    }

    /// Whether generation ends with this token.
    pub fn is_end_of_text(&self, token: u32) -> bool {
        match &self.eos_token_id {
            None => false,
            Some(EndOfText::One(end)) => *end == token,
            Some(EndOfText::Many(ends)) => ends.contains(&token),
        }
    }
}
