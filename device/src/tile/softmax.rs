//! The online softmax: tile by tile, with a running maximum and sum for every row.
//!
//! Scores are raw products; `scale_log2` = softmax_scale · log2(e) > 0 turns them into exponents of
//! 2. Maxima are kept in raw units, which spares a multiplication per score.

use super::WARP;
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
    /// weights must be multiplied. Sums take the weights before they are rounded.
    #[inline(always)]
    pub fn weigh<T: Float16, const TILES: usize>(
        &mut self,
        scores: &Accumulator<STRIPS, TILES>,
        scale_log2: f32,
    ) -> (Packed<STRIPS, TILES>, [[f32; 2]; STRIPS]) {
        let mut weights = Packed::zero();
        let mut rescale = [[1.0; 2]; STRIPS];
        for (s, scores) in scores.elements.iter().enumerate() {
            for (half, rescale) in rescale[s].iter_mut().enumerate() {
                let old = self.maximum[s][half];
                let mut maximum = old;
                for tile in scores.iter() {
                    maximum = gpu::max_f32(maximum, tile[2 * half]);
                    maximum = gpu::max_f32(maximum, tile[2 * half + 1]);
                }
                maximum = gpu::max_f32(maximum, gpu::shfl_sync_bfly(WARP, maximum, 1));
                maximum = gpu::max_f32(maximum, gpu::shfl_sync_bfly(WARP, maximum, 2));
                self.maximum[s][half] = maximum;
                let offset = offset(maximum, scale_log2);
                // Exactly 1 where nothing changes: offsets are rounded, and 2^(old − offset) a thousand times over would drift.
                if maximum != old {
                    *rescale = gpu::ex2_approx_ftz_f32(gpu::fma_rn_f32(old, scale_log2, offset));
                }
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
    pub fn weigh_again<const TILES: usize>(
        &self,
        scores: &mut Accumulator<1, TILES>,
        strip: usize,
        scale_log2: f32,
    ) {
        for tile in &mut scores.elements[0] {
            for (i, weight) in tile.iter_mut().enumerate() {
                let offset = offset(self.maximum[strip][i / 2], scale_log2);
                *weight = gpu::ex2_approx_ftz_f32(gpu::fma_rn_f32(*weight, scale_log2, offset));
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

    /// Ends the softmax: by row, the factor that makes weighted sums averages (0 for a row that saw
    /// nothing), and the natural logarithm of the sum of exponentials (−∞ for such a row).
    #[inline(always)]
    pub fn finish(&self, scale_log2: f32) -> [[(f32, f32); 2]; STRIPS] {
        let mut rows = [[(0.0, f32::NEG_INFINITY); 2]; STRIPS];
        for (s, rows) in rows.iter_mut().enumerate() {
            for (half, row) in rows.iter_mut().enumerate() {
                let mut sum = self.sum[s][half];
                sum += gpu::shfl_sync_bfly(WARP, sum, 1);
                sum += gpu::shfl_sync_bfly(WARP, sum, 2);
                // A NaN is a sum too.
                if sum != 0.0 {
                    let log2 = gpu::lg2_approx_ftz_f32(sum);
                    let lse_log2 = gpu::fma_rn_f32(self.maximum[s][half], scale_log2, log2);
                    let lse = lse_log2 * core::f32::consts::LN_2;
                    *row = (gpu::rcp_approx_ftz_f32(sum), lse);
                }
            }
        }
        rows
    }
}

/// What is added to a row's scaled scores, so that the greatest becomes 0. Rows that have seen nothing
/// have weights 2^(−∞ − 0) = 0, not 2^(−∞ + ∞).
#[inline(always)]
fn offset(maximum: f32, scale_log2: f32) -> f32 {
    if maximum == f32::NEG_INFINITY {
        0.0
    } else {
        -maximum * scale_log2
    }
}
