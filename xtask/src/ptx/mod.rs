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
mod project;
mod ptxas;
mod resources;
mod rustc;
#[cfg(test)]
mod testing;
mod text;
#[cfg(test)]
mod whole_way;

use std::process::ExitCode;

use clap::Subcommand;

use project::Project;

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
