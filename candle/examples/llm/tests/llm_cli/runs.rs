//! What a run prints.

use candle_sample_attention::profile::Profile;
use candle_sample_attention::{HeadPolicy, Window};

use crate::folder::{Kind, LLAMA, QWEN2, QWEN3, Tiny, prompt};
use crate::{printed, reference, refusal, text};

/// The loss that a report states for `dense` or `sparse`.
fn loss(report: &str, name: &str) -> f64 {
    let line = report
        .lines()
        .find(|line| line.starts_with(&format!("{name} ")))
        .unwrap_or_else(|| panic!("{report}"));
    let words: Vec<&str> = line.split_whitespace().collect();
    words[words.len() - 2].parse().unwrap()
}

/// What was generated.
fn answer(report: &str) -> String {
    let (_, answer) = report.split_once("generated").unwrap();
    answer.split_once('\n').unwrap().1.to_owned()
}

fn losses_are_the_references(kind: Kind, is_sharded: bool) {
    let model = Tiny::new(kind);
    let folder = model.write(is_sharded);
    let bytes = prompt(folder.path(), 150);
    let file = folder.path().join("prompt.txt");
    let report = printed(&[
        "run",
        "--model",
        text(folder.path()),
        "--prompt",
        text(&file),
        "--generate",
        "0",
    ]);
    let expected = reference::loss(&model, &bytes);
    for name in ["dense", "sparse"] {
        let loss = loss(&report, name);
        assert!(
            (loss - expected).abs() < 2e-4,
            "{name}: {loss}, not {expected}\n{report}"
        );
    }
}

#[test]
fn losses_are_those_of_an_f64_reference_llama() {
    losses_are_the_references(LLAMA, false);
}

#[test]
fn losses_are_those_of_an_f64_reference_qwen2_with_biases() {
    losses_are_the_references(QWEN2, false);
}

#[test]
fn losses_are_those_of_an_f64_reference_qwen3_with_norms_tied_and_sharded() {
    losses_are_the_references(QWEN3, true);
}

#[test]
fn chunks_and_pages_change_neither_loss_nor_answer() {
    let folder = Tiny::new(LLAMA).write(false);
    prompt(folder.path(), 1500);
    let file = folder.path().join("prompt.txt");
    let run = |more: &[&str]| {
        let mut args = vec![
            "run",
            "--model",
            text(folder.path()),
            "--prompt",
            text(&file),
        ];
        args.extend(["--generate", "8"]);
        args.extend(more);
        printed(&args)
    };
    let whole = run(&["--chunk", "0"]);
    assert!(whole.contains("KL") && whole.contains("tok/s"), "{whole}");
    // Four heads of two layers, and their mean.
    assert!(whole.contains("mean  "), "{whole}");
    assert_eq!(answer(&whole).trim_end_matches('\n').len().min(1), 1);
    for more in [
        &["--chunk", "1024"][..],
        &["--chunk", "512", "--page", "32"],
        &["--chunk", "0", "--page", "16"],
    ] {
        let report = run(more);
        for name in ["dense", "sparse"] {
            let (got, expected) = (loss(&report, name), loss(&whole, name));
            assert!((got - expected).abs() < 2e-4, "{more:?}\n{report}\n{whole}");
        }
        assert_eq!(answer(&report), answer(&whole), "{more:?}");
    }
}

#[test]
fn a_profile_gives_each_head_its_policy() {
    let folder = Tiny::new(LLAMA).write(false);
    prompt(folder.path(), 1300);
    let file = folder.path().join("prompt.txt");
    let path = folder.path().join("profile.json");
    let local = HeadPolicy::Local {
        window: Window::Tokens(128),
        sinks: 16,
    };
    let heads = vec![HeadPolicy::Dense, local, local, HeadPolicy::Dense];
    let run = |layers: usize| {
        let profile = Profile::new("tiny", vec![heads.clone(); layers]).unwrap();
        profile.write(&path).unwrap();
        let mut args = vec![
            "run",
            "--model",
            text(folder.path()),
            "--prompt",
            text(&file),
        ];
        args.extend([
            "--chunk",
            "512",
            "--generate",
            "0",
            "--profile",
            text(&path),
        ]);
        args.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let args = run(2);
    let report = printed(&args.iter().map(String::as_str).collect::<Vec<_>>());
    let layer = report.lines().find(|line| line.starts_with("1  ")).unwrap();
    let shares: Vec<f64> = layer
        .split_whitespace()
        .skip(2)
        .map(|x| x.parse().unwrap())
        .collect();
    assert_eq!([shares[0], shares[3]], [1.0, 1.0], "{report}");
    assert!(shares[1] < 0.5 && shares[1] == shares[2], "{report}");
    let args = run(3);
    let line = refusal(&args.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(
        line.contains("the profile has 3 layers, and the model 2"),
        "{line}"
    );
}
