//! Sums of 2^score over a lane's two rows, tile after tile.
//!
//! Scores are taken relative to a *reference* of the row, and the usual choice, the maximum so far, would cost a comparison
//! a score before the first exponential can start. But any reference does that is at most the row's maximum, so that what
//! underflows is nothing to the row, and not so far below the tile's that sums overflow. So rows keep the maximum over some
//! earlier tile, sum up, and look at the sums: only where they have grown out of proportion, or a tile has keys that some
//! row does not see, a tile is done the long way, with its own maximum. The first tile of a row is one of them by itself:
//! relative to −∞ everything is infinite.

use crate::gpu;
use crate::sampling::finite_or_zero;
use crate::tile::warpgroup::Scores;
use crate::tile::{WARP, exp2_by_fma};

/// What the sum of a lane's scores in a tile may be before the reference follows. A score is then at most 16 above its
/// reference: as far as those below it that still count, so that rounding the difference costs no more there.
const MOST: f32 = 65536.0;

/// Every so manieth exponential outside the diagonal is done by [`exp2_by_fma`], or 0 for none: 12 of 64. The tensor cores
/// and the MUFU need the same 512 cycles for the scores of a warpgroup with a tile, and neither is ever busy all the time;
/// so the MUFU gets less, and half of the instructions that could be issued meanwhile are still none. Odd, so that both
/// rows and both chains of additions get their part.
const FMA_EVERY: usize = 5;

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
    reference: [f32; 2],
    /// Σ 2^(score − reference) over the keys so far.
    total: [f32; 2],
}

impl RowSums {
    /// Over no key.
    pub(super) const EMPTY: Self = RowSums {
        reference: [f32::NEG_INFINITY; 2],
        total: [0.0; 2],
    };

    /// Adds a tile, and gives Σ 2^(score − reference) over it. Where it is `partial`, only `keys` of each row count. The
    /// whole warp calls it.
    #[inline(always)]
    pub(super) fn add(
        &mut self,
        mut scores: Scores,
        scale_log2: f32,
        partial: bool,
        keys: impl Fn() -> [Keys; 2],
    ) -> [f32; 2] {
        let mut sums = [0.0; 2];
        let mut long_way = partial;
        if !partial {
            sums = sums_of::<FMA_EVERY>(&scores, scale_log2, self.reference);
            // NaN is not at most anything.
            let fits = sums[0] + sums[1] <= MOST;
            long_way = gpu::vote_sync_any(WARP, !fits);
        }
        if long_way {
            for score in &mut scores {
                *score *= scale_log2;
            }
            if partial {
                mask(&mut scores, keys());
            }
            let [first, second] = maxima_of(&scores);
            self.raise(0, first);
            self.raise(1, second);
            sums = sums_of::<0>(&scores, 1.0, self.reference.map(finite_or_zero));
        }
        for (sum, total) in sums.iter_mut().zip(&mut self.total) {
            *sum += gpu::shfl_sync_bfly(WARP, *sum, 1);
            *sum += gpu::shfl_sync_bfly(WARP, *sum, 2);
            *total += *sum;
        }
        sums
    }

    /// Moves the reference of a row up to this maximum.
    #[inline(always)]
    fn raise(&mut self, row: usize, maximum: f32) {
        let raised = gpu::max_f32(self.reference[row], maximum);
        let below = self.reference[row] - finite_or_zero(raised);
        self.total[row] *= gpu::ex2_approx_ftz_f32(below);
        self.reference[row] = raised;
    }

    /// The rows' statistics of keys with these sums.
    #[inline(always)]
    pub(super) fn pairs(&self, sums: [f32; 2]) -> [[f32; 2]; 2] {
        [0, 1].map(|row| [self.reference[row], sums[row]])
    }

    /// Σ 2^(score − reference) over all keys.
    #[inline(always)]
    pub(super) fn total(&self) -> [f32; 2] {
        self.total
    }

    /// log2 Σ 2^score over all keys.
    #[inline(always)]
    pub(super) fn log2(&self) -> [f32; 2] {
        [0, 1].map(|row| self.reference[row] + gpu::lg2_approx_ftz_f32(self.total[row]))
    }
}

/// The row of the lane's two that an element of [`Scores`] belongs to.
const fn row_of(element: usize) -> usize {
    element / 2 % 2
}

/// Σ 2^(score · scale − reference) over the lane's scores of each row, every `FMA_EVERY`th of them by [`exp2_by_fma`]; none
/// if that is 0.
#[inline(always)]
fn sums_of<const FMA_EVERY: usize>(scores: &Scores, scale: f32, reference: [f32; 2]) -> [f32; 2] {
    // Two chains of additions a row, even and odd columns: four in all cover the latency of an addition.
    let mut sums = [[0.0; 2]; 2];
    for (element, &score) in scores.iter().enumerate() {
        let row = row_of(element);
        let below = gpu::fma_rn_f32(score, scale, -reference[row]);
        let by_fma = FMA_EVERY > 0 && element % FMA_EVERY == FMA_EVERY - 1;
        sums[row][element % 2] += if by_fma {
            exp2_by_fma(below)
        } else {
            gpu::ex2_approx_ftz_f32(below)
        };
    }
    sums.map(|[even, odd]| even + odd)
}

/// The maximum of each row, over the four lanes that share it; NaN is no maximum.
#[inline(always)]
fn maxima_of(scores: &Scores) -> [f32; 2] {
    let mut maxima = [[f32::NEG_INFINITY; 2]; 2];
    for (element, &score) in scores.iter().enumerate() {
        let maximum = &mut maxima[row_of(element)][element % 2];
        *maximum = gpu::max_f32(*maximum, score);
    }
    maxima.map(|[even, odd]| {
        let mut maximum = gpu::max_f32(even, odd);
        maximum = gpu::max_f32(maximum, gpu::shfl_sync_bfly(WARP, maximum, 1));
        gpu::max_f32(maximum, gpu::shfl_sync_bfly(WARP, maximum, 2))
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
