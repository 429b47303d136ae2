//! The arrows between files: no circle, and none from a lower floor to a higher one.
//!
//! File A uses file B where A names something that B defines: in a `use`, a path, or the tokens of a macro. Names that are handed
//! on (`pub use`) count for the file that defines them. A parent that says `mod x;` or `pub use x::Y` uses nothing; one that calls
//! `x::y()` uses `x`, and then `x` may use nothing that the parent's file defines: what both need belongs into a file below.
//!
//! # Limits
//! Methods are not followed to the file of their `impl`, nor `include!`. What only tests compile is left out.

mod circles;
mod floors;
mod modules;
mod resolve;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use modules::{Modules, Read};
use resolve::Use;

/// Crates by name, with their root files.
const CRATES: &[(&str, &str)] = &[
    ("sample_attention", "host/lib.rs"),
    ("sample_attention_device", "device/src/lib.rs"),
    ("testkit", "testkit/src/lib.rs"),
    ("xtask", "xtask/src/main.rs"),
];

/// Uses that may stay for now: from, to, why. An entry that nothing needs any more is an error too.
const STILL_OPEN: &[(&str, &str, &str)] = &[];

/// Checks the repository; what is wrong goes to standard error.
pub fn run() -> ExitCode {
    match check(&repository(), STILL_OPEN) {
        Ok(summary) => {
            println!("{summary}");
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask lies in the workspace")
        .to_owned()
}

/// Every offence of a repository, or a line that says how much was looked at.
fn check(root: &Path, still_open: &[(&str, &str, &str)]) -> Result<String, String> {
    let read = |file: &Path| fs::read_to_string(root.join(file)).ok();
    let mut crates: Vec<(String, PathBuf)> = CRATES
        .iter()
        .map(|&(name, file)| (name.to_owned(), file.into()))
        .collect();
    let examples = fs::read_dir(root.join("examples")).map_err(|error| error.to_string())?;
    for entry in examples.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let file = match name.strip_suffix(".rs") {
            Some(_) => Path::new("examples").join(&name),
            None => Path::new("examples").join(&name).join("main.rs"),
        };
        if root.join(&file).exists() {
            crates.push((format!("example {name}"), file));
        }
    }
    crates.sort();
    check_crates(&crates, &read, still_open)
}

fn check_crates(
    crates: &[(String, PathBuf)],
    read: Read<'_>,
    still_open: &[(&str, &str, &str)],
) -> Result<String, String> {
    let mut modules = Modules::default();
    for (name, file) in crates {
        modules.add_crate(name, file, read)?;
    }
    let mut uses = resolve::uses(&modules);
    let mut offences = Vec::new();
    if std::env::var_os("DUMP").is_some() { for u in &uses { println!("{}:{} -> {} {}", u.from.display(), u.line, u.to.display(), u.path); } }
    for (from, to, _) in still_open {
        let before = uses.len();
        uses.retain(|link| link.from != Path::new(from) || link.to != Path::new(to));
        if uses.len() == before {
            offences.push(format!("{from} no longer uses {to}: strike it from STILL_OPEN"));
        }
    }
    for (count, circle) in circles::circles(&uses) {
        let mut text = format!("a circle, one of {count} files that use each other:");
        for link in circle {
            text.push_str(&format!("\n  {}", shown(link)));
        }
        offences.push(text);
    }
    for link in &uses {
        if let Some(why) = floors::offence(&link.from, &link.to) {
            offences.push(format!("{}\n  {why}", shown(link)));
        }
    }
    let files: BTreeSet<&Path> = modules.all.iter().map(|m| m.file.as_path()).collect();
    for file in &files {
        if floors::may_name_the_target(file) {
            continue;
        }
        let lines = read(file).map_or(Vec::new(), |text| modules::lines_with(&text, "target_arch"));
        for line in lines {
            let file = file.display();
            offences.push(format!("{file}:{line}: `target_arch` outside device/src/gpu"));
        }
    }
    if offences.is_empty() {
        return Ok(format!("{} files, {} uses: no circle, none upwards", files.len(), uses.len()));
    }
    Err(offences.join("\n"))
}

fn shown(link: &Use) -> String {
    let (from, to) = (link.from.display(), link.to.display());
    format!("{from}:{}: uses {to} ({})", link.line, link.path)
}
