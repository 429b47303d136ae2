//! `--plan` says what would run, and runs nothing.

use serde_json::Value;

use crate::support::{Folder, refused, run, succeeds};

fn planned(folder: &Folder, options: &str) -> Value {
    let text = succeeds(folder, &format!("--plan {options}"));
    serde_json::from_str(&text).unwrap()
}

#[test]
fn a_plan_states_its_path_and_workspace() {
    let folder = Folder::new();
    let sizes = "--k-len 131072 --q-heads 32 --kv-heads 8 --head-dim 128";
    let prefill = planned(&folder, &format!("{sizes} --threads 2"));
    assert_eq!(prefill["path"], "sparse");
    assert_eq!(prefill["problem"]["q_len"], 131_072);
    assert_eq!(prefill["threads"], 2);
    assert_eq!(prefill["stages"].as_array().unwrap().len(), 4);
    let chunk = planned(&folder, &format!("{sizes} --q-len 8192 --backend cuda"));
    assert_eq!(chunk["path"], "sparse");
    assert!(chunk["workspace_bytes"].as_u64().unwrap() <= 96 << 20);
    let token = planned(
        &folder,
        &format!("{sizes} --q-len 1 --backend emulator --dense"),
    );
    assert_eq!(token["path"], "dense");
    assert_eq!(token["policy"], Value::Null);
    assert!(token["workspace_bytes"].as_u64().unwrap() <= 4 << 20);
    assert_eq!(token["stages"], serde_json::json!(["sparse_flash"]));
    let short = planned(&folder, "--k-len 100 --coverage 0.9");
    assert_eq!(short["path"], "short");
    assert!((short["policy"]["coverage"].as_f64().unwrap() - 0.9).abs() < 1e-6);
    assert!(folder.names().is_empty());
}

#[test]
fn what_a_plan_cannot_be_is_said_in_a_line() {
    let folder = Folder::new();
    for (options, words) in [
        ("--plan", "--k-len"),
        ("--q-len 5 --k-len 5", "--plan"),
        ("--plan --k-len 0", "--k-len"),
        ("--plan --k-len 100 --input x", "--input"),
        ("--plan --k-len 100 --synthetic 100", "--synthetic"),
        ("--plan --k-len 100 --output x", "--output"),
        ("--plan --k-len 100 --q-heads 3 --kv-heads 2", "q_heads (3)"),
        ("--plan --k-len 100 --head-dim 9", "head_dim 9"),
        ("--plan --k-len 100 --coverage 2", "coverage is 2"),
        ("--plan --k-len 100 --dense --coverage 0.5", "--coverage"),
        (
            "--plan --k-len 100 --head-dim 80 --backend cuda",
            "no GPU kernel",
        ),
        ("--plan --k-len 100 --seed 1", "--seed"),
    ] {
        let line = refused(&run(&folder, options), options);
        assert!(line.contains(words), "{options}: {line}");
    }
}
