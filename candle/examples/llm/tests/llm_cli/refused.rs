//! Bad input: one line that says what, and exit code 2.

use std::fs;

use serde_json::json;
use tempfile::TempDir;

use crate::folder::{LLAMA, Tiny, prompt};
use crate::{refusal, text};

fn refused(folder: &TempDir, more: &[&str]) -> String {
    let file = folder.path().join("prompt.txt");
    if !file.exists() {
        prompt(folder.path(), 50);
    }
    let mut args = vec![
        "run",
        "--model",
        text(folder.path()),
        "--prompt",
        text(&file),
    ];
    args.extend(more);
    refusal(&args)
}

#[test]
fn folders_without_a_model() {
    let empty = TempDir::new().unwrap();
    let line = refused(&empty, &[]);
    assert!(line.contains("config.json"), "{line}");
    Tiny::new(LLAMA).write_config(empty.path());
    let line = refused(&empty, &[]);
    assert!(line.contains("neither model.safetensors nor"), "{line}");
    fs::write(empty.path().join("model.safetensors"), b"no tensors").unwrap();
    let line = refused(&empty, &[]);
    assert!(line.contains("model.safetensors: "), "{line}");
    fs::write(empty.path().join("config.json"), b"{").unwrap();
    let line = refused(&empty, &[]);
    assert!(line.contains("config.json: "), "{line}");
}

#[test]
fn shards_that_are_not_there_or_elsewhere() {
    let folder = Tiny::new(LLAMA).write(true);
    fs::remove_file(folder.path().join("model-2-of-3.safetensors")).unwrap();
    let line = refused(&folder, &[]);
    assert!(line.contains("model-2-of-3.safetensors"), "{line}");
    let index = json!({"weight_map": {"lm_head.weight": "../model.safetensors"}});
    let path = folder.path().join("model.safetensors.index.json");
    fs::write(path, index.to_string()).unwrap();
    let line = refused(&folder, &[]);
    assert!(line.contains("is no file of the folder"), "{line}");
}

#[test]
fn tensors_that_are_missing_or_have_another_shape() {
    let mut model = Tiny::new(LLAMA);
    let name = "model.layers.1.mlp.up_proj.weight";
    let (shape, values) = model.tensors.remove(name).unwrap();
    let line = refused(&model.write(false), &[]);
    assert!(
        line.contains(&format!("no tensor {name}, which must be [48, 32]")),
        "{line}"
    );
    model
        .tensors
        .insert(name.to_owned(), (vec![shape[1], shape[0]], values));
    let line = refused(&model.write(false), &[]);
    assert!(
        line.contains("has shape [32, 48], but config.json says [48, 32]"),
        "{line}"
    );
}

#[test]
fn configs_that_no_model_has() {
    let model = Tiny::new(LLAMA);
    for (key, value, words) in [
        (
            "model_type",
            json!("gpt2"),
            "model_type \"gpt2\" is not supported",
        ),
        ("hidden_act", json!("gelu"), "only silu"),
        (
            "num_key_value_heads",
            json!(3),
            "is not a multiple of num_key_value_heads 3",
        ),
        ("num_hidden_layers", json!(0), "num_hidden_layers is 0"),
        ("head_dim", json!(12), "has shape"),
        ("sliding_window", json!(20), "sliding window of 20 tokens"),
        (
            "rope_scaling",
            json!({"rope_type": "yarn"}),
            "rope_type \"yarn\"",
        ),
        (
            "rope_scaling",
            json!({"rope_type": "llama3"}),
            "needs factor",
        ),
        ("vocab_size", json!(300), "no tokenizer.json"),
    ] {
        let mut model = model.clone();
        model.config[key] = value;
        let line = refused(&model.write(false), &[]);
        assert!(line.contains(words), "{key}: {line}");
    }
}

#[test]
fn options_and_prompts() {
    let folder = Tiny::new(LLAMA).write(false);
    for (more, words) in [
        (
            &["--tokens", "51"][..],
            "--tokens 51, and the prompt has 50",
        ),
        (&["--tokens", "0"], "--tokens 0"),
        (&["--page", "20"], "--page 20"),
        (&["--device", "tpu"], "use cpu, cuda or cuda:N"),
        (&["--device", "cuda"], "cuda"),
        (&["--coverage", "2"], "coverage is 2"),
        (&["--page"], "--page"),
    ] {
        let line = refused(&folder, more);
        assert!(line.contains(words), "{more:?}: {line}");
    }
    fs::write(folder.path().join("prompt.txt"), b"").unwrap();
    let line = refused(&folder, &[]);
    assert!(line.contains("the prompt is empty"), "{line}");
    fs::write(folder.path().join("prompt.txt"), b"text").unwrap();
    fs::write(folder.path().join("tokenizer.json"), b"{}").unwrap();
    let line = refused(&folder, &[]);
    assert!(line.contains("tokenizer.json"), "{line}");
    assert!(refusal(&[]).contains("no command"));
}
