//! Whether selecting can pay, from shapes alone: before anything is sampled.
//!
//! Selecting reads all keys for a few rows; what it saves is a part of what the other rows cost. So it needs many queries for each
//! sampled one, and how many keys there are cancels out: one query over a million keys has nothing to save. The data decide how much
//! is saved, so the rule bounds what is lost where they allow nothing: the selection may cost [`MOST_SELECTION_SHARE`] of dense
//! attention.
//!
//! Costs are in products of one panel of queries with one key block:
//!
//! ```text
//! dense:      Σ over query blocks with a query, of key blocks · (2 · panels + 2 · conversion)       QKᵀ and PV; K and V as f32
//! selection:  key blocks · passes · (sampled panels + conversion · ⌈sampled panels / 2⌉)             QKᵀ; K as f32
//! ```

use super::simd::PANEL;
use crate::geometry::{BLOCK, Geometry, row_stride_at};
use crate::policy::{BREAK_EVEN_TOKENS, Budget, Policy};
use crate::problem::Problem;

/// Panels that share the conversion of a key block in sampling.
const PANELS_PER_CONVERSION: usize = 2;

/// Reading 128 keys or values and converting them to f32, in products of a panel. Measured, bf16 and f16 with head_dim 128: 16 and
/// 128 queries over 32,768 keys differ by six such products a key block, and take 155 and 443 ms for 32 heads.
const CONVERSION: f64 = 0.8;

/// The largest part of dense attention's cost that selecting may cost. At the default stride a prefill pays 7 %, a chunk of 256 queries
/// 9 %, one of 128 queries 19 %: less than a panel is sampled then.
const MOST_SELECTION_SHARE: f64 = 0.15;

/// Whether selecting may pay; [`Fallback::Auto`](crate::Fallback::Auto) attends to everything outright where it does not.
pub(super) fn selects(problem: &Problem, policy: &Policy) -> bool {
    // A model's own window leaves as much to select from.
    let seen = problem.window_left.unwrap_or(usize::MAX).saturating_add(1);
    if problem.k_len.min(seen) < BREAK_EVEN_TOKENS {
        return false;
    }
    let share = selection_share(problem, policy);
    share <= MOST_SELECTION_SHARE && share + window_share(problem, policy) < 1.0
}

/// What selecting costs, as a share of dense attention.
fn selection_share(problem: &Problem, policy: &Policy) -> f64 {
    let live = LiveBlocks::new(problem);
    let dense = live.sum(|panels| 2.0 * panels as f64 + 2.0 * CONVERSION);
    let first_segment = live.first_position / SEGMENT_TOKENS * SEGMENT_TOKENS;
    let (stride, passes) = match policy.budget {
        Budget::Blocks => {
            let doubles_from = policy.stride_doubles_from;
            let stride = row_stride_at(policy.row_stride, doubles_from, first_segment);
            (stride, 1.0)
        }
        // Sampling, and the reduction that looks at the keys again.
        Budget::Residual | Budget::Paper => (policy.row_stride, 2.0),
        Budget::Rows => (policy.row_stride, 1.0),
    };
    let of_tail = match policy.budget {
        Budget::Rows => policy.tail.min(live.rows).div_ceil(policy.tail_stride),
        Budget::Blocks | Budget::Residual | Budget::Paper => 0,
    };
    let panels = (live.rows.div_ceil(stride) + of_tail).div_ceil(PANEL);
    let conversions = CONVERSION * panels.div_ceil(PANELS_PER_CONVERSION) as f64;
    passes * live.mean_key_blocks() * (panels as f64 + conversions) / dense
}

/// Key blocks of the windows, as a share of all.
fn window_share(problem: &Problem, policy: &Policy) -> f64 {
    let live = LiveBlocks::new(problem);
    let window_blocks = (policy.window_tokens(problem.k_len) - 1).div_ceil(BLOCK) + 1;
    // The first query blocks have fewer key blocks than the window.
    let short = live.blocks.start.min(window_blocks)..live.blocks.end.min(window_blocks);
    let in_short = sum_of_key_blocks(short.start, short.end);
    let others = live.blocks.end.max(window_blocks) - live.blocks.start.max(window_blocks);
    let all = sum_of_key_blocks(live.blocks.start, live.blocks.end);
    (in_short + (others * window_blocks) as f64) / all
}

/// Positions that share a row stride.
const SEGMENT_TOKENS: usize = crate::geometry::SEGMENT_BLOCKS * BLOCK;

/// The query blocks of a causal problem that hold queries.
struct LiveBlocks {
    blocks: std::ops::Range<usize>,
    first_position: usize,
    rows: usize,
    rows_of_first: usize,
    rows_of_last: usize,
}

impl LiveBlocks {
    fn new(problem: &Problem) -> Self {
        let geometry = Geometry::new(problem);
        let blocks = geometry.query_blocks();
        LiveBlocks {
            first_position: geometry.k_len.saturating_sub(geometry.q_len),
            rows: geometry.q_len.min(geometry.k_len),
            rows_of_first: geometry.rows_of_block(blocks.start).len(),
            rows_of_last: geometry.rows_of_block(blocks.end - 1).len(),
            blocks,
        }
    }

    /// Key blocks that a query sees, on average.
    fn mean_key_blocks(&self) -> f64 {
        (self.blocks.start + 1 + self.blocks.end) as f64 / 2.0
    }

    /// Σ over query blocks of its key blocks · `cost` of its panels.
    fn sum(&self, cost: impl Fn(usize) -> f64) -> f64 {
        let of = |block: usize, rows: usize| (block + 1) as f64 * cost(rows.div_ceil(PANEL));
        let (first, last) = (self.blocks.start, self.blocks.end - 1);
        if first == last {
            return of(first, self.rows_of_first);
        }
        let whole = sum_of_key_blocks(first + 1, last) * cost(BLOCK / PANEL);
        of(first, self.rows_of_first) + whole + of(last, self.rows_of_last)
    }
}

/// Key blocks that the query blocks `first..end` see together.
fn sum_of_key_blocks(first: usize, end: usize) -> f64 {
    let blocks = end.saturating_sub(first) as f64;
    blocks * (first + 1 + end) as f64 / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Window;
    use crate::problem::Dtype;

    fn problem(q_len: usize, k_len: usize) -> Problem {
        Problem {
            q_len,
            k_len,
            ..Problem::causal(1, 128, Dtype::Bf16)
        }
    }

    #[test]
    fn few_queries_run_dense_whatever_the_number_of_keys() {
        for k_len in [1024, 32_768, 1 << 20, 1 << 30] {
            for q_len in [1, 2, 16, 100, 128] {
                let selects = selects(&problem(q_len, k_len), &Policy::default());
                assert!(!selects, "{q_len} {k_len}");
            }
        }
    }

    #[test]
    fn prefills_and_chunks_select() {
        for (q_len, k_len) in [
            (1024, 1024),
            (8192, 8192),
            (512, 32_768),
            (8192, 1 << 20),
            (1 << 20, 1 << 20),
        ] {
            let problem = problem(q_len, k_len);
            assert!(selects(&problem, &Policy::default()), "{q_len} {k_len}");
            let share = selection_share(&problem, &Policy::default());
            assert!(share < 0.08, "{q_len} {k_len}: {share}");
        }
        assert!(selects(&problem(32_768, 32_768), &Policy::paper()));
    }

    #[test]
    fn a_selection_that_costs_too_much_or_can_drop_nothing_is_not_made() {
        let every_row = Policy {
            row_stride: 1,
            ..Policy::default()
        };
        assert!(!selects(&problem(8192, 8192), &every_row));
        let whole = Policy {
            window: Window::Ratio(1.0),
            ..Policy::default()
        };
        assert!(!selects(&problem(8192, 8192), &whole));
    }

    #[test]
    fn the_windows_share_is_counted_exactly() {
        for (q_len, k_len, tokens) in [
            (1000, 1000, 1),
            (1000, 1000, 300),
            (300, 2000, 500),
            (1000, 1000, 1000),
        ] {
            let problem = problem(q_len, k_len);
            let policy = Policy {
                window: Window::Tokens(tokens),
                ..Policy::default()
            };
            let window_blocks = (tokens - 1).div_ceil(BLOCK) + 1;
            let blocks = Geometry::new(&problem).query_blocks();
            let all: usize = blocks.clone().map(|block| block + 1).sum();
            let kept: usize = blocks.map(|block| (block + 1).min(window_blocks)).sum();
            let share = window_share(&problem, &policy);
            assert!((share - kept as f64 / all as f64).abs() < 1e-12);
        }
    }
}
