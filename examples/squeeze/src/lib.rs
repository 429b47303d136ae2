//! Squeezed Attention over a fixed context: captured or synthetic q, k and v in; an index of the first positions, what the queries after them
//! look up, and a comparison with dense attention out.
//!
//! `cargo run --release --example squeeze` runs the capture that is built into the program. `-- --help` lists the options. Bad input
//! ends in one line on stderr and exit code 2, and leaves no file behind.

mod args;
mod compute;
mod input;
mod picture;
mod table;

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use sample_attention::squeeze::Index;
use sample_attention_prefill::failure::{Failure, print};
use sample_attention_prefill::files::Staged;
use sample_attention_prefill::memory;

use args::{Asked, Request};

/// The program: reads the arguments, runs, and says how it ended.
pub fn main() -> ExitCode {
    let ended = match args::parse() {
        Ok(Asked::Run(request)) => run(&request),
        Ok(Asked::Text(text)) => print(&text),
        Err(failure) => Err(failure),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn run(request: &Request) -> Result<(), Failure> {
    memory::prepare();
    let loads = request.index.as_deref().is_some_and(Path::exists);
    let mut written = Vec::new();
    if let (Some(path), false) = (&request.index, loads) {
        written.push(("--index", path.as_path()));
    }
    if let Some(path) = &request.picture {
        written.push(("--picture", path.as_path()));
    }
    let mut read = Vec::new();
    if let Some(path) = &request.input {
        read.push(("--input", path.as_path()));
    }
    if let (Some(path), true) = (&request.index, loads) {
        read.push(("--index", path.as_path()));
    }
    let mut files = Staged::new(written, &read)?;
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(request.threads.unwrap_or(0))
        .build()
        .map_err(|error| {
            Failure::of("threads cannot be started, --threads asks for fewer", error)
        })?;
    let text = pool.install(|| -> Result<String, Failure> {
        let input = input::load(request)?;
        let outcome = compute::run(request, &input, loads)?;
        if let (Some(path), false) = (&request.index, loads) {
            files.write(path, |to| copy_index(&outcome.index, to))?;
        }
        if let Some(path) = &request.picture {
            files.write(path, |to| picture::write(to, &input, &outcome))?;
        }
        Ok(table::table(request, &input, &outcome))
    })?;
    // The table is an output like the files: all of them, or none.
    files.publish()?;
    print(&text)?;
    files.keep();
    Ok(())
}

/// The index as it lies in a file of its own, so that it appears together with the other files.
fn copy_index(index: &Index, to: &mut dyn Write) -> Result<(), Failure> {
    let folder = tempfile::tempdir().map_err(Failure::new)?;
    let path = folder.path().join("index");
    index.save(&path).map_err(Failure::new)?;
    let mut file = File::open(&path).map_err(Failure::new)?;
    std::io::copy(&mut file, to).map_err(Failure::new)?;
    Ok(())
}
