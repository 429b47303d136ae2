//! The command line.

use std::fmt;
use std::path::{Path, PathBuf};

use clap::{Args, Parser, ValueEnum};
use sample_attention::{Dtype, Plan, Policy, Problem, Window};
use testkit::capture;
use testkit::synthetic::Structure;

use crate::failure::Failure;

/// Runs SampleAttention on captured or synthetic attention inputs.
///
/// Without --input and --synthetic it runs on the capture that the repository carries and compares the result with dense
/// attention.
#[derive(Parser)]
#[command(name = "prefill", version, max_term_width = 100)]
struct CommandLine {
    /// Safetensors file with q [batch, query heads, queries, head_dim], k and v [batch, key/value heads, keys, head_dim];
    /// bf16, f16 or f32.
    #[arg(long, value_name = "FILE", conflicts_with = "synthetic")]
    input: Option<PathBuf>,
    #[command(flatten)]
    synthetic: SyntheticOptions,
    /// Where to compute.
    #[arg(long, value_enum, default_value_t = Backends::Cpu)]
    backend: Backends,
    /// The GPU to compute on, counted from 0 as the driver does [default: 0].
    #[arg(long, value_name = "N", value_parser = whole(0, 1023), allow_negative_numbers = true)]
    device: Option<u64>,
    /// Threads to compute with [default: all cores].
    #[arg(long, value_name = "N", value_parser = whole(1, 1024), allow_negative_numbers = true)]
    threads: Option<u64>,
    #[command(flatten)]
    policy: PolicyOptions,
    /// Attend to everything: the policy options are checked, but not used.
    #[arg(long)]
    dense: bool,
    /// Also run dense attention: speed-up, error of the output, true coverage of every row.
    #[arg(long)]
    compare_dense: bool,
    /// Write o, lse, stripes, stripe_count and blocks here.
    #[arg(long, value_name = "FILE.safetensors")]
    output: Option<PathBuf>,
    /// Write the numbers of the table here.
    #[arg(long, value_name = "FILE.json")]
    report: Option<PathBuf>,
    /// Draw each head's mask over its attention mass here, with its coverage curve.
    #[arg(long, value_name = "FILE.png")]
    picture: Option<PathBuf>,
}

#[derive(Args)]
#[command(next_help_heading = "Synthetic input")]
struct SyntheticOptions {
    /// Make up structured attention of this many tokens instead of reading a file: sinks, stripes, diagonals, local decay,
    /// topics and rotary positions. It is not captured from a model.
    #[arg(long, value_name = "SEQ", value_parser = whole(1, 1 << 30), allow_negative_numbers = true)]
    synthetic: Option<u64>,
    /// How hard the synthetic input is to make sparse.
    #[arg(long, value_enum, requires = "synthetic", conflicts_with = "input", default_value_t = Structures::Easy)]
    structure: Structures,
    /// Seed of the synthetic input.
    #[arg(
        long,
        value_name = "N",
        requires = "synthetic",
        conflicts_with = "input",
        default_value_t = 0,
        allow_negative_numbers = true
    )]
    seed: u64,
    /// Query heads of the synthetic input.
    #[arg(long, value_name = "N", requires = "synthetic", conflicts_with = "input", default_value_t = 4, value_parser = whole(1, 4096), allow_negative_numbers = true)]
    q_heads: u64,
    /// Key/value heads of the synthetic input.
    #[arg(long, value_name = "N", requires = "synthetic", conflicts_with = "input", default_value_t = 2, value_parser = whole(1, 4096), allow_negative_numbers = true)]
    kv_heads: u64,
    /// Elements of one query, key or value of the synthetic input.
    #[arg(long, value_name = "N", requires = "synthetic", conflicts_with = "input", default_value_t = 128, value_parser = whole(1, 256), allow_negative_numbers = true)]
    head_dim: u64,
}

#[derive(Args)]
#[command(next_help_heading = "Policy")]
struct PolicyOptions {
    /// Share of the sampled attention mass to keep, in (0, 1].
    #[arg(long, value_name = "F", default_value_t = Policy::default().coverage, allow_negative_numbers = true)]
    coverage: f32,
    /// Most recent keys that every query keeps, in tokens [default: 256].
    #[arg(
        long,
        value_name = "N",
        conflicts_with = "window_ratio",
        allow_negative_numbers = true
    )]
    window: Option<usize>,
    /// The same as a share of all keys, in (0, 1].
    #[arg(long, value_name = "F", allow_negative_numbers = true)]
    window_ratio: Option<f32>,
    /// One query in this many is sampled.
    #[arg(long, value_name = "N", default_value_t = Policy::default().row_stride, allow_negative_numbers = true)]
    row_stride: usize,
    /// Key position at which the row stride doubles, and again at each doubling of it, up to 64; or never. Budget blocks alone.
    #[arg(long, value_name = "N", value_parser = position_or_never, default_value_t = Position(Policy::default().stride_doubles_from), allow_negative_numbers = true)]
    stride_doubles_from: Position,
    /// First keys that every query keeps.
    #[arg(long, value_name = "N", default_value_t = Policy::default().sinks, allow_negative_numbers = true)]
    sinks: usize,
    /// What the mass buys: pairs of blocks, single keys by the mass that window and sinks leave, or single keys by their
    /// whole mass, as the paper has it.
    #[arg(long, value_enum, default_value_t = Budget::Blocks)]
    budget: Budget,
    /// Where to run dense instead: where that is faster, or never.
    #[arg(long, value_enum, default_value_t = Fallback::Auto)]
    fallback: Fallback,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Backends {
    /// Natively on this CPU.
    Cpu,
    /// The GPU kernels, emulated on this CPU: for short inputs. f32 is rounded to bf16 for them.
    Emulator,
    /// The GPU kernels on a GPU, in a build with the feature `cuda`. f32 is rounded to bf16 for them.
    Cuda,
}

#[derive(Clone, Copy, ValueEnum)]
enum Structures {
    Easy,
    Hard,
    Uniform,
}

#[derive(Clone, Copy, ValueEnum)]
enum Budget {
    Blocks,
    Residual,
    Paper,
}

#[derive(Clone, Copy, ValueEnum)]
enum Fallback {
    Auto,
    Never,
}

/// A key position; `never` is the one that no key has.
#[derive(Clone, Copy)]
struct Position(usize);

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            usize::MAX => f.write_str("never"),
            position => position.fmt(f),
        }
    }
}

fn position_or_never(text: &str) -> Result<Position, String> {
    if text == "never" {
        return Ok(Position(usize::MAX));
    }
    let position = text.parse();
    position
        .map(Position)
        .map_err(|error| format!("{error}, and not `never`"))
}

fn whole(least: u64, most: u64) -> clap::builder::RangedU64ValueParser<u64> {
    clap::builder::RangedU64ValueParser::new().range(least..=most)
}

/// What the command line asks for.
pub enum Asked {
    /// A run.
    Run(Box<Request>),
    /// Help or the version.
    Text(String),
}

/// Where to compute.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    Cpu,
    Emulator,
    Cuda {
        /// Number of the GPU.
        ordinal: u32,
    },
}

impl Backend {
    /// Its name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Backend::Cpu => "cpu",
            Backend::Emulator => "emulator",
            Backend::Cuda { .. } => "cuda",
        }
    }
}

/// A run, with everything checked that can be checked without its input.
pub struct Request {
    pub source: Source,
    pub backend: Backend,
    pub policy: Policy,
    pub dense: bool,
    pub compare_dense: bool,
    pub threads: Option<usize>,
    pub output: Option<PathBuf>,
    pub report: Option<PathBuf>,
    pub picture: Option<PathBuf>,
}

/// Where q, k and v come from.
pub enum Source {
    File(PathBuf),
    Synthetic {
        problem: Problem,
        structure: Structure,
        structure_name: String,
        seed: u64,
    },
}

impl Request {
    /// Option and path of every file that is to be written.
    pub fn written_files(&self) -> Vec<(&'static str, &Path)> {
        [
            ("--output", &self.output),
            ("--report", &self.report),
            ("--picture", &self.picture),
        ]
        .into_iter()
        .filter_map(|(option, path)| Some((option, path.as_deref()?)))
        .collect()
    }

    /// The file that is to be read.
    pub fn read_file(&self) -> Option<&Path> {
        match &self.source {
            Source::File(path) => Some(path),
            Source::Synthetic { .. } => None,
        }
    }
}

/// Reads the process's arguments.
pub fn parse() -> Result<Asked, Failure> {
    let line = match CommandLine::try_parse() {
        Ok(line) => line,
        Err(error) if error.use_stderr() => return Err(brief(&error)),
        Err(help) => return Ok(Asked::Text(help.to_string())),
    };
    request(line).map(|request| Asked::Run(Box::new(request)))
}

fn request(line: CommandLine) -> Result<Request, Failure> {
    let backend = match line.backend {
        Backends::Cpu => Backend::Cpu,
        Backends::Emulator => Backend::Emulator,
        Backends::Cuda => Backend::Cuda {
            ordinal: line.device.unwrap_or(0) as u32,
        },
    };
    if line.device.is_some() && line.backend != Backends::Cuda {
        return Err(Failure::of("--device", "only --backend cuda has devices"));
    }
    let policy = policy(&line.policy)?;
    let carried = line.input.is_none() && line.synthetic.synthetic.is_none();
    let source = match (line.input, line.synthetic.synthetic) {
        (Some(path), _) => Source::File(path),
        (None, Some(tokens)) => synthetic(&line.synthetic, tokens as usize)?,
        (None, None) => Source::File(capture::carried()),
    };
    Ok(Request {
        source,
        backend,
        policy,
        dense: line.dense,
        compare_dense: line.compare_dense || carried,
        threads: line.threads.map(|threads| threads as usize),
        output: line.output,
        report: line.report,
        picture: line.picture,
    })
}

fn policy(options: &PolicyOptions) -> Result<Policy, Failure> {
    let window = match (options.window, options.window_ratio) {
        (_, Some(ratio)) => Window::Ratio(ratio),
        (Some(tokens), None) => Window::Tokens(tokens),
        (None, None) => Policy::default().window,
    };
    let budget = match options.budget {
        Budget::Blocks => sample_attention::Budget::Blocks,
        Budget::Residual => sample_attention::Budget::Residual,
        Budget::Paper => sample_attention::Budget::Paper,
    };
    let fallback = match options.fallback {
        Fallback::Auto => sample_attention::Fallback::Auto,
        Fallback::Never => sample_attention::Fallback::Never,
    };
    let policy = Policy::default()
        .with_budget(budget)
        .with_coverage(options.coverage)
        .with_row_stride(options.row_stride)
        .with_stride_doubles_from(options.stride_doubles_from.0)
        .with_window(window)
        .with_sinks(options.sinks)
        .with_fallback(fallback);
    // The library says what is wrong with a policy when it is used; any problem will do.
    Plan::new(Problem::causal(1, 8, Dtype::F32), policy)?;
    Ok(policy)
}

fn synthetic(options: &SyntheticOptions, tokens: usize) -> Result<Source, Failure> {
    let problem = Problem::causal(tokens, options.head_dim as usize, Dtype::Bf16)
        .with_heads(options.q_heads as usize, options.kv_heads as usize);
    Plan::dense(problem)?;
    let (structure, name) = match options.structure {
        Structures::Easy => (Structure::EASY, "easy"),
        Structures::Hard => (Structure::HARD, "hard"),
        Structures::Uniform => (Structure::UNIFORM, "uniform"),
    };
    Ok(Source::Synthetic {
        problem,
        structure,
        structure_name: name.to_owned(),
        seed: options.seed,
    })
}

/// The first paragraph of clap's message, on one line.
fn brief(error: &clap::Error) -> Failure {
    let text = error.to_string();
    let paragraph = text.split("\n\n").next().unwrap_or_default();
    let words: Vec<&str> = paragraph.split_whitespace().collect();
    let line = words.join(" ");
    Failure::new(line.strip_prefix("error: ").unwrap_or(&line))
}
