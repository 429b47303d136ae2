//! Which policies to measure: the product of the values that the user lists.

use std::str::FromStr;

use clap::{Args, ValueEnum};
use sample_attention::{Budget, Fallback, Policy, Window};

/// Every option takes several values, separated by commas, and every combination is measured. What is not given is the
/// budget's own: `Policy::of` it.
#[derive(Args)]
pub struct Grid {
    /// What the sampled mass buys; all four when not given, and `rows` in a sweep.
    #[arg(long, value_delimiter = ',')]
    budget: Vec<BudgetName>,
    /// Share of the sampled mass to reach, in (0, 1].
    #[arg(long, value_delimiter = ',')]
    coverage: Vec<f32>,
    /// Local window in tokens, or in percent of the length: 256 or 8%.
    #[arg(long, value_delimiter = ',')]
    window: Vec<WindowSize>,
    /// One query in this many is sampled.
    #[arg(long, value_delimiter = ',')]
    row_stride: Vec<usize>,
    /// Key position at which the row stride doubles, and again at each doubling of it, up to 64; never when not given.
    #[arg(long, value_delimiter = ',')]
    stride_doubles_from: Vec<usize>,
    /// Last queries of a text that are sampled at their own stride, for the budget `rows`; 0 for none.
    #[arg(long, value_delimiter = ',')]
    tail: Vec<usize>,
    /// One query of the tail in this many is sampled.
    #[arg(long, value_delimiter = ',')]
    tail_stride: Vec<usize>,
    /// First keys that every query keeps.
    #[arg(long, value_delimiter = ',')]
    sinks: Vec<usize>,
    /// Whether a head may run dense where its selection would cost more; `auto` when not given, and `never` in a sweep.
    #[arg(long, value_delimiter = ',')]
    fallback: Vec<FallbackName>,
    /// Vary coverage, window and row stride over the ranges from which the defaults are chosen.
    #[arg(long)]
    sweep: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum BudgetName {
    Rows,
    Blocks,
    Residual,
    Paper,
}

#[derive(Clone, Copy, ValueEnum)]
enum FallbackName {
    Auto,
    Never,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct WindowSize(Window);

impl FromStr for WindowSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("`{text}` is neither a number of tokens nor a percentage such as 8%");
        let window = match text.strip_suffix('%') {
            Some(percent) => Window::Ratio(percent.parse::<f32>().map_err(|_| bad())? / 100.0),
            None => Window::Tokens(text.parse().map_err(|_| bad())?),
        };
        Ok(WindowSize(window))
    }
}

/// For `rows`, where the worst of some rows decides, and for the others, which count rows together.
const SWEPT_ROW_COVERAGES: [f32; 6] = [0.6, 0.7, 0.75, 0.8, 0.85, 0.9];
const SWEPT_COVERAGES: [f32; 6] = [0.94, 0.95, 0.96, 0.97, 0.98, 0.99];
const SWEPT_WINDOWS: [usize; 3] = [128, 256, 512];
const SWEPT_ROW_STRIDES: [usize; 5] = [4, 8, 16, 32, 64];

impl Grid {
    pub fn is_sweep(&self) -> bool {
        self.sweep
    }

    /// Whether no option says anything.
    pub fn is_empty(&self) -> bool {
        let Grid {
            budget,
            coverage,
            window,
            row_stride,
            stride_doubles_from,
            tail,
            tail_stride,
            sinks,
            fallback,
            sweep,
        } = self;
        let strides = [row_stride, stride_doubles_from, tail, tail_stride, sinks];
        let has_numbers = !coverage.is_empty() || strides.iter().any(|given| !given.is_empty());
        !(has_numbers || *sweep) && (budget.is_empty() && window.is_empty() && fallback.is_empty())
    }

    /// All combinations, the last option varying fastest.
    pub fn policies(&self) -> Vec<Policy> {
        let budgets = match (&*self.budget, self.sweep) {
            ([], false) => &[
                BudgetName::Rows,
                BudgetName::Blocks,
                BudgetName::Residual,
                BudgetName::Paper,
            ][..],
            ([], true) => &[BudgetName::Rows],
            (given, _) => given,
        };
        let fallbacks = match (&*self.fallback, self.sweep) {
            ([], false) => &[FallbackName::Auto][..],
            ([], true) => &[FallbackName::Never],
            (given, _) => given,
        };
        let coverages = match budgets {
            [BudgetName::Rows] => SWEPT_ROW_COVERAGES,
            _ => SWEPT_COVERAGES,
        };
        let mut policies: Vec<Policy> = budgets.iter().map(own_policy).collect();
        vary(
            &mut policies,
            &self.swept(&self.coverage, &coverages),
            |policy, &coverage| {
                policy.coverage = coverage;
            },
        );
        let windows: Vec<Window> = self.window.iter().map(|window| window.0).collect();
        vary(
            &mut policies,
            &self.swept(&windows, &SWEPT_WINDOWS.map(Window::Tokens)),
            |policy, &window| {
                policy.window = window;
            },
        );
        vary(
            &mut policies,
            &self.swept(&self.row_stride, &SWEPT_ROW_STRIDES),
            |policy, &stride| {
                policy.row_stride = stride;
            },
        );
        vary(
            &mut policies,
            &self.stride_doubles_from,
            |policy, &position| {
                policy.stride_doubles_from = position;
            },
        );
        vary(&mut policies, &self.tail, |policy, &tail| {
            policy.tail = tail
        });
        vary(&mut policies, &self.tail_stride, |policy, &stride| {
            policy.tail_stride = stride
        });
        vary(&mut policies, &self.sinks, |policy, &sinks| {
            policy.sinks = sinks
        });
        vary(&mut policies, fallbacks, |policy, fallback| {
            policy.fallback = match fallback {
                FallbackName::Auto => Fallback::Auto,
                FallbackName::Never => Fallback::Never,
            };
        });
        policies
    }

    fn swept<T: Clone>(&self, given: &[T], range: &[T]) -> Vec<T> {
        match (given, self.sweep) {
            ([], true) => range.to_vec(),
            _ => given.to_vec(),
        }
    }
}

fn own_policy(budget: &BudgetName) -> Policy {
    Policy::of(match budget {
        BudgetName::Rows => Budget::Rows,
        BudgetName::Blocks => Budget::Blocks,
        BudgetName::Residual => Budget::Residual,
        BudgetName::Paper => Budget::Paper,
    })
}

/// Each policy once for each value; unchanged where there is none.
fn vary<T>(policies: &mut Vec<Policy>, values: &[T], set: impl Fn(&mut Policy, &T)) {
    if values.is_empty() {
        return;
    }
    *policies = policies
        .iter()
        .flat_map(|policy| {
            values.iter().map(|value| {
                let mut policy = *policy;
                set(&mut policy, value);
                policy
            })
        })
        .collect();
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        grid: Grid,
    }

    fn policies(options: &str) -> Vec<Policy> {
        let arguments = ["test"].into_iter().chain(options.split_whitespace());
        Cli::try_parse_from(arguments).unwrap().grid.policies()
    }

    #[test]
    fn no_options_mean_each_budget_by_its_own_settings() {
        let own = policies("--fallback auto");
        assert_eq!(own[0], Policy::default());
        assert_eq!(own[1], Policy::of(Budget::Blocks));
        assert_eq!(own[2], Policy::of(Budget::Residual));
        assert_eq!(own[3], Policy::paper());
        assert_eq!(policies(""), own);
    }

    #[test]
    fn given_values_are_combined() {
        let both = policies("--budget blocks --coverage 0.9,0.95 --window 8%,64 --fallback never");
        assert_eq!(both.len(), 4);
        assert_eq!(
            (both[0].coverage, both[0].window),
            (0.9, Window::Ratio(0.08))
        );
        assert_eq!(
            (both[3].coverage, both[3].window),
            (0.95, Window::Tokens(64))
        );
    }

    #[test]
    fn a_sweep_varies_what_is_not_given() {
        assert_eq!(policies("--sweep").len(), 6 * 3 * 5);
        let narrowed = policies("--sweep --coverage 0.97 --row-stride 16");
        assert_eq!(narrowed.len(), 3);
        assert!(
            narrowed
                .iter()
                .all(|policy| policy.fallback == Fallback::Never)
        );
    }

    #[test]
    fn windows_that_are_no_numbers_are_refused() {
        for text in ["", "%", "x", "8 %", "-1"] {
            assert!(text.parse::<WindowSize>().is_err(), "{text}");
        }
    }
}
