//! How close a whole model stays to its dense self when every layer's attention is replaced.
//!
//! The model reads stretches of text, once with dense attention and once by each policy; the next-byte distributions are
//! compared. A layer's inputs come from the sparse layers before it, so errors add up as they would in use. And it answers questions:
//! numbers that a text defines somewhere and asks for later.

pub(crate) mod attention;
mod divergence;
pub(crate) mod layers;
pub(crate) mod measure;
pub(crate) mod model;
mod policies;
pub(crate) mod progress;
pub(crate) mod retrieval;
mod squeezed;
mod table;
pub(crate) mod weights;
#[cfg(test)]
pub(crate) mod whole_model;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use sample_attention::profile::{Profile, ProfileError};
use sample_attention::{Dtype, HeadPolicy, Plan, Problem};

use attention::{By, RowCoverage};
use measure::{Comparison, Measurement, Reference, Stretch, answered};
use model::Model;
use policies::Grid;
use progress::Bar;
use retrieval::{Answered, Case, Place};
use table::Dense;
use weights::Weights;

/// Options of the measurement.
#[derive(Args)]
pub struct Options {
    /// Directory of the model: config.json and model*.safetensors.
    #[arg(long)]
    model: PathBuf,
    /// Text to read; text.txt of the model's directory when not given.
    #[arg(long)]
    text: Option<PathBuf>,
    /// Bytes of each stretch.
    #[arg(long, default_value_t = 8192)]
    bytes: usize,
    /// Where in the text each stretch begins, separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "0,150000")]
    offsets: Vec<usize>,
    /// Texts with twelve questions at their end, and as many with questions in the middle.
    #[arg(long, default_value_t = 8)]
    cases: u64,
    #[command(flatten)]
    grid: Grid,
    #[command(flatten)]
    squeeze: squeezed::SqueezeOptions,
    /// Measure this profile too, and without policy options nothing else.
    #[arg(long, value_name = "FILE.json")]
    profile: Option<PathBuf>,
    /// Measure the true coverage of every row in a sweep too, which takes half the time of dense attention.
    #[arg(long)]
    row_coverage: bool,
    /// Also write the result to this file, as JSON or as Markdown.
    #[arg(long, value_name = "FILE.json|md", value_parser = report_file)]
    report: Option<PathBuf>,
}

fn report_file(name: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(name);
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("json" | "md") => Ok(path),
        _ => Err("the report is .json or .md".into()),
    }
}

/// Measures and prints; what went wrong goes to standard error.
pub fn run(options: Options) -> ExitCode {
    let measured = if options.squeeze.is_asked() {
        squeeze(&options)
    } else {
        measure(&options)
    };
    match measured {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

fn squeeze(options: &Options) -> Result<(), String> {
    let model = load(&options.model)?;
    let texts = squeezed::Texts {
        text: &read_text(options)?,
        bytes: options.bytes,
        offsets: &options.offsets,
        cases: options.cases,
    };
    squeezed::measure(&options.squeeze, &model, &texts)
}

fn read_text(options: &Options) -> Result<Vec<u8>, String> {
    let beside = || options.model.join("text.txt");
    let path = options.text.clone().unwrap_or_else(beside);
    fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))
}

fn measure(options: &Options) -> Result<(), String> {
    let model = load(&options.model)?;
    let text = read_text(options)?;
    let stretches = options
        .offsets
        .iter()
        .map(|&offset| Stretch::of(&text, offset, options.bytes))
        .collect::<Result<Vec<_>, _>>()?;
    let cases = (0..options.cases)
        .flat_map(|seed| Place::ALL.map(|place| Case::new(&text, options.bytes, seed, place)))
        .collect::<Result<Vec<_>, _>>()?;
    let profile = match &options.profile {
        Some(path) => Some(read_profile(path, &model)?),
        None => None,
    };
    let policies = match &profile {
        Some(_) if options.grid.is_empty() => Vec::new(),
        _ => options.grid.policies(),
    };
    for &policy in &policies {
        // A bad value is told now, not after the dense passes.
        Plan::new(Problem::causal(1, 8, Dtype::Bf16), policy).map_err(|error| error.to_string())?;
    }
    let treatments: Vec<By<'_>> = policies
        .iter()
        .map(|&policy| By::Policy(policy))
        .chain(profile.as_deref().map(By::Profile))
        .collect();
    let row_coverage = match options.grid.is_sweep() && !options.row_coverage {
        true => RowCoverage::Skipped,
        false => RowCoverage::Measured,
    };

    let bar =
        Bar::new(model.config().layers * (stretches.len() + cases.len()) * (1 + treatments.len()));
    let references = stretches
        .into_iter()
        .map(|stretch| {
            let reference = Reference::measure(&model, stretch, &bar)?;
            let offset = reference.stretch.offset;
            bar.print(&format!(
                "offset {offset}: {:.4} bits per byte, dense",
                reference.loss
            ));
            Ok(reference)
        })
        .collect::<Result<Vec<_>, String>>()?;
    let answers = answer(&model, By::Dense, &cases, &bar)?;
    let dense = Dense {
        references: &references,
        answers,
    };
    for place in Place::ALL {
        if let Some(share) = retrieval::share_right(&dense.answers, place) {
            let place = place.name();
            bar.print(&format!("asked, {place}: {share:.3} right, dense"));
        }
    }
    bar.print(&format!("\n{}", table::HEADER));
    let mut measurements = Vec::with_capacity(treatments.len());
    for by in treatments {
        let stretches = references
            .iter()
            .map(|reference| Comparison::measure(&model, by, reference, row_coverage, &bar))
            .collect::<Result<Vec<_>, _>>()?;
        let answers = answer(&model, by, &cases, &bar)?;
        let measurement = Measurement {
            by,
            stretches,
            answers,
        };
        bar.print(&table::row(&measurement));
        measurements.push(measurement);
        // After every policy, so that a long sweep which is cut short leaves what it found.
        if let Some(path) = &options.report {
            write_report(path, &dense, &measurements)?;
        }
    }
    bar.finish();
    println!("\n{}", table::LEGEND);
    if let [measurement] = &*measurements {
        println!("\n{}", table::heads(measurement));
    }
    Ok(())
}

fn read_profile(path: &Path, model: &Model) -> Result<Vec<Vec<HeadPolicy>>, String> {
    let named = |error: ProfileError| format!("--profile {}: {error}", path.display());
    let (profile, config) = (Profile::read(path).map_err(named)?, model.config());
    if profile.layers() != config.layers {
        return Err(format!(
            "--profile {}: it has {} layers, and the model has {}",
            path.display(),
            profile.layers(),
            config.layers
        ));
    }
    let layers = (0..config.layers).map(|layer| profile.layer_of(layer, config.q_heads));
    layers
        .map(|heads| heads.map(<[HeadPolicy]>::to_vec).map_err(named))
        .collect()
}

fn answer(model: &Model, by: By<'_>, cases: &[Case], bar: &Bar) -> Result<Vec<Answered>, String> {
    let judged = cases.iter().map(|case| answered(model, by, case, bar));
    judged.collect()
}

pub(crate) fn load(directory: &Path) -> Result<Model, String> {
    let (config, weights) = Weights::load(directory)?;
    Model::new(config, weights).map_err(|why| format!("{}: {why}", directory.display()))
}

fn write_report(
    path: &Path,
    dense: &Dense<'_>,
    measurements: &[Measurement<'_>],
) -> Result<(), String> {
    let text = match path.extension() {
        Some(extension) if extension == "json" => {
            format!("{:#}\n", table::json(dense, measurements))
        }
        _ => table::markdown(dense, measurements),
    };
    fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}
