//! What is printed at the end.

use std::fmt::Write as _;
use std::io::{ErrorKind, Write};
use std::time::Duration;

use candle_core::DType;

use crate::args::Options;
use crate::compare::Compared;
use crate::failure::Failure;
use crate::model::Model;
use crate::policies::LayerPolicies;
use crate::prefill::Prefilled;

pub struct Outcome<'a> {
    pub options: &'a Options,
    pub policies: &'a LayerPolicies,
    pub dtype: DType,
    pub model: &'a Model,
    pub tokens: usize,
    pub dense_time: Duration,
    pub sparse: &'a Prefilled,
    pub compared: Compared,
    pub answer: String,
    pub answer_tokens: usize,
    pub decoding: Duration,
}

pub fn text(outcome: &Outcome<'_>) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write(outcome, &mut text);
    text
}

fn write(outcome: &Outcome<'_>, to: &mut String) -> std::fmt::Result {
    let Outcome {
        options,
        policies,
        model,
        sparse,
        compared,
        ..
    } = outcome;
    let config = &model.config;
    let chunk = match options.chunk {
        0 => "whole".to_owned(),
        chunk => format!("in chunks of {chunk}"),
    };
    let cache = match options.page {
        0 => "in one piece".to_owned(),
        page => format!("in pages of {page}"),
    };
    writeln!(
        to,
        "model        {} layers, {}/{} heads of {}, {:?}, {}",
        model.layers(),
        config.num_attention_heads,
        config.kv_heads(),
        config.head_dim(),
        outcome.dtype,
        options.device
    )?;
    writeln!(
        to,
        "prompt       {} tokens, {chunk}; cache {cache}",
        outcome.tokens
    )?;
    writeln!(to, "policy       {}", policies.name)?;
    let (dense, sparse_time) = (
        outcome.dense_time.as_secs_f64(),
        sparse.time_to_first_token.as_secs_f64(),
    );
    writeln!(to, "\n             first token        prompt      loss")?;
    for (name, time, loss) in [
        ("dense", dense, compared.dense_loss),
        ("sparse", sparse_time, compared.sparse_loss),
    ] {
        writeln!(
            to,
            "{name:12} {time:9.3} s  {:8.0} tok/s  {loss:.4} bits/token",
            outcome.tokens as f64 / time
        )?;
    }
    writeln!(to, "speed-up     {:9.2} ×", dense / sparse_time)?;
    writeln!(
        to,
        "KL           {:9.4} bits; the same likeliest token at {:.1} %",
        compared.kl,
        100.0 * compared.same
    )?;
    kept(sparse, to)?;
    let cache_bytes: usize = sparse.caches.iter().map(|cache| cache.bytes()).sum();
    write!(
        to,
        "\nmemory       cache {}, workspace {}",
        size(cache_bytes),
        size(sparse.workspace_bytes)
    )?;
    match peak_bytes() {
        Some(peak) => writeln!(to, ", at most {} at a time", size(peak))?,
        None => writeln!(to)?,
    }
    if outcome.answer_tokens > 0 {
        writeln!(
            to,
            "generated    {} tokens, {:.1} tok/s\n{}",
            outcome.answer_tokens,
            (outcome.answer_tokens - 1).max(1) as f64 / outcome.decoding.as_secs_f64(),
            outcome.answer
        )?;
    }
    Ok(())
}

/// What each layer kept.
fn kept(sparse: &Prefilled, to: &mut String) -> std::fmt::Result {
    writeln!(to, "\nlayer        kept       each head")?;
    let mut all = Vec::new();
    for (layer, kept) in sparse.kept.iter().enumerate() {
        let heads = kept.densities();
        if heads.is_empty() {
            return writeln!(to, "             not read back from the device");
        }
        let mean = heads.iter().sum::<f64>() / heads.len() as f64;
        let each: Vec<String> = heads.iter().map(|share| format!("{share:.3}")).collect();
        writeln!(to, "{layer:<12} {mean:.3}      {}", each.join(" "))?;
        all.push(mean);
    }
    writeln!(
        to,
        "mean         {:.3}",
        all.iter().sum::<f64>() / all.len() as f64
    )
}

fn size(bytes: usize) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// The most memory that the process had so far, where the system tells.
fn peak_bytes() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: usize = line.split_whitespace().next()?.parse().ok()?;
    Some(kibibytes << 10)
}

/// Prints to stdout. A reader that has seen enough is no failure.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(Failure::of("stdout", error)),
        _ => Ok(()),
    }
}
