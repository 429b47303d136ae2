//! How much to keep, and how to find it.

use crate::error::{Error, Result};

/// How the keys that matter are chosen from the sampled attention mass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Budget {
    /// Key blocks of each query block: every sampled row by itself asks for the smallest set of key blocks that brings what window
    /// and sinks cover of it to `coverage`, and the query block keeps what any of its rows asks for. A query block's list depends
    /// on nothing but its own rows, so a prompt selects the same in chunks of whole blocks, if the row stride divides 128.
    Rows,
    /// Pairs (query block, key block) outside window and sinks, by the mass that the query block's own sampled rows
    /// give them, within each segment of 64 query blocks. Close to dense on average, but single rows that look up something far away
    /// may lose it.
    Blocks,
    /// Single keys (stripes) by the mass that window and sinks leave uncovered. The keys are fitted to the sampled rows, so other rows
    /// reach less than `coverage`: about 0.92 at 0.95 on a language model. [`Plan::true_coverage`](crate::Plan::true_coverage) tells.
    Residual,
    /// Single keys by their whole sampled mass, as the paper has it: the window's share counts a second time.
    Paper,
}

impl Budget {
    /// The budget's name in options and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Budget::Rows => "rows",
            Budget::Blocks => "blocks",
            Budget::Residual => "residual",
            Budget::Paper => "paper",
        }
    }
}

/// The local window that every query keeps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Window {
    /// This many most recent keys, the query's own included.
    Tokens(usize),
    /// This share of `k_len`, rounded up: in (0, 1]. The paper uses 0.08.
    Ratio(f32),
}

/// What to do where the sparse path would not be faster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Fallback {
    /// Dense outright where the shapes say that a selection cannot pay: below the measured break-even length
    /// ([`BREAK_EVEN_TOKENS`]), and on the CPU also where it would cost more than 15 % of dense attention (fewer than some 160
    /// queries at a time, decoding above all; nearly every row sampled) or where the windows hold everything. Otherwise dense for
    /// each head whose selection would cost more than dense.
    Auto,
    /// Sparse whatever it costs: for tests and for measuring.
    Never,
}

impl Fallback {
    /// The rule's name in options and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Fallback::Auto => "auto",
            Fallback::Never => "never",
        }
    }
}

/// Problems with fewer keys than this run dense under [`Fallback::Auto`]: the selection costs more than it saves.
/// Measured with `cargo bench --bench ratios` (`benches/record/cpu.md`): no gain at 768 tokens, a third at 1024.
pub const BREAK_EVEN_TOKENS: usize = 1024;

/// The selection policy. The defaults were chosen by measurement (README, "Quality").
///
/// ```
/// use sample_attention::{Policy, Window};
/// let policy = Policy::default().with_coverage(0.98).with_window(Window::Tokens(512));
/// # assert_eq!(policy.sinks, 16);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Policy {
    /// What the mass buys: blocks or single keys.
    pub budget: Budget,
    /// Share of the sampled attention mass to reach, in (0, 1]: the paper's α, the CRA threshold.
    pub coverage: f32,
    /// One query in this many is sampled, by position: rows whose position plus one is a multiple, and the last row. The
    /// paper's 5 % is 20. The selection costs 1/(2·`row_stride`) of dense attention's arithmetic, at any length.
    pub row_stride: usize,
    /// Key position from which on fewer rows are sampled. The longer a prompt, the faster the sparse path beside dense attention, and
    /// the larger the selection's part in it; this makes the selection cheaper where that matters, for somewhat less coverage
    /// (`benches/record/quality.md` has both).
    ///
    /// A segment of 64 query blocks (8192 positions) is sampled at `row_stride` if it begins below this position, at twice that from
    /// here to twice the position, at four times that to four times the position, and so on. The stride ends at one row in 64, two
    /// rows a query block, or at `row_stride` if that is sparser. At least 1; `usize::MAX`, the default, never doubles.
    ///
    /// The other budgets ignore it: [`Budget::Residual`] and [`Budget::Paper`] rank single keys over a whole head, whose rows are
    /// sampled evenly, and with [`Budget::Rows`] no row speaks for another.
    pub stride_doubles_from: usize,
    /// For [`Budget::Rows`], where `row_stride` divides a block: query head `h` samples rows `o` before the multiples of
    /// `row_stride`, o = (`row_offset` + h · c) mod `row_stride` with c near 0.6 · `row_stride`; the last row of each query block is
    /// sampled by all. What a row looks up that one head does not sample, another head then does: at the same cost, half as many
    /// answers are lost (`benches/record/quality.md`). An engine may set this to the layer's index, which staggers the layers too.
    pub row_offset: usize,
    /// Last query rows of the call that are sampled at `tail_stride` in place of `row_stride`: there stands the question that a prompt
    /// ends with. 0 for none; a prompt in chunks sets it for its last chunk. [`Budget::Rows`] alone.
    pub tail: usize,
    /// One query of the tail in this many is sampled, by position.
    pub tail_stride: usize,
    /// Local window.
    pub window: Window,
    /// First keys of the sequence that every query keeps.
    pub sinks: usize,
    /// Where to run dense instead.
    pub fallback: Fallback,
}

impl Default for Policy {
    fn default() -> Self {
        Policy {
            budget: Budget::Rows,
            coverage: 0.73,
            row_stride: 8,
            stride_doubles_from: usize::MAX,
            row_offset: 0,
            tail: 0,
            tail_stride: 4,
            window: Window::Tokens(128),
            sinks: 16,
            fallback: Fallback::Auto,
        }
    }
}

impl Policy {
    /// Each budget by its own measured settings: [`Policy::default`] for [`Budget::Rows`], [`Policy::paper`] for [`Budget::Paper`], else
    /// coverage 0.97, a window of 256 tokens and one row in 16.
    ///
    /// ```
    /// use sample_attention::{Budget, Policy};
    /// assert_eq!(Policy::of(Budget::Rows), Policy::default());
    /// assert_eq!(Policy::of(Budget::Blocks).row_stride, 16);
    /// ```
    pub fn of(budget: Budget) -> Self {
        match budget {
            Budget::Rows => Policy::default(),
            Budget::Paper => Policy::paper(),
            Budget::Blocks | Budget::Residual => Policy {
                budget,
                coverage: 0.97,
                row_stride: 16,
                window: Window::Tokens(256),
                ..Policy::default()
            },
        }
    }

    /// The paper's own settings: stripes by whole mass, α = 0.95, window 8 %, 5 % of the rows.
    pub fn paper() -> Self {
        Policy {
            budget: Budget::Paper,
            coverage: 0.95,
            row_stride: 20,
            window: Window::Ratio(0.08),
            ..Policy::default()
        }
    }

    /// The same policy with another [`Policy::budget`].
    pub fn with_budget(self, budget: Budget) -> Self {
        Policy { budget, ..self }
    }

    /// The same policy with another [`Policy::coverage`].
    pub fn with_coverage(self, coverage: f32) -> Self {
        Policy { coverage, ..self }
    }

    /// The same policy with another [`Policy::row_stride`].
    pub fn with_row_stride(self, row_stride: usize) -> Self {
        Policy { row_stride, ..self }
    }

    /// The same policy with another [`Policy::stride_doubles_from`].
    pub fn with_stride_doubles_from(self, stride_doubles_from: usize) -> Self {
        Policy {
            stride_doubles_from,
            ..self
        }
    }

    /// The same policy with another [`Policy::row_offset`].
    pub fn with_row_offset(self, row_offset: usize) -> Self {
        Policy { row_offset, ..self }
    }

    /// The same policy with another [`Policy::tail`] and [`Policy::tail_stride`].
    pub fn with_tail(self, tail: usize, tail_stride: usize) -> Self {
        Policy {
            tail,
            tail_stride,
            ..self
        }
    }

    /// The same policy with another [`Policy::window`].
    pub fn with_window(self, window: Window) -> Self {
        Policy { window, ..self }
    }

    /// The same policy with another [`Policy::sinks`].
    pub fn with_sinks(self, sinks: usize) -> Self {
        Policy { sinks, ..self }
    }

    /// The same policy with another [`Policy::fallback`].
    pub fn with_fallback(self, fallback: Fallback) -> Self {
        Policy { fallback, ..self }
    }

    /// Whether every field is in its range, as each plan that takes the policy asks. It needs no problem and starts no thread.
    ///
    /// # Errors
    /// What is out of range.
    pub fn validate(&self) -> Result<()> {
        // Written so that NaN fails too.
        let in_unit = |x: f32| x > 0.0 && x <= 1.0;
        if !in_unit(self.coverage) {
            return Err(Error::Coverage {
                coverage: self.coverage,
            });
        }
        if self.row_stride == 0 {
            return Err(Error::RowStride);
        }
        if self.stride_doubles_from == 0 {
            return Err(Error::StrideDoublesFrom);
        }
        if self.tail_stride == 0 {
            return Err(Error::TailStride);
        }
        match self.window {
            Window::Tokens(0) => Err(Error::WindowTokens),
            Window::Ratio(ratio) if !in_unit(ratio) => Err(Error::WindowRatio { ratio }),
            _ => Ok(()),
        }
    }

    /// Window in tokens for `k_len` keys; at least 1 (the query itself), at most `k_len`.
    pub(crate) fn window_tokens(&self, k_len: usize) -> usize {
        let tokens = match self.window {
            Window::Tokens(tokens) => tokens,
            // In f32, where 0.1 · 1290 is 129: widening first would make it a little more.
            Window::Ratio(ratio) => (ratio * k_len as f32).ceil() as usize,
        };
        tokens.clamp(1, k_len)
    }
}
