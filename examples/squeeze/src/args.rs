//! The command line.

use std::path::PathBuf;

use clap::builder::RangedU64ValueParser;
use clap::{Parser, ValueEnum};
use sample_attention::squeeze::Score;
use sample_attention_prefill::canvas::png_name;
use sample_attention_prefill::failure::Failure;

/// Clusters a fixed context once, and lets the queries after it look up what they attend to.
///
/// Without --input and --synthetic it runs on a capture of two query heads that is part of the program: its first positions are the
/// fixed context, its last the queries.
#[derive(Parser)]
#[command(name = "squeeze", version, max_term_width = 100)]
struct CommandLine {
    /// Safetensors file with q [1, query heads, tokens, head_dim], k and v [1, key/value heads, tokens, head_dim] of one text; bf16,
    /// f16 or f32.
    #[arg(long, value_name = "FILE", conflicts_with = "synthetic")]
    input: Option<PathBuf>,
    /// Make up structured attention of this many tokens instead, 8 query heads on 2 key/value heads. It is not captured from a model.
    #[arg(long, value_name = "TOKENS", value_parser = whole(256, 1 << 24))]
    synthetic: Option<u64>,
    /// Positions of the fixed context; the queries are those after it [default: seven eighths of the text].
    #[arg(long, value_name = "N", value_parser = whole(1, 1 << 30))]
    fixed: Option<u64>,
    /// Where to compute.
    #[arg(long, value_enum, default_value_t = Backend::Cpu)]
    backend: Backend,
    /// Threads to compute with [default: all cores].
    #[arg(long, value_name = "N", value_parser = whole(1, 1024))]
    threads: Option<u64>,
    /// Keep the index in this file: read from it where it exists, written to it else.
    #[arg(long, value_name = "FILE")]
    index: Option<PathBuf>,
    /// Draw the clusters by position and what each query looked up here.
    #[arg(long, value_name = "FILE.png")]
    picture: Option<PathBuf>,
    /// Queries that share one list; 1 lets every query look up for itself, as in decoding.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = whole(1, 1 << 20))]
    block: u64,
    /// Share of the attention that the threshold is calibrated to cover on the fixed context's own last queries [default: 0.98].
    #[arg(long, value_name = "F", group = "keep")]
    coverage: Option<f32>,
    /// Keep clusters whose keys have more than this share of the attention each.
    #[arg(long, value_name = "F", group = "keep")]
    threshold: Option<f32>,
    /// Share of the keys that the threshold is calibrated to keep on the fixed context's own last queries.
    #[arg(long, value_name = "F", group = "keep")]
    share: Option<f32>,
    /// How clusters are scored [default: second-order].
    #[arg(long, value_enum)]
    score: Option<ScoreName>,
    /// The rule and the index as published: scores by the mean over the clusters alone, 10 % of the keys kept unless --share says so.
    #[arg(long, conflicts_with_all = ["score", "coverage", "threshold"])]
    published: bool,
    /// Look at coarse clusters first, and below those that matter only.
    #[arg(long, conflicts_with = "published")]
    two_levels: bool,
    /// Clusters for each key.
    #[arg(long, value_name = "F", default_value_t = 0.05)]
    clusters: f32,
}

/// Where to compute.
#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Backend {
    /// Natively on this CPU.
    Cpu,
    /// Not for Squeezed Attention yet.
    Emulator,
    /// Not for Squeezed Attention yet.
    Cuda,
}

#[derive(Clone, Copy, ValueEnum)]
enum ScoreName {
    /// exp(q·mean).
    Mean,
    /// With the variances of the cluster's keys.
    SecondOrder,
    /// With one variance for all dimensions.
    Isotropic,
}

fn whole(least: u64, most: u64) -> RangedU64ValueParser<u64> {
    RangedU64ValueParser::new().range(least..=most)
}

/// What the command line asks for.
pub enum Asked {
    /// A run.
    Run(Box<Request>),
    /// Help or the version.
    Text(String),
}

/// What is kept.
#[derive(Clone, Copy)]
pub enum Target {
    Threshold(f32),
    Coverage(f32),
    Share(f32),
}

/// A run, with everything checked that can be checked without its input.
pub struct Request {
    pub input: Option<PathBuf>,
    pub synthetic: Option<usize>,
    pub fixed: Option<usize>,
    pub threads: Option<usize>,
    pub index: Option<PathBuf>,
    pub picture: Option<PathBuf>,
    pub block: usize,
    pub target: Target,
    pub score: Score,
    pub published: bool,
    pub two_levels: bool,
    pub clusters: f32,
}

/// Reads the process's arguments.
pub fn parse() -> Result<Asked, Failure> {
    let line = match CommandLine::try_parse() {
        Ok(line) => line,
        Err(error) if error.use_stderr() => return Err(Failure::of_options(&error)),
        Err(help) => return Ok(Asked::Text(help.to_string())),
    };
    request(line).map(|request| Asked::Run(Box::new(request)))
}

fn request(line: CommandLine) -> Result<Request, Failure> {
    if line.backend != Backend::Cpu {
        return Err(Failure::of(
            "--backend",
            "Squeezed Attention has no GPU kernels yet; use --backend cpu",
        ));
    }
    if let Some(path) = &line.picture {
        png_name(path)?;
    }
    let target = match (line.threshold, line.coverage, line.share) {
        (Some(threshold), _, _) => Target::Threshold(positive("--threshold", threshold)?),
        (_, Some(coverage), _) => Target::Coverage(in_unit("--coverage", coverage)?),
        (_, _, Some(share)) => Target::Share(in_unit("--share", share)?),
        _ if line.published => Target::Share(0.1),
        _ => Target::Coverage(0.98),
    };
    let size = |n: Option<u64>| n.map(|n| n as usize);
    Ok(Request {
        input: line.input,
        synthetic: size(line.synthetic),
        fixed: size(line.fixed),
        threads: size(line.threads),
        index: line.index,
        picture: line.picture,
        block: line.block as usize,
        target,
        score: match line.score {
            Some(ScoreName::Mean) => Score::Mean,
            Some(ScoreName::Isotropic) => Score::Isotropic,
            Some(ScoreName::SecondOrder) | None => Score::SecondOrder,
        },
        published: line.published,
        two_levels: line.two_levels,
        clusters: in_unit("--clusters", line.clusters)?,
    })
}

fn in_unit(option: &str, x: f32) -> Result<f32, Failure> {
    // Written so that NaN fails too.
    match x > 0.0 && x <= 1.0 {
        true => Ok(x),
        false => Err(Failure::of(
            format_args!("{option} {x}"),
            "it must be above 0 and at most 1",
        )),
    }
}

fn positive(option: &str, x: f32) -> Result<f32, Failure> {
    match x > 0.0 {
        true => Ok(x),
        false => Err(Failure::of(
            format_args!("{option} {x}"),
            "it must be above 0",
        )),
    }
}
