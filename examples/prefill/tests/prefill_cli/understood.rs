//! What was asked for is what is done: layouts, policies, and options that would do nothing.

use sample_attention::{Dtype, Policy, Problem};
use sample_attention_inputs::capture::{Capture, Tensor};
use serde_json::Value;

use crate::support::{Folder, capture, refused, run, succeeds};

/// [batch, heads, length, head_dim] to [batch, length, heads, head_dim].
fn tokens_first(tensor: &Tensor, [batch, heads, len, dim]: [usize; 4]) -> Tensor {
    let values = tensor.to_f32();
    let mut turned = Vec::with_capacity(values.len());
    for sequence in 0..batch {
        for token in 0..len {
            for head in 0..heads {
                let row = (sequence * heads + head) * len + token;
                turned.extend_from_slice(&values[row * dim..(row + 1) * dim]);
            }
        }
    }
    Tensor::from_f32(tensor.dtype(), &turned)
}

/// The same values as a file whose heads come after the tokens.
fn write_bshd(capture: &Capture, folder: &Folder, name: &str) {
    let problem = capture.problem;
    let turned = Capture {
        q: tokens_first(&capture.q, problem.q_shape()),
        k: tokens_first(&capture.k, problem.kv_shape()),
        v: tokens_first(&capture.v, problem.kv_shape()),
        problem: problem
            .with_heads(problem.q_len, problem.k_len)
            .with_q_len(problem.q_heads)
            .with_k_len(problem.kv_heads),
        ..capture.clone()
    };
    turned.write(folder.file(name)).unwrap();
}

#[test]
fn layouts_change_no_bit_of_the_output() {
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
        let folder = Folder::new();
        let capture = capture(
            Problem::causal(300, 16, dtype)
                .with_batch(2)
                .with_heads(4, 2),
        );
        capture.write(folder.file("bhsd")).unwrap();
        write_bshd(&capture, &folder, "bshd");
        let output = |name: &str| {
            let arguments = format!("--input {name} --layout {name} --fallback never --output o");
            succeeds(&folder, &arguments);
            std::fs::read(folder.file("o")).unwrap()
        };
        assert!(output("bhsd") == output("bshd"), "{dtype}");
    }
}

#[test]
fn files_in_the_other_layout_are_doubted() {
    let folder = Folder::new();
    let shape = Problem::causal(300, 8, Dtype::F32);
    // As many query as key/value heads: a valid input of 300 heads and 2 tokens.
    let same = capture(shape.with_heads(2, 2));
    write_bshd(&same, &folder, "in");
    let doubted = run(&folder, "--input in --report r.json");
    assert_eq!(doubted.code, Some(0));
    let line = doubted.stderr.trim_end();
    assert!(
        line.starts_with("warning: ") && !line.contains('\n'),
        "{line}"
    );
    assert!(
        line.contains("300") && line.contains("--layout bshd"),
        "{line}"
    );
    let report: Value =
        serde_json::from_slice(&std::fs::read(folder.file("r.json")).unwrap()).unwrap();
    assert_eq!(report["input"]["warnings"].as_array().unwrap().len(), 1);
    same.write(folder.file("in")).unwrap();
    let doubted = run(&folder, "--input in --layout bshd");
    assert!(
        doubted.stderr.contains("--layout bhsd"),
        "{}",
        doubted.stderr
    );
    succeeds(&folder, "--input in");

    // A chunk of a prompt: its 100 queries are no group of 300 key/value heads.
    let chunk = capture(shape.with_heads(2, 1).with_q_len(100));
    write_bshd(&chunk, &folder, "in");
    let line = refused(&run(&folder, "--input in"), "other layout");
    assert!(line.contains("--layout bshd"), "{line}");
    // A token to be decoded has more heads than queries, as it should.
    let decode = capture(shape.with_heads(8, 1).with_q_len(1));
    decode.write(folder.file("in")).unwrap();
    succeeds(&folder, "--input in");
}

fn reported_policy(folder: &Folder, options: &str) -> (String, Value) {
    let table = succeeds(
        folder,
        &format!("--synthetic 200 --head-dim 8 --report r.json {options}"),
    );
    let report: Value =
        serde_json::from_slice(&std::fs::read(folder.file("r.json")).unwrap()).unwrap();
    (table, report["policy"].clone())
}

#[test]
fn the_papers_policy_is_the_librarys() {
    let folder = Folder::new();
    let (table, policy) = reported_policy(&folder, "--paper");
    let paper = Policy::paper();
    // Reading JSON may round the last bit.
    let is = |value: &Value, expected: f32| {
        (value.as_f64().unwrap() - f64::from(expected)).abs() < 1e-12
    };
    assert_eq!(policy["budget"], "paper");
    assert!(is(&policy["coverage"], paper.coverage), "{policy}");
    assert_eq!(policy["row_stride"], paper.row_stride);
    assert_eq!(policy["sinks"], paper.sinks);
    assert!(policy["window_ratio"].is_number(), "{policy}");
    for value in ["budget paper", "coverage 0.95", "window 8 %", "1 row in 20"] {
        assert!(table.contains(value), "no {value:?} in\n{table}");
    }
    assert!(!table.contains("not the paper's own"), "{table}");

    // Options change it one by one.
    let (_, policy) = reported_policy(&folder, "--paper --coverage 0.5 --window 9");
    assert_eq!(policy["coverage"], 0.5);
    assert_eq!(policy["window"], 9);
    assert_eq!(policy["row_stride"], paper.row_stride);

    // The budget alone, by settings that are not the paper's, is another policy, and the table says which values are in force.
    let own = Policy::of(sample_attention::Budget::Residual);
    let (table, policy) = reported_policy(&folder, "--budget paper");
    assert!(is(&policy["coverage"], own.coverage), "{policy}");
    let in_force = format!("budget paper, coverage {}", own.coverage);
    assert!(table.contains(&in_force), "{table}");
    assert!(
        table.contains("--paper gives: budget paper, coverage 0.95"),
        "{table}"
    );
}

#[test]
fn options_without_effect_are_errors() {
    let folder = Folder::new();
    capture(Problem::causal(40, 8, Dtype::F32))
        .write(folder.file("in"))
        .unwrap();
    let before = folder.names();
    for option in [
        "--paper",
        "--coverage 0.9",
        "--window 9",
        "--window-ratio 0.1",
        "--row-stride 8",
        "--stride-doubles-from never",
        "--tail 8",
        "--tail-stride 2",
        "--sinks 2",
        "--budget blocks",
        "--fallback never",
    ] {
        let line = refused(
            &run(&folder, &format!("--input in --dense {option}")),
            option,
        );
        let name = option.split(' ').next().unwrap();
        assert!(
            line.contains(&format!("{name}: it has no effect with --dense")),
            "{line}"
        );
    }
    for (arguments, named) in [
        (
            "--input in --heads 0",
            "--heads: it has no effect without --picture",
        ),
        (
            "--layout bshd",
            "--layout: it has no effect without --input",
        ),
        (
            "--synthetic 99 --layout bhsd",
            "--layout: it has no effect without --input",
        ),
        (
            "--input in --budget paper --stride-doubles-from 4096",
            "--stride-doubles-from: only budget blocks",
        ),
        (
            "--input in --budget blocks --tail 9",
            "--tail: only budget rows",
        ),
        (
            "--input in --stride-doubles-from 4096",
            "--stride-doubles-from: only budget blocks",
        ),
        (
            "--input in --paper --stride-doubles-from 4096",
            "--stride-doubles-from: only budget blocks",
        ),
    ] {
        let line = refused(&run(&folder, arguments), arguments);
        assert!(line.contains(named), "{arguments}: {line}");
    }
    assert_eq!(folder.names(), before);
}

#[test]
fn pictures_are_named_as_what_they_are() {
    let folder = Folder::new();
    for name in ["p.jpg", "p", "png", "p.png.jpeg", ".png"] {
        let line = refused(
            &run(
                &folder,
                &format!("--synthetic 100 --report r.json --picture {name}"),
            ),
            name,
        );
        assert!(line.contains(".png"), "{line}");
        assert!(folder.names().is_empty(), "{name}: {:?}", folder.names());
    }
}

#[test]
fn elements_that_are_not_finite_are_counted() {
    let folder = Folder::new();
    let mut capture = capture(Problem::causal(300, 8, Dtype::F32));
    if let (Tensor::F32(q), Tensor::F32(v)) = (&mut capture.q, &mut capture.v) {
        q[3] = f32::NAN;
        q[4] = f32::NAN;
        q[5] = f32::INFINITY;
        v[7] = f32::NEG_INFINITY;
    }
    capture.write(folder.file("in")).unwrap();
    let warned = run(&folder, "--input in --fallback never --report r.json");
    assert_eq!(warned.code, Some(0));
    let lines: Vec<&str> = warned.stderr.lines().collect();
    let [q, v] = lines[..] else {
        panic!("{lines:?}")
    };
    assert!(
        q.starts_with("warning: q has 2 NaN and 1 infinite of 2400 elements"),
        "{q}"
    );
    assert!(
        v.starts_with("warning: v has 0 NaN and 1 infinite of 2400 elements"),
        "{v}"
    );
    let report: Value =
        serde_json::from_slice(&std::fs::read(folder.file("r.json")).unwrap()).unwrap();
    assert_eq!(report["input"]["warnings"].as_array().unwrap().len(), 2);
}

#[test]
fn the_words_of_the_table_are_explained() {
    let folder = Folder::new();
    let small = "--synthetic 300 --head-dim 8";
    for (options, path) in [
        ("", "short"),
        ("--fallback never", "sparse"),
        ("--dense", "dense"),
    ] {
        let table = succeeds(&folder, &format!("{small} {options}"));
        for word in [path, "blocks kept", "stripes", "density", "coverage"] {
            assert!(
                table.contains(&format!("\n{word}: ")) || table.contains(&format!(". {word}: ")),
                "{word:?} is not explained in\n{table}"
            );
        }
    }
}

#[test]
fn the_help_says_what_the_policies_are() {
    let folder = Folder::new();
    let help = succeeds(&folder, "--help").replace('\n', " ");
    let (general, rest) = help.split_once("Synthetic input:").unwrap();
    let (synthetic, of_policy) = rest.split_once("Policy:").unwrap();
    assert!(general.contains("--backend <") && general.contains("--picture <"));
    assert!(synthetic.contains("--seed <") && !synthetic.contains("--backend <"));
    assert!(of_policy.contains("--coverage <") && !of_policy.contains("--output <"));
    for policy in [Policy::default(), Policy::paper()] {
        assert!(
            help.contains(&format!("coverage {}", policy.coverage)),
            "{help}"
        );
        assert!(
            help.contains(&format!("1 row in {}", policy.row_stride)),
            "{help}"
        );
    }
}
