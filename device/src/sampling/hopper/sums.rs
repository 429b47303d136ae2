//! Sums of 2^score over a lane's two rows, tile after tile.
//!
//! ```text
//! sum[row] = Σ 2^((score − reference[row]) · scale) over the tile, each exponential in the place of its score
//! total[row] += sum[row]
//! ```
//!
//! Any reference serves that is near the maximum or below it, as long as no sum comes near the end of f32. So a row takes the maximum of the
//! first tiles it sees, and looks for no other: that would be a comparison a score, and shuffles before the first exponential. A tile whose
//! scores rise far above the reference shows in its sum. It is then multiplied and summed up once more, with a new reference: see
//! [`RowSums::weigh`].
//!
//! The exponentials of a tile are independent, and the MUFU needs dozens of them under way. They write over their scores: what kept the
//! scores for a second look left registers for three or four, and took twice as long.
//!
//! Scores and references are raw products; `scale` > 0 turns their differences into exponents of 2. Rows whose references are so large that
//! this takes a subtraction a score ([`exponent`]) take a new reference from every tile, so that their tiles are never multiplied again.

use crate::gpu::{self, Shared};
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

/// Where a lane keeps the references of its two rows, raw scores: in shared memory, for they are wanted once a tile, and scores leave no
/// registers. −∞ before the first key.
#[derive(Clone, Copy)]
pub(super) struct References(pub(super) Shared<f32>);

impl References {
    /// Bytes of a lane's.
    pub(super) const BYTES: u32 = 8;

    #[inline(always)]
    fn get(self) -> [f32; 2] {
        gpu::ld_shared_v2(self.0)
    }

    #[inline(always)]
    fn set(self, references: [f32; 2]) {
        gpu::st_shared_v2(self.0, references);
    }
}

/// A lane's two rows; the four lanes that share them hold the same.
#[derive(Clone, Copy)]
pub(super) struct RowSums {
    /// The rows' references' [`exponent::near_offset`].
    offset: [f32; 2],
    /// Σ 2^((score − reference) · scale) over the keys so far.
    total: [f32; 2],
    /// Whether all of the warp's rows have a reference, and exponents relative to it have the [near](exponent) form.
    settled: bool,
}

/// Reference and sum of each of a lane's two rows over some keys.
pub(super) type Statistics = [[f32; 2]; 2];

/// Sums of a lane's own columns of a tile.
pub(super) type LaneSums = [f32; 2];

impl RowSums {
    /// Over no key.
    #[inline(always)]
    pub(super) fn new(references: References) -> Self {
        references.set([f32::NEG_INFINITY; 2]);
        RowSums {
            offset: [f32::INFINITY; 2],
            total: [0.0; 2],
            settled: false,
        }
    }

    /// Sums from which on a row takes a new reference: far from the end of f32, and so far above 1 that few tiles ever come there.
    const TOO_LARGE: f32 = (1u64 << 60) as f32;

    /// Sums up a tile, of which only the `keys` of each row count, or all. Rows take the tile's maximum for their reference if it is above,
    /// and `raise` or `keys` says so, or rows are not settled. The whole warp calls it.
    #[inline(always)]
    pub(super) fn weigh(
        &mut self,
        scores: &mut Scores,
        scale: f32,
        keys: Option<[Keys; 2]>,
        raise: bool,
        references: References,
    ) -> LaneSums {
        if let Some(keys) = keys {
            mask(scores, keys);
        }
        if raise || keys.is_some() || !self.settled {
            self.raise(warpgroup::maxima(scores), scale, references);
        }
        let mut offset = self.offset;
        if !self.settled {
            let reference = references.get();
            let shift = [0, 1].map(|row| exponent::shift(reference[row], offset[row]));
            offset = offset.map(|offset| exponent::offset(offset, 0.0));
            for (element, score) in scores.iter_mut().enumerate() {
                *score -= shift[row_of(element)];
            }
        }
        sums_of(scores, scale, offset)
    }

    /// Raises the references to these maxima.
    #[inline(always)]
    fn raise(&mut self, maxima: [f32; 2], scale: f32, references: References) {
        let mut reference = references.get();
        let mut far = false;
        for (row, &maximum) in maxima.iter().enumerate() {
            let old = reference[row];
            let new = gpu::max_f32(old, maximum);
            let change = exponent::change(old, new, scale, 0.0);
            self.total[row] *= gpu::ex2_approx_ftz_f32(change);
            reference[row] = new;
            self.offset[row] = exponent::near_offset(new, scale, 0.0);
            far |= exponent::is_far(self.offset[row]);
        }
        references.set(reference);
        self.settled = !gpu::vote_sync_any(WARP, far);
    }

    /// Whether the tile must be summed up again, with raised references. Weights are then about 1 at most.
    #[inline(always)]
    pub(super) fn too_large(sums: LaneSums) -> bool {
        sums[0] >= Self::TOO_LARGE || sums[1] >= Self::TOO_LARGE
    }

    /// Adds a tile's sums, and gives its statistics. The whole warp calls it.
    #[inline(always)]
    pub(super) fn add(&mut self, sums: LaneSums, references: References) -> Statistics {
        let sums = sums.map(|sum| {
            let sum = sum + gpu::shfl_sync_bfly(WARP, sum, 1);
            sum + gpu::shfl_sync_bfly(WARP, sum, 2)
        });
        let reference = references.get();
        [0, 1].map(|row| {
            self.total[row] += sums[row];
            [reference[row], sums[row]]
        })
    }

    /// The rows' statistics over all keys so far.
    #[inline(always)]
    pub(super) fn so_far(&self, references: References) -> Statistics {
        let reference = references.get();
        [0, 1].map(|row| [reference[row], self.total[row]])
    }

    /// The rows' log-sum-exps in two parts: reference, and log2 of the sum over all keys.
    #[inline(always)]
    pub(super) fn row_lse(&self, references: References) -> Statistics {
        let reference = references.get();
        [0, 1].map(|row| [reference[row], gpu::lg2_approx_ftz_f32(self.total[row])])
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
