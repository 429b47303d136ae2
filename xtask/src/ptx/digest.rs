//! The digest that ties shipped PTX to the sources it was made from. Needs no compiler.

use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// The SHA-256 of everything in `device` that decides what its kernels are: `Cargo.toml`, `build.rs` where
/// there is one, and every `src/**/*.rs` (the launch bounds table is one of them).
///
/// Files count in the order of their names, whatever order the file system lists them in, and line ends
/// count as `\n`, so that a checkout on another system has the same digest.
pub fn sources(device: &Path) -> Result<String, String> {
    let mut files = rust_files(&device.join("src"))?;
    files.push(device.join("Cargo.toml"));
    let build_script = device.join("build.rs");
    if build_script.exists() {
        files.push(build_script);
    }
    let mut named = Vec::with_capacity(files.len());
    for file in files {
        let bytes = fs::read(&file).map_err(|error| format!("{}: {error}", file.display()))?;
        let relative = file.strip_prefix(device).unwrap_or(&file);
        let parts: Vec<_> = relative
            .components()
            .map(|part| part.as_os_str().to_string_lossy())
            .collect();
        named.push((parts.join("/"), unix_line_ends(&bytes)));
    }
    named.sort();
    let mut hash = Sha256::new();
    for (name, bytes) in &named {
        // Lengths before contents: no two different sets of files feed the hash the same bytes.
        hash.update(format!("{name}\n{}\n", bytes.len()));
        hash.update(bytes);
    }
    Ok(hex(&hash.finalize()))
}

/// The SHA-256 of a text, with line ends as `\n`.
pub fn text(text: &str) -> String {
    hex(&Sha256::digest(unix_line_ends(text.as_bytes())))
}

fn rust_files(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let name = |error| format!("{}: {error}", folder.display());
    let mut files = Vec::new();
    for item in fs::read_dir(folder).map_err(name)? {
        let path = item.map_err(name)?.path();
        if path.is_dir() {
            files.extend(rust_files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(files)
}

fn unix_line_ends(bytes: &[u8]) -> Vec<u8> {
    let mut kept = Vec::with_capacity(bytes.len());
    for (at, byte) in bytes.iter().enumerate() {
        if *byte != b'\r' || bytes.get(at + 1) != Some(&b'\n') {
            kept.push(*byte);
        }
    }
    kept
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ptx::testing::Scratch;

    fn device(files: &[(&str, &str)]) -> Scratch {
        let scratch = Scratch::new("digest");
        scratch.write("Cargo.toml", "[package]\n");
        for (name, contents) in files {
            scratch.write(name, contents);
        }
        scratch
    }

    fn digest(files: &[(&str, &str)]) -> String {
        sources(device(files).path()).unwrap()
    }

    #[test]
    fn every_source_counts_and_nothing_else_does() {
        let base = digest(&[("src/lib.rs", "a"), ("src/gpu/mod.rs", "b")]);
        assert_eq!(base.len(), 64);
        for changed in [
            &[("src/lib.rs", "A"), ("src/gpu/mod.rs", "b")][..],
            &[("src/lib.rs", "a"), ("src/gpu/mod.rs", "B")],
            &[("src/lib.rs", "a"), ("src/gpu/other.rs", "b")],
            &[("src/lib.rs", "ab"), ("src/gpu/mod.rs", "")],
            &[("src/lib.rs", "a")],
            &[
                ("src/lib.rs", "a"),
                ("src/gpu/mod.rs", "b"),
                ("build.rs", ""),
            ],
            &[
                ("src/lib.rs", "a"),
                ("src/gpu/mod.rs", "b"),
                ("Cargo.toml", "[lib]"),
            ],
        ] {
            assert_ne!(digest(changed), base, "{changed:?}");
        }
        let unrelated = [
            ("src/lib.rs", "a"),
            ("src/gpu/mod.rs", "b"),
            ("ptx/sm_80.ptx", "x"),
            ("src/notes.md", "x"),
        ];
        assert_eq!(digest(&unrelated), base);
    }

    #[test]
    fn order_of_creation_and_line_ends_do_not_count() {
        let unix = digest(&[("src/lib.rs", "a\nb\n"), ("src/z.rs", "z")]);
        let dos = digest(&[("src/z.rs", "z"), ("src/lib.rs", "a\r\nb\r\n")]);
        assert_eq!(unix, dos);
        assert_ne!(unix, digest(&[("src/lib.rs", "a\rb\n"), ("src/z.rs", "z")]));
    }

    #[test]
    fn a_missing_crate_is_an_error_that_names_it() {
        let scratch = Scratch::new("digest");
        let error = sources(&scratch.path().join("nowhere")).unwrap_err();
        assert!(error.contains("nowhere"), "{error}");
    }
}
