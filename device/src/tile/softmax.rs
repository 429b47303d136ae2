//! The online softmax: tile by tile, with a running maximum and sum for every row.
//!
//! Scores are raw products; `scale_log2` = softmax_scale · log2(e) > 0 turns them into exponents of
//! 2. Maxima are kept in raw units, which spares a multiplication per score.

use super::WARP;
use super::exponent;
use super::float16::Float16;
use super::product::{Accumulator, Packed};
use crate::gpu;

/// The running statistics of a warp's rows: by strip, and upper or lower half of the strip.
#[derive(Clone, Copy, Debug)]
pub struct OnlineSoftmax<const STRIPS: usize> {
    /// The greatest score so far; −∞ where no key was seen. The same in a row's four lanes.
    maximum: [[f32; 2]; STRIPS],
    /// This lane's share of the sum of the weights.
    sum: [[f32; 2]; STRIPS],
}

impl<const STRIPS: usize> OnlineSoftmax<STRIPS> {
    /// No key seen.
    pub const EMPTY: Self = Self {
        maximum: [[f32::NEG_INFINITY; 2]; STRIPS],
        sum: [[0.0; 2]; STRIPS],
    };

    /// The weights of a tile of scores, −∞ where masked, relative to the new maxima, and by what earlier
    /// weights must be multiplied. Sums take the weights before they are rounded. The scores are left shifted.
    #[inline(always)]
    pub fn weigh<T: Float16, const TILES: usize>(
        &mut self,
        scores: &mut Accumulator<STRIPS, TILES>,
        scale_log2: f32,
    ) -> (Packed<STRIPS, TILES>, [[f32; 2]; STRIPS]) {
        let top = T::TOP_WEIGHT_LOG2;
        let mut offset = [[0.0; 2]; STRIPS];
        let mut change = [[0.0; 2]; STRIPS];
        let old = self.maximum;
        let mut far = false;
        for (s, scores) in scores.elements.iter().enumerate() {
            for half in 0..2 {
                let mut maximum = old[s][half];
                for tile in scores.iter() {
                    maximum = gpu::max_f32(maximum, tile[2 * half]);
                    maximum = gpu::max_f32(maximum, tile[2 * half + 1]);
                }
                maximum = gpu::max_f32(maximum, gpu::shfl_sync_bfly(WARP, maximum, 1));
                maximum = gpu::max_f32(maximum, gpu::shfl_sync_bfly(WARP, maximum, 2));
                self.maximum[s][half] = maximum;
                offset[s][half] = exponent::near_offset(maximum, scale_log2, top);
                far |= exponent::is_far(offset[s][half]);
            }
        }
        // What changes is worked out behind the vote: the old maxima are all that is kept until then. It depends on the row alone: exactly
        // 0 where nothing changes, −∞ where nothing was seen before.
        let near_change = |s: usize, half: usize, near_offset: f32| {
            near_offset - exponent::near_offset(old[s][half], scale_log2, top)
        };
        if gpu::vote_sync_any(WARP, far) {
            for (s, scores) in scores.elements.iter_mut().enumerate() {
                for half in 0..2 {
                    let maximum = self.maximum[s][half];
                    let near_offset = offset[s][half];
                    let shift = exponent::shift(maximum, near_offset);
                    offset[s][half] = exponent::offset(near_offset, top);
                    change[s][half] = if exponent::is_far(near_offset) {
                        exponent::change(old[s][half], maximum, scale_log2, top)
                    } else {
                        near_change(s, half, near_offset)
                    };
                    for tile in scores.iter_mut() {
                        tile[2 * half] -= shift;
                        tile[2 * half + 1] -= shift;
                    }
                }
            }
        } else {
            for s in 0..STRIPS {
                for half in 0..2 {
                    change[s][half] = near_change(s, half, offset[s][half]);
                }
            }
        }
        let mut weights = Packed::zero();
        let mut rescale = [[1.0; 2]; STRIPS];
        for (s, scores) in scores.elements.iter().enumerate() {
            for (half, rescale) in rescale[s].iter_mut().enumerate() {
                *rescale = gpu::ex2_approx_ftz_f32(change[s][half]);
                let offset = offset[s][half];
                // Of the tile alone: thousands of small weights, added one by one to a large sum, would lose bits.
                let mut sum = 0.0;
                for (t, tile) in scores.iter().enumerate() {
                    let weight =
                        |score| gpu::ex2_approx_ftz_f32(gpu::fma_rn_f32(score, scale_log2, offset));
                    let (even, odd) = (weight(tile[2 * half]), weight(tile[2 * half + 1]));
                    sum += even;
                    sum += odd;
                    weights.pairs[s][t][half] = T::pack(even, odd);
                }
                self.sum[s][half] = gpu::fma_rn_f32(self.sum[s][half], *rescale, sum);
            }
        }
        (weights, rescale)
    }

    /// Turns scores of strip `strip` that [`weigh`](Self::weigh) has seen into the weights that it made
    /// of them, if they were in its last tile.
    #[inline(always)]
    pub fn weigh_again<T: Float16, const TILES: usize>(
        &self,
        scores: &mut Accumulator<1, TILES>,
        strip: usize,
        scale_log2: f32,
    ) {
        for tile in &mut scores.elements[0] {
            for (i, weight) in tile.iter_mut().enumerate() {
                let maximum = self.maximum[strip][i / 2];
                let exponent = exponent::exponent(*weight, maximum, scale_log2, T::TOP_WEIGHT_LOG2);
                *weight = gpu::ex2_approx_ftz_f32(exponent);
            }
        }
    }

    /// By row: the greatest score, −∞ where no key was seen, and the sum of the weights relative to it, both in all four lanes.
    #[inline(always)]
    pub fn statistics(&self) -> [[(f32, f32); 2]; STRIPS] {
        let mut rows = [[(0.0, 0.0); 2]; STRIPS];
        for (s, rows) in rows.iter_mut().enumerate() {
            for (half, row) in rows.iter_mut().enumerate() {
                let mut sum = self.sum[s][half];
                sum += gpu::shfl_sync_bfly(WARP, sum, 1);
                sum += gpu::shfl_sync_bfly(WARP, sum, 2);
                *row = (self.maximum[s][half], sum);
            }
        }
        rows
    }

    /// Ends the softmax: by row, the factor that makes weighted sums averages, and the natural logarithm of the sum of
    /// exponentials. See `finish_row`.
    #[inline(always)]
    pub fn finish<T: Float16>(
        &self,
        scale_log2: f32,
        sees_keys: bool,
    ) -> [[(f32, f32); 2]; STRIPS] {
        let mut rows = [[(0.0, 0.0); 2]; STRIPS];
        for (s, rows) in rows.iter_mut().enumerate() {
            for (half, row) in rows.iter_mut().enumerate() {
                let (reference, sum) = (self.maximum[s][half], self.sum[s][half]);
                *row = finish_row::<T>(reference, sum, scale_log2, sees_keys);
            }
        }
        rows
    }
}

/// The factor that makes a row's weighted sums averages, and its log-sum-exp, from its reference and a lane's share of its sum. The
/// sum is 0 where every score is −∞: the factor is then 0 for a row that sees no key, and NaN, as 0/0 is, for one that does.
#[inline(always)]
pub(super) fn finish_row<T: Float16>(
    reference: f32,
    lane_sum: f32,
    scale_log2: f32,
    sees_keys: bool,
) -> (f32, f32) {
    let mut sum = lane_sum;
    sum += gpu::shfl_sync_bfly(WARP, sum, 1);
    sum += gpu::shfl_sync_bfly(WARP, sum, 2);
    finish_sum::<T>(reference, sum, scale_log2, sees_keys)
}

/// `finish_row` of the whole sum.
#[inline(always)]
pub fn finish_sum<T: Float16>(
    reference: f32,
    sum: f32,
    scale_log2: f32,
    sees_keys: bool,
) -> (f32, f32) {
    // A NaN is a sum too.
    if sum == 0.0 {
        let factor = if sees_keys { f32::NAN } else { 0.0 };
        return (factor, f32::NEG_INFINITY);
    }
    let top = T::TOP_WEIGHT_LOG2;
    let log2 = gpu::lg2_approx_ftz_f32(sum);
    let near_offset = exponent::near_offset(reference, scale_log2, top);
    let lse = if exponent::is_far(near_offset) {
        // Not in the log2 domain, whose numbers are larger by half: they could be out of range.
        let scale = scale_log2 * core::f32::consts::LN_2;
        gpu::fma_rn_f32(reference, scale, (log2 - top) * core::f32::consts::LN_2)
    } else {
        (log2 - near_offset) * core::f32::consts::LN_2
    };
    (gpu::rcp_approx_ftz_f32(sum), lse)
}
