//! How the selection is cut up: a *unit* is what spends its mass by itself (one segment of one head for
//! [`Budget::Blocks`], else one head), and a *wave* is as many units as the workspace holds at once.

use std::ops::Range;

use crate::geometry::{BLOCK, Geometry, SEGMENT_BLOCKS, SampledRows, row_stride_at};
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
    pub(crate) stride_doubles_from: usize,
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
            stride_doubles_from: policy.stride_doubles_from,
            sinks: policy.sinks.min(problem.k_len),
            window_blocks: (window - 1).div_ceil(BLOCK) + 1,
            head_dim: problem.head_dim,
            heads: problem.batch * problem.q_heads,
            per_head: match policy.budget {
                Budget::Blocks => geometry.segments(),
                Budget::Residual | Budget::Paper => 1,
            },
            panels: 0,
            wave: 1,
        };
        let most_rows = (0..units.per_head)
            .map(|segment| units.rows(segment).len())
            .max();
        units.panels = most_rows.unwrap_or(0).div_ceil(PANEL);
        let budget_bytes = WAVE_BYTES_PER_THREAD.saturating_mul(threads);
        units.wave = (budget_bytes / units.wave_bytes()).clamp(1, units.count());
        units
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
            Budget::Residual | Budget::Paper => 0..self.geometry.blocks(),
        }
    }

    /// The sampled rows of a unit.
    pub(crate) fn rows(&self, segment: usize) -> SampledRows {
        let blocks = self.query_blocks(segment);
        let positions = blocks.start * BLOCK..(blocks.end * BLOCK).min(self.geometry.k_len);
        let stride = row_stride_at(self.row_stride, self.stride_doubles_from, positions.start);
        SampledRows::new(self.geometry, stride, positions)
    }

    /// Lanes of one unit's Qᵀ panels.
    pub(crate) fn query_lanes(&self) -> usize {
        self.panels * self.head_dim
    }

    /// Per-block statistics of one unit: one entry a (panel, key block).
    pub(crate) fn block_stats(&self) -> usize {
        match self.budget {
            Budget::Blocks => self.panels * self.geometry.blocks(),
            Budget::Residual | Budget::Paper => 0,
        }
    }

    /// Reduction tasks of one unit: query blocks, or key blocks where single keys are ranked.
    pub(crate) fn reductions(&self) -> usize {
        match self.budget {
            Budget::Blocks => SEGMENT_BLOCKS.min(self.geometry.blocks()),
            Budget::Residual | Budget::Paper => self.geometry.blocks(),
        }
    }

    /// Candidates that one reduction task fills.
    pub(crate) fn candidates_per_reduction(&self) -> usize {
        match self.budget {
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
            Budget::Blocks | Budget::Residual => 0,
        }
    }

    /// Bytes of the buffers of one unit in a wave.
    pub(crate) fn wave_bytes(&self) -> usize {
        (self.query_lanes() + self.panels) * size_of::<Lanes>()
            + (self.block_stats() + self.panels) * size_of::<Stats>()
            + (self.candidates() + self.outside_candidates() + self.reductions()) * size_of::<u64>()
    }
}
