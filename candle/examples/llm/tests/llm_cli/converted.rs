//! The command `convert`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::json;
use tempfile::TempDir;

use crate::folder::{
    EPS, FFN, HEAD_DIM, HEADS, HIDDEN, KV_HEADS, LAYERS, LLAMA, THETA, Tiny, VOCABULARY, prompt,
    write_tensors,
};
use crate::{printed, refusal, text};

/// The laboratory's name of a tensor that has one of Llama's.
fn ours(name: &str) -> String {
    let mut name = name
        .replace("model.embed_tokens", "emb")
        .replace("model.norm", "nf")
        .replace("lm_head", "head")
        .replace("model.layers.", "blocks.");
    for (llama, ours) in [
        ("input_layernorm", "n1"),
        ("post_attention_layernorm", "n2"),
        ("self_attn.q_proj", "wq"),
        ("self_attn.k_proj", "wk"),
        ("self_attn.v_proj", "wv"),
        ("self_attn.o_proj", "wo"),
        ("mlp.gate_proj", "w1"),
        ("mlp.down_proj", "w2"),
        ("mlp.up_proj", "w3"),
    ] {
        name = name.replace(llama, ours);
    }
    name
}

fn write_ours(model: &Tiny) -> TempDir {
    let folder = TempDir::new().unwrap();
    let config = json!({
        "n_layers": LAYERS, "d_model": HIDDEN, "n_heads": HEADS, "n_kv_heads": KV_HEADS,
        "head_dim": HEAD_DIM, "ffn": FFN, "vocab": VOCABULARY, "rope_theta": THETA,
        "norm_eps": EPS, "rope": "half-split",
    });
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let named: BTreeMap<String, _> = model
        .tensors
        .iter()
        .map(|(name, tensor)| (ours(name), tensor))
        .collect();
    let named: Vec<_> = named.iter().map(|(name, tensor)| (name, *tensor)).collect();
    let (first, second) = named.split_at(named.len() / 2);
    write_tensors(&folder.path().join("model-0.safetensors"), first);
    write_tensors(&folder.path().join("model-1.safetensors"), second);
    folder
}

fn entries(folder: &Path) -> usize {
    fs::read_dir(folder).unwrap().count()
}

#[test]
fn a_converted_folder_runs_as_the_original() {
    let model = Tiny::new(LLAMA);
    let from = write_ours(&model);
    let parent = TempDir::new().unwrap();
    let to = parent.path().join("converted");
    let said = printed(&["convert", "--from", text(from.path()), "--to", text(&to)]);
    assert!(said.contains("21 tensors in 2 files"), "{said}");
    assert_eq!(entries(parent.path()), 1);

    let original = model.write(false);
    prompt(original.path(), 60);
    let file = original.path().join("prompt.txt");
    let [a, b] = [original.path(), &to].map(|model| {
        let report = printed(&["run", "--model", text(model), "--prompt", text(&file)]);
        let line = report
            .lines()
            .find(|line| line.starts_with("dense"))
            .unwrap();
        line.split_once("tok/s").unwrap().1.to_owned()
    });
    assert_eq!(a, b);
}

#[test]
fn what_cannot_be_converted_leaves_nothing_behind() {
    let mut model = Tiny::new(LLAMA);
    let parent = TempDir::new().unwrap();
    let to = parent.path().join("converted");
    model.tensors.insert(
        "model.layers.0.other.weight".to_owned(),
        (vec![1], vec![0.0]),
    );
    let from = write_ours(&model);
    let line = refusal(&["convert", "--from", text(from.path()), "--to", text(&to)]);
    assert!(line.contains("blocks.0.other.weight"), "{line}");
    assert_eq!(entries(parent.path()), 0);

    fs::create_dir(&to).unwrap();
    fs::write(to.join("kept"), b"kept").unwrap();
    let line = refusal(&["convert", "--from", text(from.path()), "--to", text(&to)]);
    assert!(line.contains("is there already"), "{line}");
    assert_eq!(entries(&to), 1);
    let nowhere = parent.path().join("nowhere");
    let line = refusal(&["convert", "--from", text(&nowhere), "--to", text(&nowhere)]);
    assert!(line.contains("config.json"), "{line}");
}
