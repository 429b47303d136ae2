//! Random problems against the oracle, for as long as one likes: the long one of `tests/fuzz.rs`.

use std::process::{Command, ExitCode};

use clap::Args;

/// How long, and where to begin.
#[derive(Args)]
pub struct Options {
    /// Seconds to go on for.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Seed of the first problem; each takes the next. A failure names its seed: `--seed THAT --seconds 1` replays it.
    #[arg(long, default_value_t = 1_000_000)]
    seed: u64,
}

/// Runs the test, which says how far it has come.
pub fn run(options: &Options) -> ExitCode {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["test", "--package", "sample-attention", "--test", "fuzz"])
        .args(["--", "--ignored", "--nocapture"])
        .env("FUZZ_SECONDS", options.seconds.to_string())
        .env("FUZZ_SEED", options.seed.to_string())
        .status();
    match status {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("cargo cannot be run: {error}");
            ExitCode::FAILURE
        }
    }
}
