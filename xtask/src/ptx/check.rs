//! `cargo xtask ptx check`: are the shipped files made from these sources? Needs no compiler.

use super::Project;
use super::compile::flags;
use super::digest;
use super::launch_bounds::Target;

/// Fails with every target whose shipped PTX is missing, was made from other sources or with other flags,
/// or was changed by hand.
pub fn check(project: &Project) -> Result<(), String> {
    let sources = digest::sources(&project.device)?;
    let mut stale = Vec::new();
    for target in Target::ALL {
        let file = project.ptx_file(target);
        let why = if project.targets().contains(&target) {
            match project.shipped(target) {
                Ok((header, _)) if header.sources != sources => {
                    "it was made from other sources than are here"
                }
                Ok((header, _)) if header.flags != flags(target) => {
                    "it was made with other flags than a build uses now"
                }
                Ok(_) => continue,
                Err(why) => {
                    stale.push(why);
                    continue;
                }
            }
        } else if file.exists() {
            "no kernel in the launch bounds table is for it: delete it"
        } else {
            continue;
        };
        stale.push(format!("{}: {why}", project.shown(&file)));
    }
    if stale.is_empty() {
        return Ok(());
    }
    Err(format!(
        "{}\nRun `cargo xtask ptx build` and commit device/ptx; `cargo xtask ptx doctor` says what it needs.",
        stale.join("\n")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ptx::header::Header;
    use crate::ptx::testing::{Scratch, one_kernel_project};

    /// A checkout whose shipped file fits its sources.
    fn fresh() -> Scratch {
        let scratch = Scratch::new("check");
        scratch.write("device/Cargo.toml", "[package]\n");
        scratch.write("device/src/lib.rs", "fn k() {}\n");
        ship(&scratch, &flags(Target::Sm80));
        scratch
    }

    fn ship(scratch: &Scratch, flags: &str) {
        let header = Header {
            compiler: "rustc".to_owned(),
            flags: flags.to_owned(),
            sources: digest::sources(&scratch.path().join("device")).unwrap(),
        };
        scratch.write(
            "device/ptx/sm_80.ptx",
            &header.with_body(".version 7.0\n.entry k() { ret; }\n"),
        );
    }

    fn complaint(scratch: &Scratch) -> String {
        check(&one_kernel_project(scratch)).unwrap_err()
    }

    /// The check that `cargo test` makes of this repository.
    #[test]
    fn shipped_ptx_is_made_from_the_sources_here() {
        if let Err(why) = check(&Project::here()) {
            panic!("{why}");
        }
    }

    #[test]
    fn a_file_made_from_these_sources_passes() {
        check(&one_kernel_project(&fresh())).unwrap();
    }

    #[test]
    fn a_changed_source_is_found_and_the_remedy_named() {
        let scratch = fresh();
        scratch.write("device/src/lib.rs", "fn k() { }\n");
        let why = complaint(&scratch);
        assert!(why.contains("other sources"), "{why}");
        assert!(why.contains("cargo xtask ptx build"), "{why}");
        assert!(why.starts_with("device/ptx/sm_80.ptx"), "{why}");
    }

    #[test]
    fn other_flags_an_edited_file_and_a_missing_one_are_found() {
        let scratch = fresh();
        ship(&scratch, "-Copt-level=0");
        assert!(complaint(&scratch).contains("other flags"));

        let scratch = fresh();
        let file = scratch.path().join("device/ptx/sm_80.ptx");
        let text = std::fs::read_to_string(&file).unwrap();
        scratch.write("device/ptx/sm_80.ptx", &text.replace("ret;", "exit;"));
        assert!(complaint(&scratch).contains("changed after it was built"));

        std::fs::remove_file(&file).unwrap();
        assert!(complaint(&scratch).contains("sm_80.ptx"));
    }

    #[test]
    fn a_file_that_no_kernel_needs_is_found() {
        let scratch = fresh();
        scratch.write("device/ptx/sm_90a.ptx", "");
        let why = complaint(&scratch);
        assert!(
            why.contains("sm_90a.ptx") && why.contains("delete it"),
            "{why}"
        );
    }
}
