//! The files, against what the library computes, and what is printed.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};

use safetensors::SafeTensors;
use sample_attention::{
    BLOCK, Budget, Dtype, Fallback, Outputs, Plan, Policy, Problem, Report, Selection,
    TensorViewMut, Window,
};
use sample_attention_inputs::capture::Capture;
use sample_attention_inputs::synthetic::{Structure, Synthetic};
use serde_json::Value;

use crate::support::{FILES, Folder, capture, numbers, prefill, run, succeeds};

/// The library's own result for the same input.
struct Expected {
    o: Vec<f32>,
    lse: Vec<f32>,
    report: Report,
    selection: Option<Selection>,
}

fn library(capture: &Capture, plan: &Plan) -> Expected {
    let inputs = capture.inputs().unwrap();
    let mut workspace = vec![0; plan.workspace_bytes()];
    let mut stages = plan.stages(&inputs, &mut workspace).unwrap();
    let mut o = vec![0.0; capture.q.len()];
    let mut lse = vec![0.0; capture.problem.lse_len()];
    let outputs = Outputs::new(TensorViewMut::bhsd(&mut o, capture.problem.q_shape()).unwrap())
        .with_lse(&mut lse);
    let report = stages.run(outputs).unwrap();
    let selection = stages.selection();
    Expected {
        o,
        lse,
        report,
        selection,
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Checks the output file and the report against the library.
fn check_files(folder: &Folder, capture: &Capture, plan: &Plan) {
    let expected = library(capture, plan);
    let problem = capture.problem;
    let bytes = std::fs::read(folder.file("o.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let names: BTreeSet<&str> = file.names().into_iter().collect();
    assert_eq!(
        names,
        BTreeSet::from(["blocks", "lse", "o", "stripe_count", "stripes"])
    );

    let shape = |name: &str| file.tensor(name).unwrap().shape().to_vec();
    let [batch, q_heads, q_len, head_dim] = problem.q_shape();
    let side = problem.k_len.div_ceil(BLOCK);
    assert_eq!(shape("o"), [batch, q_heads, q_len, head_dim]);
    assert_eq!(shape("lse"), [batch, q_heads, q_len]);
    assert_eq!(shape("stripe_count"), [batch, q_heads]);
    assert_eq!(shape("blocks"), [batch, q_heads, side, side]);
    assert_eq!(
        bits(&numbers(&file, "o", f32::from_le_bytes)),
        bits(&expected.o)
    );
    assert_eq!(
        bits(&numbers(&file, "lse", f32::from_le_bytes)),
        bits(&expected.lse)
    );

    let counts = numbers(&file, "stripe_count", i32::from_le_bytes);
    let stripes = numbers(&file, "stripes", i32::from_le_bytes);
    let longest = counts.iter().copied().max().unwrap() as usize;
    assert_eq!(shape("stripes"), [batch, q_heads, longest]);
    let blocks = file.tensor("blocks").unwrap().data();
    let report: Value =
        serde_json::from_slice(&std::fs::read(folder.file("r.json")).unwrap()).unwrap();
    assert_eq!(report["input"]["k_len"], problem.k_len);

    for head in 0..batch * q_heads {
        let mask = expected
            .selection
            .as_ref()
            .map(|selection| selection.head(head / q_heads, head % q_heads))
            .filter(|mask| !mask.is_dense());
        let own = &stripes[head * longest..(head + 1) * longest];
        let (listed, padding) = own.split_at(counts[head] as usize);
        let listed: Vec<u32> = listed.iter().map(|&key| key as u32).collect();
        assert_eq!(listed, mask.map_or(&[][..], |mask| mask.stripes()));
        assert!(padding.iter().all(|&key| key == -1));
        let kept = &blocks[head * side * side..(head + 1) * side * side];
        for query_block in 0..side {
            let holds_rows = (query_block + 1) * BLOCK > problem.k_len.saturating_sub(q_len);
            for key_block in 0..side {
                let keeps = mask.map_or(key_block <= query_block, |mask| {
                    mask.keeps_block(query_block, key_block)
                });
                let at = query_block * side + key_block;
                assert_eq!(
                    kept[at],
                    u8::from(keeps && holds_rows),
                    "{query_block} {key_block}"
                );
            }
        }
        let reported = &report["heads"][head];
        let of_library = &expected.report.heads[head];
        assert_eq!(
            reported["blocks_kept"],
            kept.iter().map(|&kept| u64::from(kept)).sum::<u64>()
        );
        assert_eq!(reported["stripes"], counts[head]);
        // Reading JSON may round the last bit.
        let same = |reported: &Value, expected: Option<f64>| match (reported.as_f64(), expected) {
            (Some(reported), Some(expected)) => (reported - expected).abs() < 1e-12,
            (reported, expected) => reported.is_none() && expected.is_none(),
        };
        assert!(
            same(&reported["density"], Some(of_library.density)),
            "{reported}"
        );
        let sampled = &reported["sampled_coverage"];
        assert!(same(sampled, of_library.sampled_coverage), "{reported}");
        assert_eq!(reported["selected"]["stripes"], of_library.stripes);
    }
}

#[test]
fn files_hold_what_the_library_computes() {
    let whole = Problem::causal(700, 32, Dtype::F16)
        .with_batch(2)
        .with_heads(4, 2);
    let chunk = whole.with_q_len(300);
    let ahead = whole.with_k_len(300);
    let never = Policy::default().with_fallback(Fallback::Never);
    let of_keys = Policy::of(Budget::Residual).with_fallback(Fallback::Never);
    for problem in [whole, chunk, ahead] {
        let folder = Folder::new();
        let capture = capture(problem);
        capture.write(folder.file("in.safetensors")).unwrap();
        for (options, policy) in [
            ("--fallback never", never),
            (
                "--fallback never --budget residual --coverage 0.8 --window 100 --sinks 3",
                of_keys
                    .with_budget(Budget::Residual)
                    .with_coverage(0.8)
                    .with_window(Window::Tokens(100))
                    .with_sinks(3),
            ),
            (
                "--fallback never --budget paper --row-stride 20 --window-ratio 0.08",
                of_keys
                    .with_budget(Budget::Paper)
                    .with_row_stride(20)
                    .with_window(Window::Ratio(0.08)),
            ),
            // Below the break-even length nothing is selected, and all is kept.
            ("", Policy::default()),
        ] {
            succeeds(
                &folder,
                &format!("--input in.safetensors {FILES} {options}"),
            );
            check_files(&folder, &capture, &Plan::new(problem, policy).unwrap());
        }
        succeeds(&folder, &format!("--input in.safetensors {FILES} --dense"));
        check_files(&folder, &capture, &Plan::dense(problem).unwrap());
        assert_eq!(folder.names().len(), 3, "{:?}", folder.names());
    }
}

/// A chunk of a prompt that is long enough for strides to double.
#[test]
fn row_strides_double_where_the_command_line_says() {
    let folder = Folder::new();
    let problem = Problem::causal(17_000, 8, Dtype::F32).with_q_len(900);
    let capture = capture(problem);
    capture.write(folder.file("in.safetensors")).unwrap();
    for (position, stride_doubles_from) in
        [("8192", 8192), ("never", usize::MAX), ("65536", 65_536)]
    {
        let table = succeeds(
            &folder,
            &format!(
                "--input in.safetensors {FILES} --budget blocks --stride-doubles-from {position}"
            ),
        );
        assert_eq!(
            table.contains("(fewer from"),
            position != "never",
            "{table}"
        );
        let policy = Policy::of(Budget::Blocks).with_stride_doubles_from(stride_doubles_from);
        check_files(&folder, &capture, &Plan::new(problem, policy).unwrap());
    }
}

/// Long enough for the fallback to be decided head by head.
#[test]
fn heads_that_fall_back_keep_every_block() {
    let folder = Folder::new();
    let arguments = "--synthetic 1700 --structure uniform --head-dim 16 --q-heads 2 --kv-heads 1 --seed 3 --budget blocks --coverage 1";
    let table = succeeds(&folder, &format!("{arguments} {FILES}"));
    assert!(table.contains("fallback"), "{table}");
    let problem = Problem::causal(1700, 16, Dtype::Bf16).with_heads(2, 1);
    let recipe = Synthetic {
        problem,
        structure: Structure::UNIFORM,
        seed: 3,
    };
    let policy = Policy::of(Budget::Blocks).with_coverage(1.0);
    check_files(
        &folder,
        &recipe.generate().unwrap(),
        &Plan::new(problem, policy).unwrap(),
    );
}

/// Infinities and NaN are numbers of a valid file: whatever comes out, it is not a panic.
#[test]
fn poisoned_values_are_computed_with() {
    let folder = Folder::new();
    let mut capture = capture(Problem::causal(300, 8, Dtype::F32));
    if let sample_attention_inputs::capture::Tensor::F32(k) = &mut capture.k {
        k[17] = f32::NAN;
        k[900] = f32::INFINITY;
    }
    capture.write(folder.file("in")).unwrap();
    for budget in ["blocks", "residual", "paper"] {
        let arguments = format!(
            "--input in --fallback never --budget {budget} --compare-dense --picture p.png {FILES}"
        );
        assert_eq!(run(&folder, &arguments).code, Some(0), "{budget}");
    }
}

#[test]
fn help_and_version_are_printed() {
    let folder = Folder::new();
    let help = succeeds(&folder, "--help");
    for option in [
        "--input",
        "--synthetic",
        "--seed",
        "--backend",
        "--device",
        "--coverage",
        "--window",
        "--window-ratio",
        "--row-stride",
        "--sinks",
        "--budget",
        "--fallback",
        "--paper",
        "--layout",
        "--heads",
        "--dense",
        "--output",
        "--report",
        "--picture",
        "--compare-dense",
        "--threads",
    ] {
        assert!(help.contains(option), "{option} is not in the help");
    }
    assert!(succeeds(&folder, "--version").contains(env!("CARGO_PKG_VERSION")));
}

#[test]
fn a_reader_that_stops_early_is_no_failure() {
    let folder = Folder::new();
    let mut child = Command::new(prefill())
        .args(["--synthetic", "300", "--report", "r.json"])
        .current_dir(&folder.0)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(folder.names(), BTreeSet::from(["r.json".to_owned()]));
}

#[test]
fn values_at_the_edge_are_accepted() {
    let folder = Folder::new();
    let most = usize::MAX;
    for options in [
        format!("--row-stride {most}"),
        format!("--sinks {most}"),
        format!("--window {most}"),
        "--window-ratio 1e-40".to_owned(),
        "--coverage 1e-45".to_owned(),
        "--budget residual --coverage 1 --row-stride 1 --sinks 0 --window 1".to_owned(),
        format!("--budget paper --sinks {most} --row-stride {most}"),
    ] {
        let small = "--synthetic 200 --head-dim 8 --fallback never --compare-dense --picture p.png";
        succeeds(&folder, &format!("{small} {FILES} {options}"));
    }
    succeeds(
        &folder,
        "--synthetic 1 --q-heads 1 --kv-heads 1 --head-dim 8 --compare-dense --picture p.png",
    );
}

#[test]
fn existing_files_are_replaced() {
    let folder = Folder::new();
    std::fs::write(folder.file("r.json"), "old").unwrap();
    succeeds(&folder, "--synthetic 100 --head-dim 8 --report r.json");
    assert!(
        std::fs::read_to_string(folder.file("r.json"))
            .unwrap()
            .starts_with('{')
    );
    assert_eq!(folder.names(), BTreeSet::from(["r.json".to_owned()]));
}
