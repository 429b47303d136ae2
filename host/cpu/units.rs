//! How the selection is cut up: a *unit* is what spends its mass by itself (one segment of one head for
//! [`Budget::Blocks`], else one head), and a *wave* is as many units as the workspace holds at once. With [`Budget::Rows`] nothing
//! is shared between query blocks; a unit is one head there too, and its query blocks go in small groups.

use std::ops::Range;

use crate::geometry::{
    BLOCK, Geometry, SEGMENT_BLOCKS, SampledRows, Tail, row_offset, row_stride_at,
};
use crate::policy::{Budget, Policy};
use crate::problem::Problem;

use super::simd::{Lanes, PANEL};
use super::tile::Stats;

/// Bytes of wave buffers that one thread may bring: large enough to keep all threads busy, small beside K and V.
const WAVE_BYTES_PER_THREAD: usize = 16 << 20;

/// Sizes of the selection's work and of its buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Units {
    pub(crate) geometry: Geometry,
    pub(crate) budget: Budget,
    pub(crate) row_stride: usize,
    row_offset: usize,
    q_heads: usize,
    pub(crate) stride_doubles_from: usize,
    pub(crate) tail: Tail,
    pub(crate) sinks: usize,
    /// Key blocks of a query block's window, its own included.
    pub(crate) window_blocks: usize,
    pub(crate) head_dim: usize,
    pub(crate) heads: usize,
    /// Units of one head.
    pub(crate) per_head: usize,
    /// Panels of sampled rows of one unit, at most.
    pub(crate) panels: usize,
    /// Units of one wave.
    pub(crate) wave: usize,
    /// Bytes that the buffers of a wave may take, if they hold one unit.
    wave_budget_bytes: usize,
}

/// One unit: which head and, for [`Budget::Blocks`], which segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unit {
    pub(crate) head: usize,
    pub(crate) segment: usize,
}

impl Units {
    pub(crate) fn new(problem: &Problem, policy: &Policy, threads: usize) -> Self {
        let geometry = Geometry::new(problem);
        let window = policy.window_tokens(problem.k_len);
        let mut units = Units {
            geometry,
            budget: policy.budget,
            row_stride: policy.row_stride,
            row_offset: policy.row_offset,
            q_heads: problem.q_heads,
            stride_doubles_from: policy.stride_doubles_from,
            tail: match policy.budget {
                Budget::Rows => Tail {
                    rows: policy.tail,
                    stride: policy.tail_stride,
                },
                Budget::Blocks | Budget::Residual | Budget::Paper => Tail::NONE,
            },
            sinks: policy.sinks.min(problem.k_len),
            window_blocks: (window - 1).div_ceil(BLOCK) + 1,
            head_dim: problem.head_dim,
            heads: problem.batch * problem.q_heads,
            per_head: match policy.budget {
                Budget::Blocks => geometry.segments(),
                Budget::Rows | Budget::Residual | Budget::Paper => 1,
            },
            panels: 0,
            wave: 1,
            wave_budget_bytes: 0,
        };
        units.panels = units.most_rows().div_ceil(PANEL);
        units.wave_budget_bytes = WAVE_BYTES_PER_THREAD.saturating_mul(threads);
        units.wave = (units.wave_budget_bytes / units.unit_bytes()).clamp(1, units.count());
        units
    }

    /// A bound on the sampled rows of one unit that never falls when there are more queries or keys, so that the workspace does
    /// not either: where a chunk of queries lies among the segments decides how many rows a unit really has.
    fn most_rows(&self) -> usize {
        let Geometry { q_len, k_len, .. } = self.geometry;
        let stride = self.row_stride;
        // Multiples of the stride in a range that begins anywhere and ends behind the last of them, and the last row.
        let anywhere = (q_len.min(k_len) - 1).div_ceil(stride) + 1;
        let segment = SEGMENT_BLOCKS * BLOCK;
        let in_unit = match self.budget {
            Budget::Blocks if segment.is_multiple_of(stride) => segment / stride,
            Budget::Blocks => segment.div_ceil(stride) + 1,
            Budget::Rows | Budget::Residual | Budget::Paper => usize::MAX,
        };
        let in_tail = match self.tail {
            Tail::NONE => 0,
            tail => tail.rows.min(q_len).min(k_len).div_ceil(tail.stride) + 1,
        };
        anywhere.min(in_unit) + in_tail
    }

    pub(crate) fn count(&self) -> usize {
        self.heads * self.per_head
    }

    pub(crate) fn waves(&self) -> usize {
        self.count().div_ceil(self.wave)
    }

    /// The units of one wave, head after head.
    pub(crate) fn of_wave(&self, wave: usize) -> impl Iterator<Item = Unit> + Clone + Send + use<> {
        let per_head = self.per_head;
        (wave * self.wave..((wave + 1) * self.wave).min(self.count())).map(move |index| Unit {
            head: index / per_head,
            segment: index % per_head,
        })
    }

    /// Query blocks of a unit, counted from position 0.
    pub(crate) fn query_blocks(&self, segment: usize) -> Range<usize> {
        match self.budget {
            Budget::Blocks => {
                let first = segment * SEGMENT_BLOCKS;
                first..(first + SEGMENT_BLOCKS).min(self.geometry.blocks())
            }
            Budget::Rows | Budget::Residual | Budget::Paper => 0..self.geometry.blocks(),
        }
    }

    /// The sampled rows of a unit.
    pub(crate) fn rows(&self, unit: Unit) -> SampledRows {
        let blocks = self.query_blocks(unit.segment);
        let positions = blocks.start * BLOCK..(blocks.end * BLOCK).min(self.geometry.k_len);
        let stride = row_stride_at(self.row_stride, self.stride_doubles_from, positions.start);
        let offset = match self.budget {
            Budget::Rows => row_offset(stride, self.row_offset, unit.head % self.q_heads),
            // Ranked over rows, not by row.
            Budget::Blocks | Budget::Residual | Budget::Paper => 0,
        };
        SampledRows::new(self.geometry, (stride, offset), self.tail, positions)
    }

    /// The sampled rows of every head of a sequence, without repeats; for budgets whose unit is a head.
    pub(crate) fn distinct_rows(&self) -> Vec<SampledRows> {
        // Heads a whole stride apart sample the same rows.
        let heads = self.q_heads.min(self.row_stride);
        (0..heads)
            .map(|head| self.rows(Unit { head, segment: 0 }))
            .collect()
    }

    /// Lanes of one unit's Qᵀ panels.
    pub(crate) fn query_lanes(&self) -> usize {
        match self.budget {
            // A task of the selection has them in its scratch.
            Budget::Rows => 0,
            Budget::Blocks | Budget::Residual | Budget::Paper => self.panels * self.head_dim,
        }
    }

    /// Per-block statistics of one unit: one entry a (panel, key block).
    pub(crate) fn block_stats(&self) -> usize {
        match self.budget {
            Budget::Blocks => self.panels * self.geometry.blocks(),
            Budget::Rows | Budget::Residual | Budget::Paper => 0,
        }
    }

    /// Statistics of the sinks of one unit: one entry a panel.
    pub(crate) fn sink_stats(&self) -> usize {
        match self.budget {
            Budget::Rows => 0,
            Budget::Blocks | Budget::Residual | Budget::Paper => self.panels,
        }
    }

    /// Reduction tasks of one unit: query blocks, or key blocks where single keys are ranked.
    pub(crate) fn reductions(&self) -> usize {
        match self.budget {
            Budget::Rows => 0,
            Budget::Blocks => SEGMENT_BLOCKS.min(self.geometry.blocks()),
            Budget::Residual | Budget::Paper => self.geometry.blocks(),
        }
    }

    /// Candidates that one reduction task fills.
    pub(crate) fn candidates_per_reduction(&self) -> usize {
        match self.budget {
            Budget::Rows => 0,
            Budget::Blocks => self.geometry.blocks(),
            Budget::Residual | Budget::Paper => BLOCK,
        }
    }

    /// Candidates of one unit.
    pub(crate) fn candidates(&self) -> usize {
        self.reductions() * self.candidates_per_reduction()
    }

    /// Entries of the second mass array, which only the paper's budget needs.
    pub(crate) fn outside_candidates(&self) -> usize {
        match self.budget {
            Budget::Paper => self.candidates(),
            Budget::Rows | Budget::Blocks | Budget::Residual => 0,
        }
    }

    /// Bytes set aside for the buffers of a wave: enough for `wave` units, but no less for longer sequences, of which fewer fit.
    pub(crate) fn wave_bytes(&self) -> usize {
        let all = self.count().saturating_mul(self.unit_bytes());
        all.min(self.wave_budget_bytes.max(self.unit_bytes()))
    }

    /// Bytes of the buffers of one unit in a wave.
    fn unit_bytes(&self) -> usize {
        self.query_lanes() * size_of::<Lanes>()
            + (self.block_stats() + self.panels + self.sink_stats()) * size_of::<Stats>()
            + (self.candidates() + self.outside_candidates() + self.reductions()) * size_of::<u64>()
    }
}
