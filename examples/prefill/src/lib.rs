//! SampleAttention over one prefill: captured or synthetic q, k and v in; attention, a table and, on request, files out.
//!
//! `cargo run --release --example prefill` runs the capture that is built into the program and compares it with dense.
//! `-- --help` lists the options. Bad input ends in one line on stderr and exit code 2, and leaves no file behind.

mod allocator;
mod args;
mod compute;
mod engine;
#[doc(hidden)]
pub mod failure;
#[doc(hidden)]
pub mod files;
mod gpu;
mod input;
#[doc(hidden)]
pub mod memory;
mod output;
mod picture;
mod plan;
mod progress;
mod ragged;
mod report;
#[cfg(unix)]
mod signals;
mod table;
mod treatment;

#[doc(hidden)]
pub use picture::canvas;

use std::process::ExitCode;

use args::Request;
use engine::Machine;
use failure::{Failure, print};
use files::Staged;
use input::Input;
use treatment::Treatment;

/// What is to be done, and on what.
#[derive(Clone, Copy)]
struct Asked<'a> {
    request: &'a Request,
    input: &'a Input,
    treatment: &'a Treatment,
}

/// The program: reads the arguments, runs, and says how it ended.
pub fn main() -> ExitCode {
    let ended = match args::parse() {
        Ok(args::Asked::Run(request)) => run(&request),
        Ok(args::Asked::Plan(request)) => plan::describe(&request).and_then(|text| print(&text)),
        Ok(args::Asked::Text(text)) => print(&text),
        Err(failure) => Err(failure),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// As many threads as are asked for, or as the machine has.
fn threads(threads: Option<usize>) -> Result<rayon::ThreadPool, Failure> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.unwrap_or(0));
    pool.build().map_err(|error| match threads {
        Some(threads) => Failure::of(format_args!("--threads {threads}"), error),
        None => Failure::of("threads cannot be started, --threads asks for fewer", error),
    })
}

fn run(request: &Request) -> Result<(), Failure> {
    memory::prepare();
    let mut files = Staged::new(request.written_files(), &request.read_files())?;
    let pool = threads(request.threads)?;
    let text = pool.install(|| -> Result<String, Failure> {
        if let Some(path) = ragged::file_of(request) {
            return ragged::run(request, path, &mut files);
        }
        let machine = Machine::open(request.backend)?;
        let input = input::load(request)?;
        for warning in &input.warnings {
            failure::warn(warning);
        }
        let drawn = picture::drawn_heads(request, &input)?;
        let treatment = Treatment::of(request, &input)?;
        let asked = Asked {
            request,
            input: &input,
            treatment: &treatment,
        };
        let outcome = compute::run(&asked, &machine, drawn.len())?;
        if let Some(path) = &request.output {
            files.write(path, |to| output::write(to, &input, &outcome))?;
        }
        if let Some(path) = &request.report {
            files.write(path, |to| report::write(to, &asked, &outcome))?;
        }
        if let Some(path) = &request.picture {
            files.write(path, |to| picture::write(to, &asked, &outcome, &drawn))?;
        }
        Ok(table::table(&asked, &outcome))
    })?;
    // The table is an output like the files: all of them, or none.
    files.publish()?;
    print(&text)?;
    files.keep();
    Ok(())
}
