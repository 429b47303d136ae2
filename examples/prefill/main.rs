//! SampleAttention over one prefill: captured or synthetic q, k and v in; attention, a table and, on request, files out.
//!
//! `cargo run --release --example prefill` runs the capture that the repository carries and compares it with dense.
//! `-- --help` lists the options. Bad input ends in one line on stderr and exit code 2, and leaves no file behind.

mod args;
mod compute;
mod engine;
mod failure;
mod files;
mod gpu;
mod input;
mod memory;
mod output;
mod picture;
mod progress;
mod report;
mod table;

use std::io::Write;
use std::process::ExitCode;

use args::Request;
use engine::Machine;
use failure::Failure;
use files::Staged;

fn main() -> ExitCode {
    match args::parse() {
        Ok(args::Asked::Run(request)) => match run(&request) {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => failure.report(),
        },
        Ok(args::Asked::Text(text)) => {
            print(&text);
            ExitCode::SUCCESS
        }
        Err(failure) => failure.report(),
    }
}

fn run(request: &Request) -> Result<(), Failure> {
    let mut files = Staged::new(request.written_files(), request.read_file())?;
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(request.threads.unwrap_or(0))
        .build()
        .map_err(|error| Failure::new(format!("--threads: {error}")))?;
    let text = pool.install(|| -> Result<String, Failure> {
        let machine = Machine::open(request.backend)?;
        let input = input::load(request)?;
        let outcome = compute::run(request, &machine, &input)?;
        if let Some(path) = &request.output {
            files.write(path, |to| output::write(to, &input, &outcome))?;
        }
        if let Some(path) = &request.report {
            files.write(path, |to| report::write(to, request, &input, &outcome))?;
        }
        if let Some(path) = &request.picture {
            files.write(path, |to| picture::write(to, request, &input, &outcome))?;
        }
        Ok(table::table(request, &input, &outcome))
    })?;
    files.publish()?;
    print(&text);
    Ok(())
}

/// Prints, and does not mind a reader that has seen enough.
fn print(text: &str) {
    let mut stdout = std::io::stdout().lock();
    let _ = stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush());
}
