//! Sums of 2^score over a lane's two rows, tile after tile.
//!
//! ```text
//! sum[row] = Σ 2^((score − reference[row]) · scale) over the tile, each exponential in the place of its score
//! total[row] += sum[row]
//! ```
//!
//! Any reference serves that is near the maximum or below it, as long as no sum comes near the end of f32. So a row takes the maximum of the
//! first tile it sees, and looks for no other: that would be a comparison a score, and shuffles before the first exponential. A tile whose
//! scores rise far above the reference shows in its sum. It is then multiplied and summed up once more, with a new reference for that row:
//! see [`RowSums::weigh`]. The other rows keep theirs, so that each row's sums depend on nothing but its own scores.
//!
//! The exponentials of a tile are independent, and the MUFU needs dozens of them under way. They write over their scores: what kept the
//! scores for a second look left registers for three or four, and took twice as long.
//!
//! Scores and references are raw products; `scale` > 0 turns their differences into exponents of 2. Rows whose references are so large that
//! this takes a subtraction a score ([`exponent`]) take a new reference from every tile, so that their tiles are never multiplied again.

use crate::gpu;
use crate::sampling::RowMass;
use crate::tile::warpgroup::{self, Scores};
use crate::tile::{WARP, exponent};

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
    /// A raw score; −∞ before the first key.
    reference: [f32; 2],
    /// Σ 2^((score − reference) · scale) over the keys so far.
    total: [f32; 2],
    /// Whether all of the warp's rows have a reference, and exponents relative to it have the [near](exponent) form.
    settled: bool,
}

/// Sums of a lane's own columns of a tile.
pub(super) type LaneSums = [f32; 2];

/// Sums from which on a row takes a new reference: far from the end of f32, and so far above 1 that few tiles ever come there.
const TOO_LARGE: f32 = (1u64 << 60) as f32;

/// Whether a row must be summed up again, with a new reference. After that, weights are about 1 at most.
#[inline(always)]
pub(super) fn too_large(sums: LaneSums) -> bool {
    sums[0] >= TOO_LARGE || sums[1] >= TOO_LARGE
}

/// A bit for each of the lane's rows whose sum is too large in any of the four lanes that share it. The whole warp calls it.
#[inline(always)]
pub(super) fn too_large_rows(sums: LaneSums) -> u32 {
    let mut bits = u32::from(sums[0] >= TOO_LARGE) | u32::from(sums[1] >= TOO_LARGE) << 1;
    bits |= gpu::shfl_sync_bfly(WARP, bits, 1);
    bits | gpu::shfl_sync_bfly(WARP, bits, 2)
}

impl RowSums {
    /// Over no key.
    pub(super) const EMPTY: Self = RowSums {
        reference: [f32::NEG_INFINITY; 2],
        total: [0.0; 2],
        settled: false,
    };

    /// Sums up a tile, of which only the `keys` of each row count, or all. Rows that have no reference, those with
    /// exponents of the far form and, `again`, those that `raised` names take the tile's maximum for it if it is above. The whole warp calls it.
    #[inline(always)]
    pub(super) fn weigh(
        &mut self,
        scores: &mut Scores,
        scale: f32,
        keys: Option<[Keys; 2]>,
        again: bool,
        raised: impl FnOnce() -> [bool; 2],
    ) -> LaneSums {
        if let Some(keys) = keys {
            mask(scores, keys);
        }
        if again || !self.settled {
            let rows = if again { raised() } else { [false; 2] };
            self.raise(warpgroup::maxima(scores), scale, rows);
        }
        let mut offset = self
            .reference
            .map(|reference| exponent::near_offset(reference, scale, 0.0));
        if !self.settled {
            let shift = [0, 1].map(|row| exponent::shift(self.reference[row], offset[row]));
            offset = offset.map(|offset| exponent::offset(offset, 0.0));
            for (element, score) in scores.iter_mut().enumerate() {
                *score -= shift[row_of(element)];
            }
        }
        sums_of(scores, scale, offset)
    }

    /// Raises the references of the rows that are named, have none or are far, to these maxima.
    #[inline(always)]
    fn raise(&mut self, maxima: [f32; 2], scale: f32, rows: [bool; 2]) {
        let mut far = false;
        for (row, &maximum) in maxima.iter().enumerate() {
            let old = self.reference[row];
            // A row without a reference is far.
            let takes = rows[row] || exponent::is_far(exponent::near_offset(old, scale, 0.0));
            let new = if takes {
                gpu::max_f32(old, maximum)
            } else {
                old
            };
            let change = exponent::change(old, new, scale, 0.0);
            self.total[row] *= gpu::ex2_approx_ftz_f32(change);
            self.reference[row] = new;
            far |= exponent::is_far(exponent::near_offset(new, scale, 0.0));
        }
        self.settled = !gpu::vote_sync_any(WARP, far);
    }

    /// Adds a tile's sums, and gives its mass. The whole warp calls it.
    #[inline(always)]
    pub(super) fn add(&mut self, sums: LaneSums) -> [RowMass; 2] {
        let sums = sums.map(|sum| {
            let sum = sum + gpu::shfl_sync_bfly(WARP, sum, 1);
            sum + gpu::shfl_sync_bfly(WARP, sum, 2)
        });
        [0, 1].map(|row| {
            self.total[row] += sums[row];
            RowMass {
                reference: self.reference[row],
                sum: sums[row],
            }
        })
    }

    /// The rows' masses over all keys so far.
    #[inline(always)]
    pub(super) fn so_far(&self) -> [RowMass; 2] {
        [0, 1].map(|row| RowMass {
            reference: self.reference[row],
            sum: self.total[row],
        })
    }
}

/// The row of the lane's two that an element of [`Scores`] belongs to.
const fn row_of(element: usize) -> usize {
    element / 2 % 2
}

/// Σ 2^(score · scale + offset) of each row, over this lane's columns.
#[inline(always)]
fn sums_of(scores: &mut Scores, scale: f32, offset: [f32; 2]) -> LaneSums {
    for (element, score) in scores.iter_mut().enumerate() {
        let exponent = gpu::fma_rn_f32(*score, scale, offset[row_of(element)]);
        *score = gpu::ex2_approx_ftz_f32(exponent);
    }
    // Two chains of additions a row, even and odd columns: four in all cover the latency of an addition.
    let mut sums = [[0.0; 2]; 2];
    for (element, weight) in scores.iter().enumerate() {
        sums[row_of(element)][element % 2] += weight;
    }
    sums.map(|[even, odd]| even + odd)
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
