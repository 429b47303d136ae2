//! The online softmax of a warpgroup's rows, which rescales what came before only when it has to.
//!
//! Weights are 2^(score · scale − reference), and any reference that is near the row's maximum gives the same quotients. A new
//! maximum becomes the reference when it exceeds the old one by more than a threshold, in the log2 domain: with a threshold of 0 always
//! (the textbook's online softmax), with 8 hardly ever after a row's first tiles. Weights then reach 2^8, which 16-bit formats
//! hold as precisely as 1.
//!
//! Scores are raw products; `scale_log2` = softmax_scale · log2(e) > 0 turns them into exponents of 2. References are kept in raw
//! units, which spares a multiplication per score.

use super::WARP;
use super::exponent;
use super::float16::Float16;
use super::softmax::finish_row;
use super::warpgroup::Scores;
use crate::gpu;

/// The running statistics of a thread's two rows.
#[derive(Clone, Copy, Debug)]
pub struct LazySoftmax {
    /// −∞ where no key was seen. The same in a row's four lanes.
    reference: [f32; 2],
    /// This lane's share of the sum of the weights.
    sum: [f32; 2],
    /// What is added to scaled scores, in the form of [`exponent`] that the reference has. It changes with the reference alone.
    offset: [f32; 2],
    /// Whether a reference of the warp has the far form.
    has_far_row: bool,
}

/// What multiplies earlier weighted sums, for each of a thread's two rows.
pub type Rescale = [f32; 2];

impl LazySoftmax {
    /// No key seen.
    pub const EMPTY: Self = Self {
        reference: [f32::NEG_INFINITY; 2],
        sum: [0.0; 2],
        offset: [0.0; 2],
        has_far_row: true,
    };

    /// The maxima of the rows' scores, −∞ where masked, and references.
    #[inline(always)]
    pub fn maxima(&self, scores: &Scores) -> [f32; 2] {
        [self.maximum(scores, 0), self.maximum(scores, 1)]
    }

    /// Whether a tile's [`maxima`](Self::maxima) ask for other references: the same in all lanes of the warp.
    #[inline(always)]
    pub fn must_raise(&self, maxima: [f32; 2], scale_log2: f32, threshold_log2: f32) -> bool {
        let mut grows = false;
        for (row, maximum) in maxima.iter().enumerate() {
            // Nothing seen before and nothing now: NaN, which is not greater.
            grows |= (maximum - self.reference[row]) * scale_log2 > threshold_log2;
        }
        gpu::vote_sync_any(WARP, grows)
    }

    /// Whether a reference of the warp has the far form: scores are then shifted before they are weighed. Only [`raise`](Self::raise)
    /// changes it.
    #[inline(always)]
    pub const fn has_far_row(&self) -> bool {
        self.has_far_row
    }

    /// Subtracts the references of the far form.
    #[inline(always)]
    pub fn shift_far_rows<T: Float16>(&self, scores: &mut Scores, scale_log2: f32) {
        for (row, &reference) in self.reference.iter().enumerate() {
            let near_offset = exponent::near_offset(reference, scale_log2, T::TOP_WEIGHT_LOG2);
            let shift = exponent::shift(reference, near_offset);
            for i in 0..32 {
                scores[i / 2 * 4 + 2 * row + i % 2] -= shift;
            }
        }
    }

    /// Turns scores into weights. The references have been raised, and far rows shifted.
    #[inline(always)]
    pub fn weigh(&mut self, scores: &mut Scores, scale_log2: f32) {
        let offset = self.offset;
        // Two sums a row: half as long a chain of additions. Of the tile alone: thousands of small weights, added one by one to a large
        // sum, would lose bits.
        let mut sums = [[0.0; 2]; 2];
        for (i, score) in scores.iter_mut().enumerate() {
            let row = i >> 1 & 1;
            let exponent = gpu::fma_rn_f32(*score, scale_log2, offset[row]);
            *score = gpu::ex2_approx_ftz_f32(exponent);
            sums[row][i & 1] += *score;
        }
        for (sum, [even, odd]) in self.sum.iter_mut().zip(&sums) {
            *sum += even + odd;
        }
    }

    /// Takes a tile's [`maxima`](Self::maxima) for the references; what multiplies earlier weighted sums. The whole warp calls it.
    #[inline(always)]
    pub fn raise<T: Float16>(&mut self, maximum: [f32; 2], scale_log2: f32) -> Rescale {
        let top = T::TOP_WEIGHT_LOG2;
        let mut factors = [1.0; 2];
        let mut far = false;
        for row in 0..2 {
            let change = exponent::change(self.reference[row], maximum[row], scale_log2, top);
            factors[row] = gpu::ex2_approx_ftz_f32(change);
            self.reference[row] = maximum[row];
            self.sum[row] *= factors[row];
            let near_offset = exponent::near_offset(maximum[row], scale_log2, top);
            far |= exponent::is_far(near_offset);
        }
        self.has_far_row = gpu::vote_sync_any(WARP, far);
        factors
    }

    /// Ends what [`raise`](Self::raise) began: scores are weighed relative to the new references from here on.
    #[inline(always)]
    pub fn use_raised<T: Float16>(&mut self, scale_log2: f32) {
        let top = T::TOP_WEIGHT_LOG2;
        for row in 0..2 {
            let near_offset = exponent::near_offset(self.reference[row], scale_log2, top);
            self.offset[row] = exponent::offset(near_offset, top);
        }
    }

    /// The maximum of a row and its reference, in its four lanes. A NaN is no maximum.
    #[inline(always)]
    fn maximum(&self, scores: &Scores, row: usize) -> f32 {
        let mut maxima = [self.reference[row], scores[2 * row + 1]];
        for tile in 0..16 {
            for (i, maximum) in maxima.iter_mut().enumerate() {
                *maximum = gpu::max_f32(*maximum, scores[4 * tile + 2 * row + i]);
            }
        }
        let mut maximum = gpu::max_f32(maxima[0], maxima[1]);
        maximum = gpu::max_f32(maximum, gpu::shfl_sync_bfly(WARP, maximum, 1));
        gpu::max_f32(maximum, gpu::shfl_sync_bfly(WARP, maximum, 2))
    }

    /// The weight that `weigh` would give a score of row `row`, relative to the last reference.
    #[inline(always)]
    pub fn weight<T: Float16>(&self, row: usize, score: f32, scale_log2: f32) -> f32 {
        let reference = self.reference[row];
        let exponent = exponent::exponent(score, reference, scale_log2, T::TOP_WEIGHT_LOG2);
        gpu::ex2_approx_ftz_f32(exponent)
    }

    /// Ends the softmax: by row, the factor that makes weighted sums averages, and the natural logarithm of the sum of exponentials. See
    /// `finish_row`.
    #[inline(always)]
    pub fn finish<T: Float16>(&self, scale_log2: f32, sees_keys: bool) -> [(f32, f32); 2] {
        [0, 1].map(|row| finish_row::<T>(self.reference[row], self.sum[row], scale_log2, sees_keys))
    }
}
