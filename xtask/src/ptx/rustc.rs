//! Finding a rustc that can compile kernels: one with the sources of `core` beside it.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Names a rustc to use in place of the search.
const RUSTC_VARIABLE: &str = "PTX_RUSTC";

/// The first release whose NVPTX backend and flags were tried: this workspace's own `rust-version`.
const OLDEST_MINOR: u32 = 95;

/// What to do where no compiler was found.
const REMEDY: &str = "Any one of these will do:
    rustup component add rust-src      (to the toolchain that this repository pins)
    rustup toolchain install nightly --profile minimal --component rust-src
    apt-get install rustc-web rust-web-src      (Debian)
    PTX_RUSTC=/path/to/a/rustc/that/has/rust-src";

/// A compiler that can build `core` for NVPTX.
#[derive(Debug)]
pub struct Compiler {
    pub rustc: PathBuf,
    pub cargo: PathBuf,
    pub sysroot: PathBuf,
    /// `rustc 1.96.0 (…), LLVM 22.1.8`: what shipped PTX says made it.
    pub version: String,
}

impl Compiler {
    /// The first usable rustc: the one that `PTX_RUSTC` names, a rustup nightly, the system's, any other of
    /// rustup's. Where none is usable, the error
    /// says why each was passed over and what to install.
    pub fn find() -> Result<Self, String> {
        if let Some(named) = env::var_os(RUSTC_VARIABLE) {
            // A wish that cannot be met is an error: another compiler would make other PTX.
            return Self::at(Path::new(&named))
                .map_err(|why| format!("{RUSTC_VARIABLE}={}: {why}\n{REMEDY}", named.display()));
        }
        let mut passed_over = String::new();
        for rustc in candidates(rustup_home().as_deref(), Path::new("/usr/bin/rustc")) {
            match Self::at(&rustc) {
                Ok(compiler) => return Ok(compiler),
                Err(why) => passed_over.push_str(&format!("\n  {}: {why}", rustc.display())),
            }
        }
        Err(format!("no rustc with rust-src{passed_over}\n{REMEDY}"))
    }

    fn at(rustc: &Path) -> Result<Self, String> {
        let verbose = ask(rustc, &["-vV"])?;
        let field = |name: &str| {
            verbose
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .map(str::trim)
                .unwrap_or_default()
        };
        let release = field("release:");
        let minor = release
            .split('.')
            .nth(1)
            .and_then(|m| m.parse::<u32>().ok());
        if minor.is_none_or(|minor| minor < OLDEST_MINOR) {
            return Err(format!(
                "is release {release:?}; 1.{OLDEST_MINOR} or later is needed"
            ));
        }
        let sysroot = PathBuf::from(ask(rustc, &["--print", "sysroot"])?.trim());
        let core = sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml");
        if !core.exists() {
            return Err("has no rust-src".to_owned());
        }
        // A cargo of the same release knows that release's standard library best.
        let own_cargo = sysroot.join("bin/cargo");
        let cargo = if own_cargo.exists() {
            own_cargo
        } else {
            PathBuf::from(env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")))
        };
        let name = verbose.lines().next().unwrap_or_default();
        let llvm = field("LLVM version:");
        Ok(Self {
            rustc: rustc.to_owned(),
            cargo,
            sysroot,
            version: format!("{name}, LLVM {llvm}"),
        })
    }
}

fn ask(rustc: &Path, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(rustc)
        .args(arguments)
        // cargo's own libraries, in front of another rustc's, would stop that one from starting.
        .env_remove("LD_LIBRARY_PATH")
        .env("RUSTC_BOOTSTRAP", "1")
        .output()
        .map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(format!("`rustc {}` failed", arguments.join(" ")));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn rustup_home() -> Option<PathBuf> {
    env::var_os("RUSTUP_HOME")
        .map(PathBuf::from)
        .or_else(|| env::home_dir().map(|home| home.join(".rustup")))
}

/// Every rustc worth asking, best first.
fn candidates(rustup: Option<&Path>, system: &Path) -> Vec<PathBuf> {
    let mut toolchains: Vec<PathBuf> = rustup
        .and_then(|home| fs::read_dir(home.join("toolchains")).ok())
        .into_iter()
        .flatten()
        .flatten()
        .map(|toolchain| toolchain.path())
        .collect();
    // Newest dated nightly first; plain `nightly` is newer than any date.
    toolchains.sort();
    toolchains.reverse();
    let (mut nightlies, others): (Vec<_>, Vec<_>) = toolchains.into_iter().partition(|path| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("nightly"))
    });
    nightlies.sort_by_key(|path| path.to_string_lossy().contains("nightly-20"));
    let rustc = |toolchain: PathBuf| toolchain.join("bin/rustc");
    nightlies
        .into_iter()
        .map(rustc)
        .chain([system.to_owned()])
        .chain(others.into_iter().map(rustc))
        .filter(|path| path.exists())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ptx::testing::Scratch;

    #[test]
    fn nightlies_come_before_the_system_and_the_system_before_the_rest() {
        let scratch = Scratch::new("rustc");
        for name in [
            "stable-x86_64-unknown-linux-gnu",
            "1.95.0-x86_64-unknown-linux-gnu",
            "nightly-2026-01-02-x86_64-unknown-linux-gnu",
            "nightly-2026-03-04-x86_64-unknown-linux-gnu",
            "nightly-x86_64-unknown-linux-gnu",
        ] {
            scratch.write(&format!("toolchains/{name}/bin/rustc"), "");
        }
        scratch.write("toolchains/nightly-empty/README", "");
        scratch.write("system/rustc", "");
        let system = scratch.path().join("system/rustc");
        let found = candidates(Some(scratch.path()), &system);
        let names: Vec<_> = found
            .iter()
            .map(|path| path.strip_prefix(scratch.path()).unwrap().to_str().unwrap())
            .map(|path| {
                path.trim_start_matches("toolchains/")
                    .trim_end_matches("/bin/rustc")
            })
            .collect();
        assert_eq!(
            names,
            [
                "nightly-x86_64-unknown-linux-gnu",
                "nightly-2026-03-04-x86_64-unknown-linux-gnu",
                "nightly-2026-01-02-x86_64-unknown-linux-gnu",
                "system/rustc",
                "stable-x86_64-unknown-linux-gnu",
                "1.95.0-x86_64-unknown-linux-gnu",
            ]
        );
    }

    #[test]
    fn a_machine_without_rustup_asks_the_system_alone() {
        let scratch = Scratch::new("rustc");
        scratch.write("rustc", "");
        let system = scratch.path().join("rustc");
        let found = candidates(None, &system);
        assert_eq!(found, [system]);
        assert!(candidates(None, &scratch.path().join("none")).is_empty());
    }

    #[cfg(unix)]
    #[test]
    fn a_rustc_that_is_too_old_or_has_no_sources_is_passed_over_with_the_reason() {
        use std::os::unix::fs::PermissionsExt;
        let scratch = Scratch::new("rustc");
        let fake = |release: &str| {
            let root = scratch.path().display();
            scratch.write(
                "bin/rustc",
                &format!(
                    "#!/bin/sh\ncase $1 in -vV) echo 'rustc {release}'; echo 'release: {release}'; \
                    echo 'LLVM version: 22.1.8';; *) echo {root};; esac\n"
                ),
            );
            let rustc = scratch.path().join("bin/rustc");
            fs::set_permissions(&rustc, fs::Permissions::from_mode(0o755)).unwrap();
            Compiler::at(&rustc)
        };
        assert!(fake("1.70.0").unwrap_err().contains("1.95"));
        assert!(fake("1.97.0-nightly").unwrap_err().contains("rust-src"));
        scratch.write("lib/rustlib/src/rust/library/core/Cargo.toml", "");
        assert_eq!(
            fake("1.97.0-nightly").unwrap().version,
            "rustc 1.97.0-nightly, LLVM 22.1.8"
        );
        assert!(fake("1.70.0").is_err());
    }
}
