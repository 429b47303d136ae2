//! The program as a process: what it prints, what it leaves, and what it refuses.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

struct Run {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

fn run(folder: &TempDir, arguments: &str) -> Run {
    let output = Command::new(env!("CARGO_BIN_EXE_squeeze"))
        .current_dir(folder.path())
        .args(arguments.split_whitespace())
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let run = Run {
        code: output.status.code(),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    };
    assert!(
        !run.stderr.contains("panicked"),
        "{arguments}: {}",
        run.stderr
    );
    run
}

fn succeeds(folder: &TempDir, arguments: &str) -> String {
    let run = run(folder, arguments);
    assert_eq!(run.code, Some(0), "{arguments}: {}", run.stderr);
    run.stdout
}

/// Exit code 2, one line that holds the words, nothing on stdout, and no file that was not there.
fn refuses(folder: &TempDir, arguments: &str, words: &[&str]) {
    let before = names(folder);
    let run = run(folder, arguments);
    assert_eq!(run.code, Some(2), "{arguments}: {}", run.stdout);
    assert_eq!(run.stderr.lines().count(), 1, "{arguments}: {}", run.stderr);
    assert_eq!(run.stdout, "");
    for word in words {
        assert!(run.stderr.contains(word), "{}: no `{word}`", run.stderr);
    }
    assert_eq!(names(folder), before, "{arguments}");
}

fn names(folder: &TempDir) -> BTreeSet<String> {
    let entries = std::fs::read_dir(folder.path()).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

fn folder() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// A number of a line of the table.
fn number(text: &str, line: &str, column: usize) -> f64 {
    let line = text
        .lines()
        .find(|other| other.trim_start().starts_with(line));
    let words: Vec<&str> = line.unwrap().split_whitespace().collect();
    words[column].parse().unwrap()
}

#[test]
fn the_carried_capture_is_looked_up_and_compared() {
    let folder = folder();
    let text = succeeds(&folder, "--fixed 1500 --coverage 0.97");
    for word in [
        "SecondOrder over everything",
        "calibrated for a coverage of 0.97",
        "2596 queries",
    ] {
        assert!(text.contains(word), "{text}");
    }
    let (share, coverage, error) = (
        number(&text, "0 ", 2),
        number(&text, "0 ", 9),
        number(&text, "0 ", 10),
    );
    assert!(share > 0.0 && share < 50.0, "{text}");
    assert!(coverage > 0.9 && coverage <= 1.0001, "{text}");
    assert!(error < 0.2, "{text}");
    assert!(names(&folder).is_empty());
}

#[test]
fn an_index_is_kept_and_used_again() {
    let folder = folder();
    let arguments =
        "--synthetic 2000 --index kept.squeeze --block 64 --two-levels --picture drawn.png";
    let first = succeeds(&folder, arguments);
    assert!(first.contains("built in"), "{first}");
    let expected = ["drawn.png", "kept.squeeze"].map(str::to_owned);
    assert_eq!(names(&folder), BTreeSet::from(expected));
    let picture = std::fs::read(folder.path().join("drawn.png")).unwrap();
    assert!(picture.starts_with(b"\x89PNG") && picture.len() > 1000);
    let again = succeeds(&folder, arguments);
    assert!(again.contains("read in"), "{again}");
    // The same rows of heads, whoever built the index.
    let rows = |text: &str| -> Vec<String> {
        let rows = text
            .lines()
            .skip_while(|line| !line.starts_with("query head"));
        rows.take(9).map(str::to_owned).collect()
    };
    assert_eq!(rows(&first), rows(&again));
    // Another text, and another part of it.
    for other in [
        "--synthetic 2100 --index kept.squeeze",
        "--synthetic 2000 --fixed 900 --index kept.squeeze",
    ] {
        refuses(&folder, other, &["another fixed context", "kept.squeeze"]);
    }
    let path = folder.path().join("kept.squeeze");
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    refuses(
        &folder,
        arguments,
        &["--index", "damaged", "build the index again"],
    );
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
}

#[test]
fn published_is_a_rule_of_its_own() {
    let text = succeeds(&folder(), "--synthetic 1200 --published --share 0.2");
    assert!(text.contains("Mean over the clusters"), "{text}");
    assert!(text.contains("calibrated for 0.2 of the keys"), "{text}");
}

#[test]
fn bad_input_ends_in_one_line() {
    let folder = folder();
    std::fs::write(folder.path().join("text"), "no tensors").unwrap();
    for (arguments, words) in [
        (
            "--backend cuda",
            &["--backend", "no GPU kernels", "cpu"][..],
        ),
        ("--backend emulator", &["no GPU kernels"]),
        ("--input none.safetensors", &["--input none.safetensors"]),
        ("--input text", &["--input text"]),
        ("--index text", &["--index", "text", "no index"]),
        ("--fixed 4096", &["--fixed 4096", "4096 tokens"]),
        ("--fixed 0", &["--fixed"]),
        ("--coverage 1.5", &["--coverage 1.5", "at most 1"]),
        ("--coverage nan", &["--coverage"]),
        ("--threshold 0", &["--threshold 0", "above 0"]),
        ("--threshold 0.1 --share 0.1", &["--threshold", "--share"]),
        ("--published --score mean", &["--published", "--score"]),
        ("--clusters 0", &["--clusters 0"]),
        ("--block 0", &["--block"]),
        ("--picture drawn.jpg", &["--picture drawn.jpg", ".png"]),
        ("--picture no/such/folder.png", &["--picture"]),
        ("--index no/such/folder", &["--index"]),
        ("--nonsense", &["--nonsense"]),
    ] {
        refuses(&folder, arguments, words);
    }
    assert!(Path::new(folder.path()).exists());
}

#[test]
fn help_says_what_there_is() {
    let text = succeeds(&folder(), "--help");
    for option in ["--index", "--picture", "--published", "--two-levels"] {
        assert!(text.contains(option));
    }
}
