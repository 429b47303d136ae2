//! Loading a model: `config.json` and every `model*.safetensors` of a directory.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::Value;

/// Sizes and constants of a model, from its `config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub layers: usize,
    /// Width of the residual stream.
    pub model_dim: usize,
    pub q_heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Width of the gated feed-forward layer.
    pub ffn_dim: usize,
    /// Base of the rotary embedding's wavelengths.
    pub rope_theta: f32,
    /// Added to the mean square before its root.
    pub norm_epsilon: f32,
}

impl Config {
    fn parse(text: &str) -> Result<Self, String> {
        let json: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let size = |name: &str| match json[name].as_u64() {
            Some(size) if size > 0 => Ok(size as usize),
            _ => Err(format!("`{name}` is not a positive integer")),
        };
        let real = |name: &str| match json[name].as_f64() {
            Some(real) if real > 0.0 => Ok(real as f32),
            _ => Err(format!("`{name}` is not a positive number")),
        };
        let config = Config {
            layers: size("n_layers")?,
            model_dim: size("d_model")?,
            q_heads: size("n_heads")?,
            kv_heads: size("n_kv_heads")?,
            head_dim: size("head_dim")?,
            ffn_dim: size("ffn")?,
            rope_theta: real("rope_theta")?,
            norm_epsilon: real("norm_eps")?,
        };
        if size("vocab")? != VOCABULARY {
            return Err(format!(
                "`vocab` must be {VOCABULARY}: the model reads bytes"
            ));
        }
        if !config.head_dim.is_multiple_of(2) {
            return Err("`head_dim` is odd: the rotary embedding turns halves".into());
        }
        Ok(config)
    }
}

/// Byte values.
pub const VOCABULARY: usize = 256;

/// A weight of `outputs` rows of `inputs` numbers each; a vector has one row.
#[derive(Clone, Debug)]
pub struct Matrix {
    pub outputs: usize,
    pub inputs: usize,
    pub data: Vec<f32>,
}

/// The tensors of a model by name, each to be taken once.
#[derive(Default)]
pub struct Weights {
    tensors: HashMap<String, Matrix>,
}

impl Weights {
    /// Reads a model's directory.
    pub fn load(directory: &Path) -> Result<(Config, Self), String> {
        let named = |path: &Path, why: String| format!("{}: {why}", path.display());
        let read = |path: &Path| fs::read(path).map_err(|error| named(path, error.to_string()));
        let path = directory.join("config.json");
        let config = String::from_utf8(read(&path)?)
            .map_err(|error| error.to_string())
            .and_then(|text| Config::parse(&text))
            .map_err(|why| named(&path, why))?;
        let mut weights = Weights::default();
        for path in model_files(directory)? {
            weights
                .add_file(&read(&path)?)
                .map_err(|why| named(&path, why))?;
        }
        Ok((config, weights))
    }

    fn add_file(&mut self, bytes: &[u8]) -> Result<(), String> {
        let file = SafeTensors::deserialize(bytes).map_err(|error| error.to_string())?;
        for (name, tensor) in file.iter() {
            let (outputs, inputs) = match *tensor.shape() {
                [inputs] => (1, inputs),
                [outputs, inputs] => (outputs, inputs),
                _ => return Err(format!("`{name}` is neither a vector nor a matrix")),
            };
            let data = floats(&tensor)
                .ok_or_else(|| format!("`{name}` is {:?}, not BF16, F16 or F32", tensor.dtype()))?;
            self.insert(
                name,
                Matrix {
                    outputs,
                    inputs,
                    data,
                },
            );
        }
        Ok(())
    }

    pub fn insert(&mut self, name: &str, matrix: Matrix) {
        self.tensors.insert(name.to_owned(), matrix);
    }

    /// Takes a matrix of exactly this size.
    pub fn matrix(&mut self, name: &str, outputs: usize, inputs: usize) -> Result<Matrix, String> {
        let matrix = self
            .tensors
            .remove(name)
            .ok_or_else(|| format!("the model has no tensor `{name}`"))?;
        if (matrix.outputs, matrix.inputs) != (outputs, inputs) {
            return Err(format!(
                "`{name}` is {} x {}, but config.json makes it {outputs} x {inputs}",
                matrix.outputs, matrix.inputs
            ));
        }
        Ok(matrix)
    }

    /// Takes a vector of exactly this length.
    pub fn vector(&mut self, name: &str, len: usize) -> Result<Vec<f32>, String> {
        self.matrix(name, 1, len).map(|matrix| matrix.data)
    }
}

pub fn model_files(directory: &Path) -> Result<Vec<PathBuf>, String> {
    let entries =
        fs::read_dir(directory).map_err(|error| format!("{}: {error}", directory.display()))?;
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("model") && name.ends_with(".safetensors")
        })
        .collect();
    files.sort();
    if files.is_empty() {
        return Err(format!("{}: no model*.safetensors", directory.display()));
    }
    Ok(files)
}

/// `None` for other types.
fn floats(tensor: &TensorView<'_>) -> Option<Vec<f32>> {
    let data = tensor.data();
    let pairs = || data.chunks_exact(2).map(|pair| [pair[0], pair[1]]);
    match tensor.dtype() {
        Dtype::BF16 => Some(
            pairs()
                .map(|pair| bf16::from_le_bytes(pair).to_f32())
                .collect(),
        ),
        Dtype::F16 => Some(
            pairs()
                .map(|pair| f16::from_le_bytes(pair).to_f32())
                .collect(),
        ),
        Dtype::F32 => Some(
            data.chunks_exact(4)
                .map(|quad| f32::from_le_bytes([quad[0], quad[1], quad[2], quad[3]]))
                .collect(),
        ),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"{"n_layers": 6, "d_model": 512, "n_heads": 4, "n_kv_heads": 2, "head_dim": 128,
        "ffn": 1408, "vocab": 256, "rope_theta": 500000.0, "norm_eps": 1e-05}"#;

    #[test]
    fn a_config_is_read() {
        let config = Config::parse(CONFIG).unwrap();
        assert_eq!(
            (config.layers, config.kv_heads, config.ffn_dim),
            (6, 2, 1408)
        );
        assert_eq!((config.rope_theta, config.norm_epsilon), (500_000.0, 1e-5));
    }

    #[test]
    fn what_is_wrong_with_a_config_is_named() {
        for (from, to, named) in [
            ("\"n_layers\": 6", "\"n_layers\": 0", "n_layers"),
            ("\"vocab\": 256", "\"vocab\": 257", "vocab"),
            ("1e-05", "\"small\"", "norm_eps"),
            ("\"head_dim\": 128", "\"head_dim\": 127", "head_dim"),
        ] {
            let why = Config::parse(&CONFIG.replace(from, to)).unwrap_err();
            assert!(why.contains(named), "{why}");
        }
        assert!(Config::parse("{").is_err());
    }

    #[test]
    fn a_matrix_of_another_size_is_refused() {
        let mut weights = Weights::default();
        let matrix = Matrix {
            outputs: 2,
            inputs: 3,
            data: vec![0.0; 6],
        };
        weights.insert("w", matrix);
        assert!(weights.matrix("w", 3, 2).unwrap_err().contains("2 x 3"));
        assert!(weights.matrix("v", 3, 2).unwrap_err().contains("`v`"));
    }

    #[test]
    fn a_file_of_bf16_is_widened() {
        let bits: Vec<u8> = [1.5f32, -0.25]
            .iter()
            .flat_map(|&x| bf16::from_f32(x).to_le_bytes())
            .collect();
        let view = TensorView::new(Dtype::BF16, vec![1, 2], &bits).unwrap();
        let file = safetensors::serialize([("w", view)], None).unwrap();
        let mut weights = Weights::default();
        weights.add_file(&file).unwrap();
        assert_eq!(weights.matrix("w", 1, 2).unwrap().data, [1.5, -0.25]);
    }
}
