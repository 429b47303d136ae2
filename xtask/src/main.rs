//! Chores of the repository, as `cargo xtask COMMAND`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Chores of the sample-attention repository.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {}

fn main() -> ExitCode {
    match Cli::parse().command {}
}
