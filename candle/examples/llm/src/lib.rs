//! A language model of Llama's format whose prefill is dense or sparse, to see what sparse attention saves and what it costs.
//!
//! ```text
//! config.json, *.safetensors -> model -> prefill of a prompt, dense     -> hidden states, first token ┐
//!                                     -> the same, sparse               -> hidden states, first token ┴-> loss of both, KL
//!                                     -> decoding with the sparse cache -> text
//! ```
//!
//! Bad input ends in one line on stderr and exit code 2.

mod args;
mod cache;
mod compare;
mod config;
mod convert;
mod failure;
mod model;
mod names;
mod policies;
mod prefill;
mod report;
mod rope;
mod run;
mod text;
mod weights;

use std::process::ExitCode;

use args::Asked;

/// The program: reads the arguments, runs, and says how it ended.
pub fn main() -> ExitCode {
    let ended = match args::parse() {
        Ok(Asked::Run(options)) => run::run(&options),
        Ok(Asked::Convert { from, to }) => convert::convert(&from, &to),
        Ok(Asked::Text(text)) => Ok(text),
        Err(failure) => Err(failure),
    };
    match ended.and_then(|text| report::print(&text)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
