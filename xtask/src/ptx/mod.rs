//! The shipped PTX: building it, and the checks that keep it honest.
//!
//! `build` runs rustc's own NVPTX backend on the device crate, adds launch bounds, lowers `.version` and
//! writes `device/ptx`. `check` compares digests and needs no tools; `lint` needs ptxas; `doctor` says what is there.

mod build;
mod census;
mod check;
mod compile;
mod digest;
mod doctor;
mod edit;
mod files;
mod header;
// The device crate's own file, so that the chores work while that crate does not compile.
// `launch_bounds` is for its constants and unused here.
#[allow(dead_code)]
#[path = "../../../device/src/launch_bounds.rs"]
mod launch_bounds;
mod lint;
mod ptxas;
mod resources;
mod rustc;
#[cfg(test)]
mod testing;
mod text;
#[cfg(test)]
mod whole_way;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Subcommand;

use header::Header;
use launch_bounds::{LAUNCH_BOUNDS, LaunchBounds, Target};
use resources::Resources;

/// What to do with the shipped PTX.
#[derive(Subcommand)]
pub enum Command {
    /// Compile the kernels and write device/ptx.
    Build {
        /// Write nothing; fail where the committed files are not what a build makes.
        #[arg(long)]
        verify: bool,
    },
    /// Fail where the shipped PTX was made from other sources. Needs no compiler.
    Check,
    /// Assemble the shipped PTX: no spills, no warnings, the committed registers and barriers.
    Lint,
    /// Say which compiler and ptxas a build would use, and how to get what is missing.
    Doctor,
}

/// Runs one command; what went wrong goes to standard error.
pub fn run(command: Command) -> ExitCode {
    let project = Project::here();
    let result = match command {
        Command::Build { verify: false } => build::build(&project),
        Command::Build { verify: true } => build::verify(&project),
        Command::Check => check::check(&project),
        Command::Lint => lint::lint(&project),
        Command::Doctor => doctor::doctor(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

/// The crate that is built, and where.
struct Project {
    /// The workspace.
    root: PathBuf,
    device: PathBuf,
    package: &'static str,
    target_dir: PathBuf,
    bounds: &'static [LaunchBounds],
}

impl Project {
    /// This repository.
    fn here() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .expect("xtask lies in the workspace")
            .to_owned();
        let target_dir = env::var_os("CARGO_TARGET_DIR")
            .and_then(|folder| std::path::absolute(folder).ok())
            .unwrap_or_else(|| root.join("target"));
        Self {
            device: root.join("device"),
            root,
            package: "sample-attention-device",
            target_dir,
            bounds: LAUNCH_BOUNDS,
        }
    }

    /// The targets that any kernel is for.
    fn targets(&self) -> Vec<Target> {
        Target::ALL
            .into_iter()
            .filter(|target| self.bounds.iter().any(|row| row.targets.contains(target)))
            .collect()
    }

    fn ptx_file(&self, target: Target) -> PathBuf {
        self.device
            .join("ptx")
            .join(format!("{}.ptx", target.name()))
    }

    fn resources_file(&self) -> PathBuf {
        self.device.join("ptx/resources.txt")
    }

    /// The committed table of resources.
    fn resources(&self) -> Result<Resources, String> {
        let path = self.resources_file();
        fs::read_to_string(&path)
            .map_err(|error| format!("cannot be read: {error}"))
            .and_then(|text| Resources::parse(&text))
            .map_err(|why| format!("{}: {why}", self.shown(&path)))
    }

    /// The shipped PTX of a target: what it says about itself, and the text.
    fn shipped(&self, target: Target) -> Result<(Header, String), String> {
        let path = self.ptx_file(target);
        fs::read_to_string(&path)
            .map_err(|error| format!("cannot be read: {error}"))
            .and_then(|file| Header::parse(&file))
            .map_err(|why| format!("{}: {why}", self.shown(&path)))
    }

    /// A path as people write it: from the root of the repository.
    fn shown(&self, path: &Path) -> String {
        path.strip_prefix(&self.root)
            .unwrap_or(path)
            .display()
            .to_string()
    }
}
