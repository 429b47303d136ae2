//! Finds a profile for a language model: a policy for every head of every layer.
//!
//! The search is the library's (`sample_attention::calibrate`); here are the model that it runs, the texts that it reads, and the check
//! on text that it did not.

mod engine;
mod errors;
mod held_out;
mod picture;
#[cfg(test)]
mod tests;
mod texts;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use sample_attention::HeadPolicy;
use sample_attention::calibrate::{
    Found, HeadTable, Measured, Memo, Search, Step, default_candidates,
};
use sample_attention::profile::{Calibrated, Profile};
use sha2::{Digest, Sha256};

use crate::quality;
use crate::quality::model::Model;
use engine::ModelEngine;
use errors::ModelErrors;

/// Options of a calibration.
#[derive(Args)]
pub struct Options {
    /// Directory of the model: config.json and model*.safetensors.
    #[arg(long)]
    model: PathBuf,
    /// Text to calibrate on, of which the second half is held out for the check; text.txt of the model's directory when not given.
    #[arg(long)]
    text: Option<PathBuf>,
    /// Bytes of the texts, separated by commas: those of the prompts to come.
    #[arg(long, value_delimiter = ',', default_value = "8192")]
    lengths: Vec<usize>,
    /// Texts of each length, with questions at the end and in the middle by turns.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=64))]
    texts: u64,
    /// Bits of divergence that making one dense head free is worth: the higher, the cheaper the profile.
    #[arg(long, default_value_t = 0.001, value_parser = price)]
    price: f64,
    /// Where to write the profile.
    #[arg(long, value_name = "FILE.json")]
    out: PathBuf,
    /// Measure single heads by the error of their outputs in place of runs of the whole model, which are then a few.
    #[arg(long)]
    fast: bool,
    /// Profiles that the descent tries at most.
    #[arg(long, default_value_t = 240)]
    trials: usize,
    /// What was measured, to go on after an interruption [default: the profile's name and .state]
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// Draw what each head became.
    #[arg(long, value_name = "FILE.svg")]
    picture: Option<PathBuf>,
    /// Held-out texts each way for the check of each length: 8, or 3 of more than 16,384 bytes, when not given; 0 for no check.
    #[arg(long)]
    cases: Option<u64>,
}

fn price(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(price) if price.is_finite() && price >= 0.0 => Ok(price),
        _ => Err("a price is a finite number from 0 on".into()),
    }
}

/// Calibrates and prints; what went wrong goes to standard error.
pub fn run(options: &Options) -> ExitCode {
    match calibrate(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

fn calibrate(options: &Options) -> Result<(), String> {
    let model = quality::load(&options.model)?;
    let beside = || options.model.join("text.txt");
    let path = options.text.clone().unwrap_or_else(beside);
    let text = fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let mut texts = Vec::new();
    for &len in &options.lengths {
        texts.extend(texts::with_questions(&text, len, options.texts)?);
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let read = texts::in_words(&name, &text, &options.lengths, options.texts);
    println!("calibrating on {read}");

    let state = options
        .state
        .clone()
        .unwrap_or_else(|| with_suffix(&options.out, ".state"));
    let memo = Memo::open(&state, &subject(&options.model, &texts)?).map_err(|e| e.to_string())?;
    if !memo.is_empty() {
        println!(
            "going on from {} measurements in {}",
            memo.len(),
            state.display()
        );
    }
    let (table, found) = search(options, &model, &texts, memo)?;
    let Found {
        heads,
        before,
        measured,
        ..
    } = &found;
    println!(
        "chosen head by head: cost {:.4}, KL {:.5} bits; after {} trials{}: cost {:.4}, KL {:.5}",
        before.cost,
        before.divergence,
        found.trials,
        if found.is_settled { ", settled" } else { "" },
        measured.cost,
        measured.divergence,
    );
    let calibration = Calibrated::new(read, options.lengths.clone(), options.price);
    let model_name = model_name(&options.model, &model);
    let profile = Profile::new(model_name, heads.clone())
        .and_then(|profile| profile.with_calibration(calibration))
        .map_err(|error| error.to_string())?;
    profile
        .write(&options.out)
        .map_err(|error| error.to_string())?;
    println!(
        "{}\nwritten to {}",
        in_words(&profile),
        options.out.display()
    );
    if let Some(path) = &options.picture {
        let drawn = picture::svg(&profile, &costs(&profile, &table));
        fs::write(path, drawn).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    for &len in &options.lengths {
        let cases = options.cases.unwrap_or(if len > 16_384 { 3 } else { 8 });
        if cases > 0 {
            println!("\n{}", held_out::check(&model, &text, len, cases, heads)?);
        }
    }
    Ok(())
}

/// Each head alone, then the descent.
fn search(
    options: &Options,
    model: &Model,
    texts: &[Vec<u8>],
    memo: Memo,
) -> Result<(HeadTable, Found), String> {
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len}, {eta} left: {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(1).with_style(style);
    let mut engine = ModelEngine::new(model, texts);
    let mut search = Search::new(default_candidates(), memo).watched(|step| show(&bar, step));
    let failed = |error: &dyn std::fmt::Display| error.to_string();
    let table = if options.fast {
        let errors = search
            .heads_by_error(&mut ModelErrors::new(model, texts))
            .map_err(|error| failed(&error))?;
        search.fit_heads(&mut engine, &errors)
    } else {
        search.heads_by_divergence(&mut engine)
    };
    let table = table.map_err(|error| failed(&error))?;
    let estimate = table.estimate(options.price);
    bar.suspend(|| {
        println!(
            "heads by themselves: cost {:.4}, and KL {:.5} bits if their divergences added up",
            estimate.cost, estimate.divergence
        );
    });
    let found = search
        .descend(&mut engine, &table, options.price, options.trials)
        .map_err(|error| failed(&error))?;
    bar.finish_and_clear();
    Ok((table, found))
}

fn show(bar: &ProgressBar, step: Step) {
    match step {
        Step::Alone { done, total } => {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
            bar.set_message("each head alone");
        }
        Step::Fit { done, total } => {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
            bar.set_message("from errors to bits");
        }
        Step::Descent { trials, most, best } => {
            bar.set_length(most as u64);
            bar.set_position(trials as u64);
            let Measured {
                divergence, cost, ..
            } = best;
            bar.set_message(format!("together: cost {cost:.4}, KL {divergence:.5} bits"));
        }
        _ => {}
    }
}

/// What the measurements depend on: the model's files and the texts.
fn subject(model: &Path, texts: &[Vec<u8>]) -> Result<String, String> {
    let mut digest = Sha256::new();
    for path in quality::weights::model_files(model)? {
        digest.update(fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?);
    }
    for text in texts {
        digest.update((text.len() as u64).to_le_bytes());
        digest.update(text);
    }
    let bytes = digest.finalize();
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn model_name(directory: &Path, model: &Model) -> String {
    let name = directory.file_name().unwrap_or_default().to_string_lossy();
    let config = model.config();
    format!(
        "{name}: byte-level, {} layers, {} query and {} key/value heads of {}",
        config.layers, config.q_heads, config.kv_heads, config.head_dim
    )
}

/// Each head's cost alone, as the table has it.
fn costs(profile: &Profile, table: &HeadTable) -> Vec<Vec<f64>> {
    let candidate = |policy: &HeadPolicy| table.candidates().iter().position(|one| one == policy);
    (0..profile.layers())
        .map(|layer| {
            let heads = profile.layer(layer).unwrap_or_default().iter().enumerate();
            heads
                .map(|(head, policy)| {
                    let measured = table.head(layer, head);
                    candidate(policy).map_or(1.0, |at| measured[at].cost)
                })
                .collect()
        })
        .collect()
}

fn in_words(profile: &Profile) -> String {
    let layers = (0..profile.layers()).map(|layer| {
        let heads = profile.layer(layer).unwrap_or_default();
        let words: Vec<String> = heads.iter().map(picture::in_words).collect();
        format!("layer {layer}: {}", words.join(" | "))
    });
    layers.collect::<Vec<_>>().join("\n")
}
