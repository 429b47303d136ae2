//! O and softmax statistics of a query block over any number of tiles, without losing the bits of long sums.
//!
//! Thousands of equal terms, added one by one to what they have become, are all rounded alike, and the sum drifts: by a hundredth
//! over a million keys. So a tile is summed up by itself (`tile::accumulate`), some tiles become a *recent* sum, and recent sums
//! are folded into the *total* with the rounding error of the total carried along (Kahan):
//!
//! ```text
//! recent = recent · 2^(old maximum - maximum) + tile             each tile
//! every 8 tiles:
//!     scaled = total · f, where f = 2^(maximum at the last fold - maximum)
//!     y      = recent + carry · f
//!     total  = scaled + y
//!     carry  = y - (total - scaled)
//!     recent = 0
//! ```
//!
//! Up to 8 tiles there is no total: the recent sum is all.

use super::simd::{Lanes, PANEL, Simd};
use super::tile::{self, Stats};
use crate::geometry::BLOCK;

/// Panels of one query block.
pub(super) const PANELS: usize = BLOCK / PANEL;

/// Tiles of a recent sum: few enough that their order does not show, enough that folding costs next to nothing.
const TILES_PER_FOLD: usize = 8;

/// Statistics of a panel over any number of tiles.
#[derive(Clone, Copy)]
pub(super) struct RunningStats {
    /// Maximum over everything so far, sum of the tiles since the last fold.
    pub(super) recent: Stats,
    /// Maximum and sum of everything up to the last fold.
    pub(super) stats: Stats,
    carry: Lanes,
}

impl RunningStats {
    /// Of a sink alone, by its score (log2); of nothing where that is -∞.
    #[inline(always)]
    pub(super) fn of_sink(sink_log2: f32) -> Self {
        RunningStats {
            recent: Stats::of_sink(sink_log2),
            stats: Stats::EMPTY,
            carry: Lanes::ZERO,
        }
    }

    /// Folds the recent tiles in. Returns what was folded before has to be multiplied by.
    #[inline(always)]
    pub(super) fn fold<S: Simd>(&mut self, simd: S) -> Lanes {
        let factor = factor(simd, &self.stats.max, &self.recent.max);
        let [total, carry, recent] =
            [&mut self.stats.sum, &mut self.carry, &mut self.recent.sum].map(std::slice::from_mut);
        add(simd, total, carry, recent, &factor);
        self.stats.max = self.recent.max;
        factor
    }

    /// Adds the sum of other keys, whose maximum is at most `stats.max`.
    #[inline(always)]
    pub(super) fn add<S: Simd>(&mut self, simd: S, other: &Stats) {
        let factor = factor(simd, &other.max, &self.stats.max);
        let mut part = other.sum;
        tile::scale(simd, std::slice::from_mut(&mut part), &factor);
        let [total, carry, part] =
            [&mut self.stats.sum, &mut self.carry, &mut part].map(std::slice::from_mut);
        add(simd, total, carry, part, &Lanes([1.0; PANEL]));
    }
}

/// Memory of an accumulator, `head_dim` lanes a panel each.
pub(super) struct Sums<'a> {
    pub(super) recent: &'a mut [Lanes],
    pub(super) total: &'a mut [Lanes],
    pub(super) carry: &'a mut [Lanes],
}

impl Sums<'_> {
    pub(super) fn reborrow(&mut self) -> Sums<'_> {
        Sums {
            recent: self.recent,
            total: self.total,
            carry: self.carry,
        }
    }
}

/// Sums over the tiles that a query block has attended to.
pub(super) struct Accumulator<'a> {
    head_dim: usize,
    sums: Sums<'a>,
    stats: [RunningStats; PANELS],
    /// Tiles since the last fold.
    recent_tiles: usize,
    has_total: bool,
}

impl<'a> Accumulator<'a> {
    /// Of nothing yet but the head's sink. What the memory holds does not matter.
    pub(super) fn new(head_dim: usize, sums: Sums<'a>, sink_log2: f32) -> Self {
        sums.recent.fill(Lanes::ZERO);
        Accumulator {
            head_dim,
            sums,
            stats: [RunningStats::of_sink(sink_log2); PANELS],
            recent_tiles: 0,
            has_total: false,
        }
    }

    pub(super) fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Whether no tile has been attended to.
    pub(super) fn is_empty(&self) -> bool {
        self.recent_tiles == 0 && !self.has_total
    }

    /// What a panel's next tile is added to: statistics, and Oᵀ.
    #[inline(always)]
    pub(super) fn panel(&mut self, panel: usize) -> (&mut Stats, &mut [Lanes]) {
        let lanes = panel * self.head_dim..(panel + 1) * self.head_dim;
        (&mut self.stats[panel].recent, &mut self.sums.recent[lanes])
    }

    /// To be called when all panels have attended to a tile.
    #[inline(always)]
    pub(super) fn end_tile<S: Simd>(&mut self, simd: S) {
        self.recent_tiles += 1;
        if self.recent_tiles == TILES_PER_FOLD {
            self.fold(simd);
        }
    }

    /// To be called when there are no more tiles.
    #[inline(always)]
    pub(super) fn finish<S: Simd>(&mut self, simd: S) {
        if self.has_total {
            self.fold(simd);
        }
    }

    /// Statistics and Oᵀ of a panel over everything, after [`Accumulator::finish`].
    pub(super) fn finished(&self, panel: usize) -> (&Stats, &[Lanes]) {
        let lanes = panel * self.head_dim..(panel + 1) * self.head_dim;
        if self.has_total {
            (&self.stats[panel].stats, &self.sums.total[lanes])
        } else {
            (&self.stats[panel].recent, &self.sums.recent[lanes])
        }
    }

    #[inline(always)]
    fn fold<S: Simd>(&mut self, simd: S) {
        let panels = self.sums.recent.len() / self.head_dim;
        for panel in 0..panels {
            let lanes = panel * self.head_dim..(panel + 1) * self.head_dim;
            let total = &mut self.sums.total[lanes.clone()];
            let carry = &mut self.sums.carry[lanes.clone()];
            let recent = &mut self.sums.recent[lanes];
            if !self.has_total {
                total.fill(Lanes::ZERO);
                carry.fill(Lanes::ZERO);
            }
            let factor = self.stats[panel].fold(simd);
            add(simd, total, carry, recent, &factor);
        }
        self.has_total = true;
        self.recent_tiles = 0;
    }
}

/// 2^(old - new), lane by lane; 0 where there was nothing before.
#[inline(always)]
fn factor<S: Simd>(simd: S, old: &Lanes, new: &Lanes) -> Lanes {
    let mut factor = Lanes::ZERO;
    for at in (0..PANEL).step_by(S::LANES) {
        let reference = tile::finite_or_zero(simd, simd.load(new, at));
        let difference = simd.sub(simd.load(old, at), reference);
        simd.store(&mut factor, at, simd.exp2(difference));
    }
    factor
}

/// Adds `recent` to `total · factor`, with the carry of its roundings, and empties it.
#[inline(always)]
fn add<S: Simd>(
    simd: S,
    total: &mut [Lanes],
    carry: &mut [Lanes],
    recent: &mut [Lanes],
    factor: &Lanes,
) {
    let (zero, one) = (simd.splat(0.0), simd.splat(1.0));
    for at in (0..PANEL).step_by(S::LANES) {
        let factor = simd.load(factor, at);
        for ((total, carry), recent) in total.iter_mut().zip(carry.iter_mut()).zip(&mut *recent) {
            let scaled = simd.mul(simd.load(total, at), factor);
            let y = simd.mul_add(simd.load(carry, at), factor, simd.load(recent, at));
            let sum = simd.add(scaled, y);
            let rest = simd.sub(y, simd.sub(sum, scaled));
            // An infinite total leaves NaN or infinity, times 0 NaN, which must not turn later totals into NaN.
            let rest = simd.select_lt(simd.mul(rest, zero), one, rest, zero);
            simd.store(total, at, sum);
            simd.store(carry, at, rest);
            simd.store(recent, at, zero);
        }
    }
}
