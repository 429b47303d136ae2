//! `--profile`: a policy for each head.

use safetensors::SafeTensors;
use sample_attention::profile::Profile;
use sample_attention::{
    Dtype, Fallback, HeadPlan, HeadPolicy, Outputs, Policy, Problem, TensorViewMut, Window,
};
use serde_json::Value;

use crate::support::{Folder, capture, numbers, pixels, refused, run, succeeds};

fn rows() -> HeadPolicy {
    HeadPolicy::Selected(Policy::default().with_fallback(Fallback::Never))
}

fn local() -> HeadPolicy {
    HeadPolicy::Local {
        window: Window::Tokens(128),
        sinks: 16,
    }
}

/// Two layers; the second has one head of each kind.
fn profile() -> Profile {
    let heads = vec![
        vec![HeadPolicy::Dense; 4],
        vec![rows(), local(), HeadPolicy::Dense, rows()],
    ];
    Profile::new("a model", heads).unwrap()
}

fn problem() -> Problem {
    Problem::causal(700, 64, Dtype::F32).with_heads(4, 2)
}

#[test]
fn every_head_is_treated_as_the_profile_says() {
    let folder = Folder::new();
    profile().write(folder.file("p.json")).unwrap();
    let capture = capture(problem());
    capture.write(folder.file("in")).unwrap();
    let table = succeeds(
        &folder,
        "--input in --profile p.json --layer 1 --compare-dense --output o --report r.json --picture p.png",
    );
    assert!(
        table.contains("profile p.json of a model, layer 1 of 2"),
        "{table}"
    );
    let plan = HeadPlan::new(problem(), profile().layer(1).unwrap()).unwrap();
    let mut workspace = vec![0; plan.workspace_bytes()];
    let mut expected = vec![0.0; capture.q.len()];
    let o = TensorViewMut::bhsd(&mut expected, problem().q_shape()).unwrap();
    let inputs = capture.inputs().unwrap();
    let found = plan.run(&inputs, Outputs::new(o), &mut workspace).unwrap();

    let bytes = std::fs::read(folder.file("o")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(numbers(&file, "o", f32::from_le_bytes), expected);
    let blocks = file.tensor("blocks").unwrap();
    let kept: Vec<usize> = blocks
        .data()
        .chunks(36)
        .map(|head| head.iter().map(|&kept| usize::from(kept)).sum())
        .collect();
    // Six query blocks: all pairs in the dense head, two each but for the first in the local one.
    assert_eq!((kept[1], kept[2]), (11, 21));

    let report: Value =
        serde_json::from_slice(&std::fs::read(folder.file("r.json")).unwrap()).unwrap();
    assert_eq!(report["policy"], Value::Null);
    assert_eq!(report["profile"]["layer"], 1);
    let sampling = rows().sampling_cost(&problem());
    for (head, (kind, expected)) in ["rows", "local", "dense", "rows"]
        .iter()
        .zip([sampling, 0.0, 0.0, sampling])
        .enumerate()
    {
        let of_head = &report["heads"][head];
        assert_eq!(of_head["policy"]["kind"], *kind);
        assert_eq!(of_head["sampling_cost"], expected);
        assert_eq!(of_head["density"], found.heads[head].density);
        assert_eq!(of_head["cost"], found.heads[head].density + expected);
        assert_eq!(of_head["sampled_coverage"].is_null(), expected == 0.0);
        assert!(of_head["true_coverage"]["mean"].is_f64());
    }
    let (_, height, _) = pixels(&folder.file("p.png"));
    assert!(height > 4 * 420);
}

#[test]
fn rows_that_fall_short_are_marked() {
    let folder = Folder::new();
    let red = |options: &str| {
        let small = "--synthetic 1200 --head-dim 32 --q-heads 1 --kv-heads 1 --structure hard";
        succeeds(
            &folder,
            &format!("{small} --fallback never --picture p.png {options}"),
        );
        let (_, _, pixels) = pixels(&folder.file("p.png"));
        pixels
            .iter()
            .filter(|pixel| **pixel == [0xc0, 0x10, 0x20])
            .count()
    };
    // Every row is sampled and gets what it asks for; few of them are sampled and others get less.
    assert_eq!(red("--row-stride 1 --coverage 0.9"), 0);
    assert!(red("--row-stride 64 --coverage 0.9 --window 1") > 500);
}

#[cfg(feature = "emulator")]
#[test]
fn the_emulator_keeps_what_the_cpu_keeps() {
    let folder = Folder::new();
    profile().write(folder.file("p.json")).unwrap();
    let kept = |backend: &str| -> Vec<f64> {
        let input = "--synthetic 300 --head-dim 64 --profile p.json --layer 1 --report r.json";
        succeeds(&folder, &format!("{input} --backend {backend}"));
        let report: Value =
            serde_json::from_slice(&std::fs::read(folder.file("r.json")).unwrap()).unwrap();
        let heads = report["heads"].as_array().unwrap();
        heads
            .iter()
            .map(|head| head["density"].as_f64().unwrap())
            .collect()
    };
    assert_eq!(kept("cpu"), kept("emulator"));
}

#[test]
fn the_layer_is_the_inputs_own_unless_it_is_given() {
    let folder = Folder::new();
    profile().write(folder.file("p.json")).unwrap();
    let mut capture = capture(problem());
    capture.metadata.insert("layer".to_owned(), "1".to_owned());
    capture.write(folder.file("in")).unwrap();
    let table = succeeds(&folder, "--input in --profile p.json");
    assert!(table.contains("layer 1 of 2"), "{table}");
    let table = succeeds(&folder, "--input in --profile p.json --layer 0");
    assert!(table.contains("layer 0 of 2"), "{table}");
    let of_one = Profile::new("", vec![vec![local(); 4]]).unwrap();
    of_one.write(folder.file("one.json")).unwrap();
    let table = succeeds(&folder, "--synthetic 64 --head-dim 8 --profile one.json");
    assert!(table.contains("layer 0 of 1"), "{table}");
}

#[test]
fn profiles_that_do_not_fit_are_named() {
    let folder = Folder::new();
    profile().write(folder.file("p.json")).unwrap();
    let text = profile().to_json();
    let damaged = |name: &str, from: &str, to: &str| {
        assert!(text.contains(from));
        std::fs::write(folder.file(name), text.replacen(from, to, 1)).unwrap();
    };
    damaged("kind.json", "\"local\"", "\"global\"");
    damaged("newer.json", "\"version\": 1", "\"version\": 2");
    std::fs::write(folder.file("cut.json"), &text[..100]).unwrap();
    std::fs::write(folder.file("binary.json"), [0xff, 0xfe, 0]).unwrap();
    let small = "--synthetic 64 --head-dim 8";
    for (options, named) in [
        ("--profile p.json", "give --layer"),
        (
            "--profile p.json --layer 2",
            "there is no layer 2 in the profile, which has 2",
        ),
        (
            "--profile p.json --layer 1 --q-heads 8",
            "the profile is of a model with 4 query heads, and this one has 8",
        ),
        (
            "--profile kind.json --layer 1",
            "layer 1, head 1 has the unknown kind `global`",
        ),
        ("--profile newer.json --layer 1", "version 2"),
        ("--profile cut.json --layer 1", "not a JSON document"),
        ("--profile binary.json --layer 1", "not a JSON document"),
        ("--profile none.json", "--profile none.json: "),
        ("--profile . --layer 0", "--profile .: "),
        ("--profile p.json --layer -1", "--layer"),
        ("--layer 1", "--profile"),
        ("--profile p.json --layer 1 --dense", "--dense"),
        (
            "--profile p.json --layer 1 --coverage 0.9",
            "--coverage: it has no effect with --profile",
        ),
        (
            "--profile p.json --layer 1 --paper",
            "--paper: it has no effect with --profile",
        ),
        (
            "--profile p.json --layer 1 --report p.json",
            "it would replace the profile",
        ),
    ] {
        let before = folder.names();
        let line = refused(&run(&folder, &format!("{small} {options}")), options);
        assert!(line.contains(named), "{options}: {line}");
        assert_eq!(folder.names(), before, "{options}");
    }
    assert_eq!(Profile::read(folder.file("p.json")).unwrap(), profile());
}

#[test]
fn the_profile_of_the_repository_is_read() {
    let folder = Folder::new();
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../inputs/data/lm-8k.profile.json"
    );
    let profile = Profile::read(path).unwrap();
    // What calibration wrote, with the price in the unit that it has now.
    assert_eq!(std::fs::read_to_string(path).unwrap(), profile.to_json());
    for layer in 0..profile.layers() {
        let input = "--synthetic 1100 --head-dim 16";
        let table = succeeds(
            &folder,
            &format!("{input} --profile {path} --layer {layer}"),
        );
        assert!(table.contains(" local "), "{table}");
    }
}
