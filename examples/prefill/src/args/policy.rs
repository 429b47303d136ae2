//! The policy's options.

use clap::{Args, ValueEnum};
use sample_attention::{Policy, Window};

use crate::failure::Failure;
use crate::table::policy_text;

/// What was typed; everything else is the default policy's, or with `--paper` the paper's.
#[derive(Args)]
#[command(next_help_heading = "Policy")]
pub struct PolicyOptions {
    /// The paper's own policy in place of the default one: budget paper with the paper's coverage, window and row stride.
    #[arg(long, conflicts_with = "budget")]
    paper: bool,
    /// Share of the sampled attention mass to keep, in (0, 1].
    #[arg(long, value_name = "F", allow_negative_numbers = true)]
    coverage: Option<f32>,
    /// Most recent keys that every query keeps, in tokens.
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
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    row_stride: Option<usize>,
    /// Key position at which the row stride doubles, and again at each doubling of it, up to 64; or never. Budget blocks alone.
    #[arg(long, value_name = "N", value_parser = Position::parse, allow_negative_numbers = true)]
    stride_doubles_from: Option<Position>,
    /// Last queries that are sampled at a stride of their own; 0 for none. Budget rows alone.
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    tail: Option<usize>,
    /// One query of the tail in this many is sampled.
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    tail_stride: Option<usize>,
    /// First keys that every query keeps.
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    sinks: Option<usize>,
    /// What the mass buys: key blocks that single rows ask for, pairs of blocks, single keys by the mass that window and sinks leave,
    /// or single keys by their whole mass, as the paper has it. Coverage, window and row stride are then the budget's own unless
    /// given; those of paper are residual's here, and the paper's with --paper.
    #[arg(long, value_enum)]
    budget: Option<Budget>,
    /// Where to run dense instead: where that is faster, or never.
    #[arg(long, value_enum)]
    fallback: Option<Fallback>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Budget {
    Rows,
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

impl Position {
    fn parse(text: &str) -> Result<Self, String> {
        if text == "never" {
            return Ok(Position(usize::MAX));
        }
        let position = text.parse();
        position
            .map(Position)
            .map_err(|error| format!("{error}, and not `never`"))
    }
}

impl PolicyOptions {
    /// Names of the options that were typed.
    pub fn given(&self) -> Vec<&'static str> {
        [
            ("--paper", self.paper),
            ("--coverage", self.coverage.is_some()),
            ("--window", self.window.is_some()),
            ("--window-ratio", self.window_ratio.is_some()),
            ("--row-stride", self.row_stride.is_some()),
            ("--stride-doubles-from", self.stride_doubles_from.is_some()),
            ("--tail", self.tail.is_some()),
            ("--tail-stride", self.tail_stride.is_some()),
            ("--sinks", self.sinks.is_some()),
            ("--budget", self.budget.is_some()),
            ("--fallback", self.fallback.is_some()),
        ]
        .into_iter()
        .filter_map(|(option, given)| given.then_some(option))
        .collect()
    }

    /// The policy, checked as far as that goes without a problem.
    pub fn policy(&self) -> Result<Policy, Failure> {
        let base = if self.paper {
            Policy::paper()
        } else {
            match self.budget.map(Budget::of_library) {
                // The paper's rule by settings that compare with the other budgets'.
                Some(paper @ sample_attention::Budget::Paper) => {
                    Policy::of(sample_attention::Budget::Residual).with_budget(paper)
                }
                Some(budget) => Policy::of(budget),
                None => Policy::default(),
            }
        };
        let window = match (self.window, self.window_ratio) {
            (_, Some(ratio)) => Window::Ratio(ratio),
            (Some(tokens), None) => Window::Tokens(tokens),
            (None, None) => base.window,
        };
        let doubles_from = self
            .stride_doubles_from
            .map_or(base.stride_doubles_from, |position| position.0);
        let policy = base
            .with_coverage(self.coverage.unwrap_or(base.coverage))
            .with_row_stride(self.row_stride.unwrap_or(base.row_stride))
            .with_stride_doubles_from(doubles_from)
            .with_tail(
                self.tail.unwrap_or(base.tail),
                self.tail_stride.unwrap_or(base.tail_stride),
            )
            .with_window(window)
            .with_sinks(self.sinks.unwrap_or(base.sinks))
            .with_fallback(self.fallback.map_or(base.fallback, Fallback::of_library));
        policy.validate()?;
        Ok(policy)
    }

    /// An option that the policy's budget has no use for is an error.
    pub fn refuse_ignored(&self, policy: &Policy) -> Result<(), Failure> {
        if self.stride_doubles_from.is_some() && policy.budget != sample_attention::Budget::Blocks {
            return Err(Failure::of(
                "--stride-doubles-from",
                "only budget blocks has strides that double",
            ));
        }
        let has_tail = self.tail.is_some() || self.tail_stride.is_some();
        if has_tail && policy.budget != sample_attention::Budget::Rows {
            return Err(Failure::of("--tail", "only budget rows has a tail"));
        }
        Ok(())
    }
}

impl Budget {
    fn of_library(self) -> sample_attention::Budget {
        match self {
            Budget::Rows => sample_attention::Budget::Rows,
            Budget::Blocks => sample_attention::Budget::Blocks,
            Budget::Residual => sample_attention::Budget::Residual,
            Budget::Paper => sample_attention::Budget::Paper,
        }
    }
}

impl Fallback {
    fn of_library(self) -> sample_attention::Fallback {
        match self {
            Fallback::Auto => sample_attention::Fallback::Auto,
            Fallback::Never => sample_attention::Fallback::Never,
        }
    }
}

/// The policies that options start from, for the help.
pub fn in_words() -> String {
    format!(
        "Without policy options: {}.\nWith --paper: {}.",
        policy_text(&Policy::default()),
        policy_text(&Policy::paper()),
    )
}
