//! The command line.

mod heads;
mod policy;

use std::path::{Path, PathBuf};

use clap::{ArgGroup, Args, Parser, ValueEnum};
use sample_attention::{Dtype, Policy, Problem};
use sample_attention_inputs::capture::Layout;
use sample_attention_inputs::synthetic::Structure;

use crate::failure::Failure;
use crate::picture::canvas::png_name;
pub use heads::Heads;
use policy::PolicyOptions;

/// Runs SampleAttention on captured or synthetic attention inputs.
///
/// Without --input and --synthetic it runs on a capture of two heads that is part of the program, and compares the result with
/// dense attention.
#[derive(Parser)]
#[command(name = "prefill", version, max_term_width = 100, after_help = policy::in_words())]
#[command(group(ArgGroup::new("sizes").args(["synthetic", "plan"])))]
struct CommandLine {
    /// Safetensors file with q [batch, query heads, queries, head_dim], k and v [batch, key/value heads, keys, head_dim];
    /// bf16, f16 or f32. With cu_seqlens_q and cu_seqlens_k (i32, i64 or u32, one more than there are sequences) a ragged batch: q
    /// [tokens, query heads, head_dim], k and v [tokens, key/value heads, head_dim], or with block_table [sequences, pages] also k and
    /// v [pages, page size, key/value heads, head_dim].
    #[arg(long, value_name = "FILE", conflicts_with = "synthetic")]
    input: Option<PathBuf>,
    /// Order of the dimensions in the input file; bshd is what hooks on flash-attention see. Files that are written are always
    /// bhsd [default: bhsd].
    #[arg(long, value_enum)]
    layout: Option<LayoutName>,
    /// Where to compute.
    #[arg(long, value_enum, default_value_t = Backends::Cpu)]
    backend: Backends,
    /// The GPU to compute on, counted from 0 as the driver does [default: 0].
    #[arg(long, value_name = "N", value_parser = whole(0, 1023), allow_negative_numbers = true)]
    device: Option<u64>,
    /// Threads to compute with [default: all cores].
    #[arg(long, value_name = "N", value_parser = whole(1, 1024), allow_negative_numbers = true)]
    threads: Option<u64>,
    /// Attend to everything; takes no policy.
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
    /// Query heads to draw, such as 0,5,8-11: counted from 0, in a batch from one sequence to the next [default: the first 8].
    #[arg(long, value_name = "LIST", value_parser = Heads::parse, allow_negative_numbers = true)]
    heads: Option<Heads>,
    /// A policy for each head of each layer of a model, as `cargo xtask calibrate` finds them. No policy option goes with it.
    #[arg(long, value_name = "FILE.json", conflicts_with = "dense")]
    profile: Option<PathBuf>,
    /// The profile's layer that the input is of, counted from 0 [default: the one that the input file names].
    #[arg(long, value_name = "N", value_parser = whole(0, 1 << 20), requires = "profile", allow_negative_numbers = true)]
    layer: Option<u64>,
    #[command(flatten)]
    planned: PlanOptions,
    #[command(flatten)]
    synthetic: SyntheticOptions,
    #[command(flatten)]
    policy: PolicyOptions,
}

#[derive(Args)]
#[command(next_help_heading = "Plan")]
struct PlanOptions {
    /// Say as JSON what would run for these sizes and how much workspace it takes, and run nothing. Takes --q-heads, --kv-heads,
    /// --head-dim and the policy too.
    #[arg(
        long,
        requires = "k_len",
        conflicts_with_all = ["input", "layout", "compare_dense", "output", "report", "picture", "heads", "device", "structure", "seed", "profile", "layer"],
    )]
    plan: bool,
    /// Queries: the last ones of the keys [default: as many as keys].
    #[arg(long, value_name = "N", requires = "plan", value_parser = whole(1, 1 << 30), allow_negative_numbers = true)]
    q_len: Option<u64>,
    /// Keys.
    #[arg(long, value_name = "N", requires = "plan", value_parser = whole(1, 1 << 30), allow_negative_numbers = true)]
    k_len: Option<u64>,
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
    /// Query heads of the synthetic input or the plan.
    #[arg(long, value_name = "N", requires = "sizes", conflicts_with = "input", default_value_t = 4, value_parser = whole(1, 4096), allow_negative_numbers = true)]
    q_heads: u64,
    /// Key/value heads of the synthetic input or the plan.
    #[arg(long, value_name = "N", requires = "sizes", conflicts_with = "input", default_value_t = 2, value_parser = whole(1, 4096), allow_negative_numbers = true)]
    kv_heads: u64,
    /// Elements of one query, key or value of the synthetic input or the plan.
    #[arg(long, value_name = "N", requires = "sizes", conflicts_with = "input", default_value_t = 128, value_parser = whole(1, 256), allow_negative_numbers = true)]
    head_dim: u64,
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

/// Order of the dimensions in a file.
#[derive(Clone, Copy, ValueEnum)]
enum LayoutName {
    /// [batch, heads, tokens, head_dim].
    Bhsd,
    /// [batch, tokens, heads, head_dim].
    Bshd,
}

fn whole(least: u64, most: u64) -> clap::builder::RangedU64ValueParser<u64> {
    clap::builder::RangedU64ValueParser::new().range(least..=most)
}

/// What the command line asks for.
pub enum Asked {
    /// A run.
    Run(Box<Request>),
    /// What a run would be.
    Plan(PlanRequest),
    /// Help or the version.
    Text(String),
}

/// What to plan.
pub struct PlanRequest {
    pub problem: Problem,
    pub backend: Backend,
    /// `None` is dense.
    pub policy: Option<Policy>,
    pub threads: Option<usize>,
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
    /// Whether --layout was given.
    pub has_layout: bool,
    pub backend: Backend,
    pub policy: Policy,
    pub dense: bool,
    /// A policy for each head in place of `policy`.
    pub profile: Option<ProfileChoice>,
    pub compare_dense: bool,
    pub threads: Option<usize>,
    pub output: Option<PathBuf>,
    pub report: Option<PathBuf>,
    pub picture: Option<PathBuf>,
    /// What to draw of the heads.
    pub heads: Option<Heads>,
}

/// A profile, and which of its layers.
pub struct ProfileChoice {
    pub path: PathBuf,
    /// `None`: the one that the input names.
    pub layer: Option<usize>,
}

/// Where q, k and v come from.
pub enum Source {
    /// The capture that is part of the program.
    Carried,
    File {
        path: PathBuf,
        layout: Layout,
    },
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

    /// Option and path of every file that is to be read.
    pub fn read_files(&self) -> Vec<(&'static str, &Path)> {
        let input = match &self.source {
            Source::File { path, .. } => Some(("--input", &**path)),
            Source::Carried | Source::Synthetic { .. } => None,
        };
        let profile = self.profile.as_ref();
        let profile = profile.map(|profile| ("--profile", &*profile.path));
        input.into_iter().chain(profile).collect()
    }
}

/// Reads the process's arguments.
pub fn parse() -> Result<Asked, Failure> {
    let line = match CommandLine::try_parse() {
        Ok(line) => line,
        Err(error) if error.use_stderr() => return Err(Failure::of_options(&error)),
        Err(help) => return Ok(Asked::Text(help.to_string())),
    };
    if line.planned.plan {
        return plan_request(&line).map(Asked::Plan);
    }
    request(line).map(|request| Asked::Run(Box::new(request)))
}

fn plan_request(line: &CommandLine) -> Result<PlanRequest, Failure> {
    let policy = line.policy.policy()?;
    refuse_ignored(line)?;
    line.policy.refuse_ignored(&policy)?;
    let sizes = &line.synthetic;
    let k_len = line.planned.k_len.unwrap_or(0);
    let q_len = line.planned.q_len.unwrap_or(k_len) as usize;
    let problem = Problem::causal(k_len as usize, sizes.head_dim as usize, Dtype::Bf16)
        .with_heads(sizes.q_heads as usize, sizes.kv_heads as usize)
        .with_q_len(q_len);
    problem.validate()?;
    Ok(PlanRequest {
        problem,
        backend: line.backend(),
        policy: (!line.dense).then_some(policy),
        threads: line.threads.map(|threads| threads as usize),
    })
}

impl CommandLine {
    fn backend(&self) -> Backend {
        match self.backend {
            Backends::Cpu => Backend::Cpu,
            Backends::Emulator => Backend::Emulator,
            Backends::Cuda => Backend::Cuda {
                ordinal: self.device.unwrap_or(0) as u32,
            },
        }
    }
}

fn request(line: CommandLine) -> Result<Request, Failure> {
    let backend = line.backend();
    let policy = line.policy.policy()?;
    refuse_ignored(&line)?;
    line.policy.refuse_ignored(&policy)?;
    if let Some(path) = &line.picture {
        png_name(path)?;
    }
    let source = match (line.input, line.synthetic.synthetic) {
        (Some(path), _) => Source::File {
            path,
            layout: match line.layout {
                None | Some(LayoutName::Bhsd) => Layout::Bhsd,
                Some(LayoutName::Bshd) => Layout::Bshd,
            },
        },
        (None, Some(tokens)) => synthetic(&line.synthetic, tokens as usize)?,
        (None, None) => Source::Carried,
    };
    Ok(Request {
        compare_dense: line.compare_dense || matches!(source, Source::Carried),
        source,
        has_layout: line.layout.is_some(),
        backend,
        policy,
        dense: line.dense,
        profile: line.profile.map(|path| ProfileChoice {
            path,
            layer: line.layer.map(|layer| layer as usize),
        }),
        threads: line.threads.map(|threads| threads as usize),
        output: line.output,
        report: line.report,
        picture: line.picture,
        heads: line.heads,
    })
}

/// An option that would do nothing is an error: whoever typed it expects something of it.
fn refuse_ignored(line: &CommandLine) -> Result<(), Failure> {
    let ignored = |option: &str, why: &str| Err(Failure::of(option, why));
    if line.device.is_some() && line.backend != Backends::Cuda {
        return ignored("--device", "only --backend cuda has devices");
    }
    if line.layout.is_some() && line.input.is_none() {
        return ignored("--layout", "it has no effect without --input");
    }
    if line.heads.is_some() && line.picture.is_none() {
        return ignored("--heads", "it has no effect without --picture");
    }
    let policy = line.policy.given();
    if let (true, Some(option)) = (line.dense, policy.first()) {
        return ignored(option, "it has no effect with --dense");
    }
    if let (true, Some(option)) = (line.profile.is_some(), policy.first()) {
        return ignored(
            option,
            "it has no effect with --profile, which has a policy for each head",
        );
    }
    Ok(())
}

fn synthetic(options: &SyntheticOptions, tokens: usize) -> Result<Source, Failure> {
    let problem = Problem::causal(tokens, options.head_dim as usize, Dtype::Bf16)
        .with_heads(options.q_heads as usize, options.kv_heads as usize);
    problem.validate()?;
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
