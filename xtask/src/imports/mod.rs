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
    ("candle_sample_attention", "candle/src/lib.rs"),
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
    for (from, to, _) in still_open {
        let before = uses.len();
        uses.retain(|link| link.from != Path::new(from) || link.to != Path::new(to));
        if uses.len() == before {
            offences.push(format!(
                "{from} no longer uses {to}: strike it from STILL_OPEN"
            ));
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
            offences.push(format!(
                "{file}:{line}: `target_arch` outside device/src/gpu"
            ));
        }
    }
    if offences.is_empty() {
        return Ok(format!(
            "{} files, {} uses: no circle, none upwards",
            files.len(),
            uses.len()
        ));
    }
    Err(offences.join("\n"))
}

fn shown(link: &Use) -> String {
    let (from, to) = (link.from.display(), link.to.display());
    format!("{from}:{}: uses {to} ({})", link.line, link.path)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the checker says of a crate `k` with these files.
    fn checked(files: &[(&str, &str)]) -> Result<String, String> {
        let read = |file: &Path| {
            let found = files.iter().find(|(name, _)| Path::new(name) == file);
            found.map(|(_, text)| (*text).to_owned())
        };
        check_crates(&[("k".to_owned(), files[0].0.into())], &read, &[])
    }

    #[track_caller]
    fn assert_circle(files: &[(&str, &str)], words: &[&str]) {
        let text = checked(files).expect_err("a circle");
        for word in words.iter().chain(&["a circle"]) {
            assert!(text.contains(word), "{word:?} is missing in:\n{text}");
        }
    }

    #[test]
    fn the_repository_has_no_circle_and_no_import_upwards() {
        if let Err(why) = check(&repository(), STILL_OPEN) {
            panic!("{why}");
        }
    }

    #[test]
    fn a_circle_is_shown_with_its_lines() {
        let files = [
            ("k/lib.rs", "mod a;\nmod b;"),
            ("k/a.rs", "//! A.\nuse crate::b::B;\npub struct A(B);"),
            (
                "k/b.rs",
                "pub struct B;\nfn f() {\n    let _ = crate::a::A;\n}",
            ),
        ];
        assert_circle(
            &files,
            &[
                "k/a.rs:2: uses k/b.rs",
                "k/b.rs:3: uses k/a.rs",
                "one of 2 files",
            ],
        );
    }

    #[test]
    fn what_is_handed_on_counts_for_the_file_that_defines_it() {
        let hub = "mod a;\nmod b;\npub use a::A;\npub use b::*;";
        let b = "use super::A;\npub struct B(A);";
        assert!(
            checked(&[
                ("k/lib.rs", hub),
                ("k/a.rs", "pub struct A;"),
                ("k/b.rs", b)
            ])
            .is_ok()
        );
        let a = "pub struct A(crate::B);";
        assert_circle(
            &[("k/lib.rs", hub), ("k/a.rs", a), ("k/b.rs", b)],
            &["k/a.rs:1", "k/b.rs:1"],
        );
    }

    #[test]
    fn a_parent_that_calls_its_child_gives_it_nothing() {
        let parent = "mod child;\npub struct Shared;\nfn f() { child::g(Shared) }";
        let child = "pub fn g(_: super::Shared) {}";
        assert_circle(
            &[("k/lib.rs", parent), ("k/child.rs", child)],
            &["k/lib.rs:3", "k/child.rs:1"],
        );
        let parent = "mod child;\npub struct Shared;\npub use child::g;";
        assert!(checked(&[("k/lib.rs", parent), ("k/child.rs", child)]).is_ok());
    }

    #[test]
    fn macros_are_looked_into() {
        let a = "macro_rules! make { ($n:ident) => { pub fn $n() {} } }\nmake! { made }";
        let b = "pub fn used() {}\nfn f() { println!(\"{:?}\", crate::a::made()) }";
        let files = [("k/lib.rs", "mod a;\nmod b;"), ("k/a.rs", a), ("k/b.rs", b)];
        assert!(checked(&files).is_ok());
        let a = format!("{a}\nmacro_rules! call {{ () => {{ $crate::b::used() }} }}");
        let a = a.replace("$crate", "crate");
        let files = [
            ("k/lib.rs", "mod a;\nmod b;"),
            ("k/a.rs", a.as_str()),
            ("k/b.rs", b),
        ];
        assert_circle(&files, &["k/a.rs:3", "k/b.rs:2"]);
    }

    #[test]
    fn tests_may_use_what_they_like() {
        let a = "pub struct A;\n#[cfg(test)]\nmod tests { use crate::b::B; }";
        let files = [
            ("k/lib.rs", "mod a;\nmod b;"),
            ("k/a.rs", a),
            ("k/b.rs", "pub struct B(crate::a::A);"),
        ];
        assert!(checked(&files).is_ok());
    }

    #[test]
    fn an_import_from_a_higher_floor_is_refused() {
        let files = [
            (
                "device/src/lib.rs",
                "mod gpu; mod tile; mod top_k; mod sparse_flash; mod sampling;",
            ),
            ("device/src/gpu/mod.rs", ""),
            ("device/src/tile/mod.rs", "use crate::top_k::K;"),
            ("device/src/top_k/mod.rs", "pub struct K;"),
            ("device/src/sparse_flash/mod.rs", "pub struct S;"),
            (
                "device/src/sampling/mod.rs",
                "use crate::sparse_flash::S;\n#[cfg(target_arch = \"x\")]\nfn f() {}",
            ),
        ];
        let text = checked(&files).expect_err("three offences");
        for word in [
            "device/src/tile/mod.rs:1",
            "upwards",
            "device/src/sampling/mod.rs:1",
            "sideways",
        ] {
            assert!(text.contains(word), "{word:?} is missing in:\n{text}");
        }
        assert!(
            text.contains("device/src/sampling/mod.rs:2: `target_arch`"),
            "{text}"
        );
    }
}
