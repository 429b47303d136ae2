//! Chores of the repository, as `cargo xtask COMMAND`.

mod calibrate;
mod fuzz;
mod imports;
mod ptx;
mod quality;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Chores of the sample-attention repository.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Fail on a circle of files, or on an import from a higher floor.
    Imports,
    /// Build, check and lint the shipped PTX.
    #[command(subcommand)]
    Ptx(ptx::Command),
    /// Compare random problems with the oracle, for as long as you like.
    Fuzz(fuzz::Options),
    /// Find a policy for each head of a language model, on a text.
    Calibrate(Box<calibrate::Options>),
    /// Measure how close a language model stays to dense with every layer's attention replaced.
    Quality(Box<quality::Options>),
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Imports => imports::run(),
        Command::Ptx(command) => ptx::run(command),
        Command::Fuzz(options) => fuzz::run(&options),
        Command::Calibrate(options) => calibrate::run(&options),
        Command::Quality(options) => quality::run(*options),
    }
}
