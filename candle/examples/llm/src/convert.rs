//! The command `convert`: a folder of the laboratory's models as a Llama-format folder.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use serde::Deserialize;
use serde_json::json;

use crate::failure::Failure;
use crate::names;
use crate::weights::INDEX;

/// `config.json` of such a folder.
#[derive(Deserialize)]
struct Source {
    n_layers: usize,
    d_model: usize,
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
    ffn: usize,
    vocab: usize,
    rope_theta: f64,
    norm_eps: f64,
    rope: Option<String>,
}

/// Writes `to`, all of it or nothing, and says what was written.
///
/// # Errors
/// A folder that is not of such a model, and one that is there already.
pub fn convert(from: &Path, to: &Path) -> Result<String, Failure> {
    if to.exists() {
        return Err(Failure::of(
            to.display(),
            "is there already, and stays as it is",
        ));
    }
    let source = read(from)?;
    let shards = shards(from)?;
    let parent = match to.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    // Beside its place, so that a rename brings it there; inside of a temporary one, which is its maker's alone.
    let around =
        tempfile::TempDir::new_in(parent).map_err(|error| Failure::of(parent.display(), error))?;
    let folder = around.path().join("model");
    fs::create_dir(&folder).map_err(|error| Failure::of(folder.display(), error))?;
    let mut weight_map = BTreeMap::new();
    let mut total_bytes = 0;
    for (at, path) in shards.iter().enumerate() {
        let name = format!("model-{:05}-of-{:05}.safetensors", at + 1, shards.len());
        total_bytes += rename(path, &folder.join(&name), |tensor| {
            weight_map.insert(tensor, name.clone());
        })?;
    }
    let tensors = weight_map.len();
    let index = json!({"metadata": {"total_size": total_bytes}, "weight_map": weight_map});
    write(&folder.join(INDEX), &index)?;
    write(&folder.join("config.json"), &config(&source))?;
    fs::rename(&folder, to).map_err(|error| Failure::of(to.display(), error))?;
    Ok(format!(
        "{}: {tensors} tensors in {} files\n",
        to.display(),
        shards.len()
    ))
}

fn read(from: &Path) -> Result<Source, Failure> {
    let path = from.join("config.json");
    let text = fs::read_to_string(&path).map_err(|error| Failure::of(path.display(), error))?;
    let source: Source =
        serde_json::from_str(&text).map_err(|error| Failure::of(path.display(), error))?;
    match source.rope.as_deref() {
        None | Some("half-split") => Ok(source),
        Some(other) => Err(Failure::of(
            path.display(),
            format_args!("rope {other:?} is not that of Llama, half-split"),
        )),
    }
}

/// `model-*.safetensors`, by name.
fn shards(from: &Path) -> Result<Vec<PathBuf>, Failure> {
    let of_folder = |error: &dyn std::fmt::Display| Failure::of(from.display(), error);
    let mut shards = Vec::new();
    for entry in fs::read_dir(from).map_err(|error| of_folder(&error))? {
        let path = entry.map_err(|error| of_folder(&error))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("model-") && name.ends_with(".safetensors") {
            shards.push(path);
        }
    }
    if shards.is_empty() {
        return Err(of_folder(&"there is no model-*.safetensors"));
    }
    shards.sort();
    Ok(shards)
}

/// Copies a file's tensors under Llama's names, and returns their bytes.
fn rename(from: &Path, to: &Path, mut add: impl FnMut(String)) -> Result<usize, Failure> {
    let of_file = |error: &dyn std::fmt::Display| Failure::of(from.display(), error);
    let bytes = fs::read(from).map_err(|error| of_file(&error))?;
    let tensors = SafeTensors::deserialize(&bytes).map_err(|error| of_file(&error))?;
    let mut renamed = Vec::new();
    let mut total_bytes = 0;
    for (name, view) in tensors.tensors() {
        let Some(llama) = names::llama(&name) else {
            return Err(of_file(&format_args!(
                "{name:?} is no tensor of such a model"
            )));
        };
        total_bytes += view.data().len();
        add(llama.clone());
        renamed.push((llama, view));
    }
    let bytes = safetensors::serialize(renamed, None).map_err(|error| of_file(&error))?;
    fs::write(to, bytes).map_err(|error| Failure::of(to.display(), error))?;
    Ok(total_bytes)
}

fn config(source: &Source) -> serde_json::Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": source.d_model,
        "intermediate_size": source.ffn,
        "num_hidden_layers": source.n_layers,
        "num_attention_heads": source.n_heads,
        "num_key_value_heads": source.n_kv_heads,
        "head_dim": source.head_dim,
        "vocab_size": source.vocab,
        "rms_norm_eps": source.norm_eps,
        "rope_theta": source.rope_theta,
        "tie_word_embeddings": false,
        "torch_dtype": "bfloat16",
    })
}

fn write(path: &Path, value: &serde_json::Value) -> Result<(), Failure> {
    let text = format!("{value:#}\n");
    fs::write(path, text).map_err(|error| Failure::of(path.display(), error))
}
