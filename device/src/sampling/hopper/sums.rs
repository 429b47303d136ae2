//! Sums of 2^score over a lane's two rows, tile after tile.
//!
//! ```text
//! maximum[row] of the tile, over the row's four lanes
//! sum[row] = Σ 2^(score − maximum), each exponential in the place of its score
//! total[row] = total · 2^(old − new) + sum · 2^(maximum − new), where new is the greater of the maxima
//! ```
//!
//! The exponentials of a tile are independent, and the MUFU needs dozens of them under way. They write over their scores: what kept the
//! scores for a second look, to spare the maximum, left registers for three or four, and took twice as long.
//!
//! Scores are raw products; `scale_log2` > 0 turns them into exponents of 2.

use crate::gpu;
use crate::sampling::finite_or_zero;
use crate::tile::WARP;
use crate::tile::warpgroup::{self, Scores};

/// Keys that count for one row, from a tile's first: `from..to`. Negative numbers and those after the tile's last are
/// welcome.
#[derive(Clone, Copy)]
pub(super) struct Keys {
    from: i32,
    to: i32,
}

impl Keys {
    /// Keys of the sequence, counted from `first_key` on.
    #[inline(always)]
    pub(super) fn counted_from(first_key: u32, from: u32, to: u32) -> Self {
        Keys {
            from: from as i32 - first_key as i32,
            to: to as i32 - first_key as i32,
        }
    }
}

/// A lane's two rows; the four lanes that share them hold the same.
#[derive(Clone, Copy)]
pub(super) struct RowSums {
    /// Log2 domain; −∞ before the first key.
    maximum: [f32; 2],
    /// Σ 2^(score − maximum) over the keys so far.
    total: [f32; 2],
}

/// Maximum and sum of each of a lane's two rows over some keys.
pub(super) type Statistics = [[f32; 2]; 2];

impl RowSums {
    /// Over no key.
    pub(super) const EMPTY: Self = RowSums {
        maximum: [f32::NEG_INFINITY; 2],
        total: [0.0; 2],
    };

    /// Adds a tile, and gives its statistics. Only the `keys` of each row count, or all. The whole warp calls it.
    #[inline(always)]
    pub(super) fn add(
        &mut self,
        scores: &mut Scores,
        scale_log2: f32,
        keys: Option<[Keys; 2]>,
    ) -> Statistics {
        if let Some(keys) = keys {
            mask(scores, keys);
        }
        let maximum = warpgroup::maxima(scores).map(|maximum| maximum * scale_log2);
        let sum = sums_of(scores, scale_log2, maximum.map(finite_or_zero));
        for row in 0..2 {
            let new = gpu::max_f32(self.maximum[row], maximum[row]);
            let to_new = |old: f32| gpu::ex2_approx_ftz_f32(old - finite_or_zero(new));
            let kept = self.total[row] * to_new(self.maximum[row]);
            self.total[row] = gpu::fma_rn_f32(sum[row], to_new(maximum[row]), kept);
            self.maximum[row] = new;
        }
        [[maximum[0], sum[0]], [maximum[1], sum[1]]]
    }

    /// The rows' statistics over all keys so far.
    #[inline(always)]
    pub(super) fn so_far(&self) -> Statistics {
        [0, 1].map(|row| [self.maximum[row], self.total[row]])
    }

    /// log2 Σ 2^score over all keys.
    #[inline(always)]
    pub(super) fn log2(&self) -> [f32; 2] {
        [0, 1].map(|row| self.maximum[row] + gpu::lg2_approx_ftz_f32(self.total[row]))
    }
}

/// The row of the lane's two that an element of [`Scores`] belongs to.
const fn row_of(element: usize) -> usize {
    element / 2 % 2
}

/// Σ 2^(score · scale − maximum) of each row, over the four lanes that share it.
#[inline(always)]
fn sums_of(scores: &mut Scores, scale: f32, maximum: [f32; 2]) -> [f32; 2] {
    for (element, score) in scores.iter_mut().enumerate() {
        let below = gpu::fma_rn_f32(*score, scale, -maximum[row_of(element)]);
        *score = gpu::ex2_approx_ftz_f32(below);
    }
    // Two chains of additions a row, even and odd columns: four in all cover the latency of an addition.
    let mut sums = [[0.0; 2]; 2];
    for (element, weight) in scores.iter().enumerate() {
        sums[row_of(element)][element % 2] += weight;
    }
    sums.map(|[even, odd]| {
        let mut sum = even + odd;
        sum += gpu::shfl_sync_bfly(WARP, sum, 1);
        sum + gpu::shfl_sync_bfly(WARP, sum, 2)
    })
}

/// −∞ for the keys that do not count, whatever the score was.
#[inline(always)]
fn mask(scores: &mut Scores, keys: [Keys; 2]) {
    // Columns count from the lane's first: a constant against a register keeps nothing else alive.
    let first_column = (gpu::laneid() % 4 * 2) as i32;
    let keys = keys.map(|keys| Keys {
        from: keys.from - first_column,
        to: keys.to - first_column,
    });
    for (element, score) in scores.iter_mut().enumerate() {
        let column = (element / 4 * 8 + element % 2) as i32;
        let keys = keys[row_of(element)];
        if column >= keys.to || column < keys.from {
            *score = f32::NEG_INFINITY;
        }
    }
}
