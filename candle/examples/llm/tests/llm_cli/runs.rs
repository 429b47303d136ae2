//! What a run prints.

use crate::folder::{Kind, LLAMA, QWEN2, QWEN3, Tiny, prompt};
use crate::{printed, reference, text};

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
