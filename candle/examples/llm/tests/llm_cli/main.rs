//! The program, on tiny random models that are made here.

mod converted;
mod folder;
mod reference;
mod refused;
mod runs;

use std::path::Path;
use std::process::{Command, Output};

/// Runs `llm` with these arguments.
fn llm(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_llm"))
        .args(args)
        .output()
        .expect("the program starts")
}

/// What a run that must succeed prints.
fn printed(args: &[&str]) -> String {
    let output = llm(args);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{args:?}: {stderr}");
    String::from_utf8(output.stdout).expect("the report is text")
}

/// The line of a run that must be refused: one, with exit code 2.
fn refusal(args: &[&str]) -> String {
    let output = llm(args);
    let line = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{args:?}: {line}");
    assert!(output.stdout.is_empty(), "{args:?}");
    assert_eq!(line.lines().count(), 1, "{args:?}: {line}");
    assert!(line.starts_with("error: "), "{line}");
    line
}

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary paths are text")
}
