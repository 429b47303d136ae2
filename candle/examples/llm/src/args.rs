//! The command line.

use std::path::PathBuf;

use candle_sample_attention::{Budget, Policy, Window};
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::failure::Failure;

/// A language model with SampleAttention: dense and sparse prefill of a prompt, compared, then generation.
#[derive(Parser)]
#[command(name = "llm", version)]
struct Line {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs a prompt dense and sparse, and generates.
    Run(Box<Options>),
    /// Makes a Llama-format folder of one whose tensors are named `emb.weight`, `blocks.N.wq.weight` and so on.
    Convert {
        /// The folder to read: config.json with n_layers, d_model, …, and model-*.safetensors.
        #[arg(long, value_name = "DIR")]
        from: PathBuf,
        /// The folder to make; it must not be there.
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
    },
}

/// What to run.
#[derive(Args)]
pub struct Options {
    /// Folder with config.json, and model.safetensors or model.safetensors.index.json with its shards; tokenizer.json where tokens
    /// are not bytes.
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// Text file of the prompt.
    #[arg(long, value_name = "FILE")]
    pub prompt: PathBuf,
    /// Tokens of the prompt; all of the file if not given.
    #[arg(long, value_name = "N")]
    pub tokens: Option<usize>,
    /// Tokens of each chunk of the prefill; 0 runs the prompt whole.
    #[arg(long, value_name = "N", default_value_t = 4096)]
    pub chunk: usize,
    /// Tokens of a page of the KV cache: 16, 32, 64 or 128; 0 for a cache in one piece.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub page: usize,
    /// Tokens to generate after the sparse prefill, greedily.
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub generate: usize,
    /// Where to run: cpu, cuda or cuda:N.
    #[arg(long, default_value = "cpu")]
    pub device: String,
    /// Element type of weights and cache; f32 on the CPU and bf16 on CUDA devices if not given.
    #[arg(long, value_enum)]
    pub dtype: Option<ElementType>,
    /// Profile with a policy for each layer and head, in place of the policy below.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["coverage", "window", "row_stride", "tail", "sinks", "budget"])]
    pub profile: Option<PathBuf>,
    #[command(flatten)]
    policy: PolicyOptions,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum ElementType {
    F32,
    F16,
    Bf16,
}

/// What was typed; everything else is the default policy's.
#[derive(Args)]
#[command(next_help_heading = "Policy")]
struct PolicyOptions {
    /// Share of the sampled attention mass to keep, in (0, 1].
    #[arg(long, value_name = "F", allow_negative_numbers = true)]
    coverage: Option<f32>,
    /// Most recent keys that every query keeps, in tokens.
    #[arg(long, value_name = "N")]
    window: Option<usize>,
    /// One query in this many is sampled.
    #[arg(long, value_name = "N")]
    row_stride: Option<usize>,
    /// Last queries of the prompt that are sampled one in four; 0 for none.
    #[arg(long, value_name = "N")]
    tail: Option<usize>,
    /// First keys that every query keeps.
    #[arg(long, value_name = "N")]
    sinks: Option<usize>,
    /// What the mass buys: key blocks that single rows ask for, or pairs of blocks.
    #[arg(long, value_enum)]
    budget: Option<BudgetName>,
}

#[derive(Clone, Copy, ValueEnum)]
enum BudgetName {
    Rows,
    Blocks,
}

impl Options {
    /// The policy of every layer and head.
    pub fn policy(&self) -> Policy {
        let typed = &self.policy;
        let mut policy = Policy::of(match typed.budget {
            None | Some(BudgetName::Rows) => Budget::Rows,
            Some(BudgetName::Blocks) => Budget::Blocks,
        });
        policy.coverage = typed.coverage.unwrap_or(policy.coverage);
        policy.row_stride = typed.row_stride.unwrap_or(policy.row_stride);
        policy.window = typed.window.map_or(policy.window, Window::Tokens);
        policy.tail = typed.tail.unwrap_or(policy.tail);
        policy.sinks = typed.sinks.unwrap_or(policy.sinks);
        policy
    }
}

/// What the command line asks for.
pub enum Asked {
    Run(Box<Options>),
    Convert {
        from: PathBuf,
        to: PathBuf,
    },
    /// Help or version.
    Text(String),
}

/// # Errors
/// What cannot be understood, in one line.
pub fn parse() -> Result<Asked, Failure> {
    use clap::error::ErrorKind;
    match Line::try_parse() {
        Ok(line) => Ok(match line.command {
            Command::Run(options) => Asked::Run(options),
            Command::Convert { from, to } => Asked::Convert { from, to },
        }),
        Err(error) => match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
                Ok(Asked::Text(error.render().to_string()))
            }
            ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => Err(Failure::new(
                "no command; `llm run --model DIR --prompt FILE`, or `llm --help`",
            )),
            _ => {
                let text = error.render().to_string();
                let line = text.lines().next().unwrap_or_default();
                let line = line.strip_prefix("error: ").unwrap_or(line);
                // What is missing stands in the lines after the first.
                let names: Vec<&str> = text
                    .lines()
                    .skip(1)
                    .take_while(|line| line.starts_with("  "))
                    .map(str::trim)
                    .collect();
                Err(Failure::new(
                    format!("{line} {}", names.join(" ")).trim_end(),
                ))
            }
        },
    }
}
