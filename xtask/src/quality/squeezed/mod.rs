//! Squeezed Attention in a whole model: a fixed text, clustered once, and input after it whose every layer looks the fixed text up.
//!
//! The model reads the whole text with dense attention once, which gives the predictions to compare with and the fixed text's keys and
//! values of every layer. Then each rule reads the input alone over indices of these. Thresholds come from the fixed text alone.

mod context;
mod pages;
mod rules;
mod table;

use std::fs;
use std::path::PathBuf;

use clap::Args;

use super::measure::Stretch;
use super::model::Model;
use super::retrieval::{Case, Place};
use context::Context;
use rules::Spec;
use table::Row;

/// Options of the measurement of Squeezed Attention.
#[derive(Args)]
pub struct SqueezeOptions {
    /// Measure Squeezed Attention instead: --bytes of text of which all but --input are fixed.
    #[arg(long)]
    squeeze: bool,
    /// Bytes after the fixed text.
    #[arg(long, default_value_t = 1024, requires = "squeeze")]
    input: usize,
    /// Only rules whose name contains this.
    #[arg(long, value_name = "WORD", requires = "squeeze")]
    only: Option<String>,
    /// Also write the table to this file, as Markdown.
    #[arg(long, value_name = "FILE.md", requires = "squeeze")]
    squeeze_report: Option<PathBuf>,
}

impl SqueezeOptions {
    /// Whether it is asked for.
    pub fn is_asked(&self) -> bool {
        self.squeeze
    }
}

/// What is read.
pub struct Texts<'a> {
    pub text: &'a [u8],
    /// Bytes of each stretch and text with questions.
    pub bytes: usize,
    /// Where the stretches begin.
    pub offsets: &'a [usize],
    /// Texts with questions.
    pub cases: u64,
}

/// Measures and prints.
pub fn measure(squeeze: &SqueezeOptions, model: &Model, options: &Texts<'_>) -> Result<(), String> {
    let text = options.text;
    let fixed = options
        .bytes
        .checked_sub(squeeze.input)
        .filter(|fixed| *fixed > 0 && squeeze.input > 0)
        .ok_or("--input must be above 0 and below --bytes")?;
    let specs: Vec<Spec> = rules::all()
        .into_iter()
        .filter(|spec| {
            let only = squeeze.only.as_deref().unwrap_or_default();
            spec.name.contains(only)
        })
        .collect();
    let mut rows: Vec<Row> = specs.iter().map(|spec| Row::new(&spec.name)).collect();
    let stretches = options
        .offsets
        .iter()
        .map(|&offset| Stretch::of(text, offset, options.bytes))
        .collect::<Result<Vec<_>, _>>()?;
    let cases = (0..options.cases)
        .map(|seed| Case::new(text, options.bytes, seed, Place::End))
        .collect::<Result<Vec<_>, _>>()?;
    let texts = stretches.iter().map(|stretch| (stretch.bytes, None));
    let asked = cases.iter().map(|case| (&case.bytes[..], Some(case)));
    for (index, (bytes, case)) in texts.chain(asked).enumerate() {
        let context = Context::read(model, bytes, fixed)?;
        let dense = case.map(|case| context.judge(case, &context.logits));
        eprintln!("text {index}: read, dense answers {dense:?}");
        let mut indices = Vec::new();
        for (spec, row) in specs.iter().zip(&mut rows) {
            let read = context.read_by(model, bytes, spec, &mut indices)?;
            let answered = case.map(|case| context.judge(case, &read.logits));
            row.add(&context, &read, answered, dense);
            eprintln!("text {index}: {}", row.line());
        }
        let table = table::markdown(&rows, fixed, squeeze.input);
        if let Some(path) = &squeeze.squeeze_report {
            // After every text, so that a long measurement which is cut short leaves what it found.
            fs::write(path, &table).map_err(|error| format!("{}: {error}", path.display()))?;
        }
    }
    println!("{}", table::markdown(&rows, fixed, squeeze.input));
    Ok(())
}

#[cfg(test)]
mod tests {
    use sample_attention::squeeze::{Centroids, IndexOptions, Keep};

    use super::super::divergence::Predictions;
    use super::super::whole_model::tiny_model;
    use super::context::Context;
    use super::rules::{Method, Scope, Spec, Target};

    #[test]
    fn input_that_looks_up_everything_is_read_as_by_dense_attention() {
        let model = tiny_model();
        let bytes: Vec<u8> = (0..700u32).map(|at| (at * at / 7) as u8).collect();
        let context = Context::read(&model, &bytes, 600).unwrap();
        let rule = |block| Method::Squeeze {
            rule: Centroids::default()
                .with_keep(Keep::Share(1.0))
                .with_block(block),
            target: Target::Given,
        };
        let pages = Method::Pages {
            page: 16,
            share: 1.0,
        };
        for method in [rule(1), rule(64), pages] {
            let spec = Spec {
                name: String::new(),
                options: IndexOptions::default(),
                method,
                scope: Scope::Model,
                coarse: None,
            };
            let read = context
                .read_by(&model, &bytes, &spec, &mut Vec::new())
                .unwrap();
            let divergence = context
                .predictions
                .divergence_of(&Predictions::new(&read.logits));
            assert!(divergence.abs() < 1e-5, "{divergence:e}");
            assert!((read.share - 1.0).abs() < 1e-9, "{}", read.share);
        }
    }

    #[test]
    fn a_threshold_from_the_fixed_text_keeps_some_of_it() {
        let model = tiny_model();
        let bytes: Vec<u8> = (0..700u32).map(|at| (at * at / 7) as u8).collect();
        let context = Context::read(&model, &bytes, 600).unwrap();
        let mut indices = Vec::new();
        for scope in [Scope::Model, Scope::Layer] {
            let spec = Spec {
                name: String::new(),
                options: IndexOptions::default(),
                method: Method::Squeeze {
                    rule: Centroids::default(),
                    target: Target::Share(0.3),
                },
                scope,
                coarse: Some(0.1),
            };
            let read = context
                .read_by(&model, &bytes, &spec, &mut indices)
                .unwrap();
            assert!(read.share > 0.05 && read.share < 0.8, "{}", read.share);
        }
        assert_eq!(indices.len(), 1, "an index serves every rule");
    }
}
