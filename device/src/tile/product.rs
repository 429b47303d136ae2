//! A warp's accumulators, and the two products of attention that fill them.

use super::float16::Float16;
use super::swizzled::LaneRows;
use crate::gpu;

/// Rows of a strip: the m of m16n8k16.
pub const STRIP_ROWS: u32 = 16;

/// The accumulators of `STRIPS` × 16 rows by `TILES` × 8 columns, spread over a warp.
///
/// Element `i` of tile `t` of strip `s` is at the row and column that
/// [`fragment::MmaM16N8K16::c`](crate::gpu::fragment::MmaM16N8K16::c) gives for `i`, moved by 16·s
/// rows and 8·t columns: elements 0 and 1 lie in the strip's upper half, row `lane / 4`, and 2 and 3
/// eight rows below.
#[derive(Clone, Copy)]
pub struct Accumulator<const STRIPS: usize, const TILES: usize> {
    /// By strip, tile and element.
    pub elements: [[[f32; 4]; TILES]; STRIPS],
}

/// Numbers of an [`Accumulator`] rounded to 16 bits: by strip, tile and half, two neighbours a register.
/// Two tiles are the A operand of a product.
#[derive(Clone, Copy)]
pub struct Packed<const STRIPS: usize, const TILES: usize> {
    /// By strip, tile, and upper or lower half.
    pub pairs: [[[u32; 2]; TILES]; STRIPS],
}

impl<const STRIPS: usize, const TILES: usize> Packed<STRIPS, TILES> {
    /// All zero.
    #[inline(always)]
    pub const fn zero() -> Self {
        // SAFETY: an array of integers. (See `Accumulator::zero`.)
        unsafe { core::mem::zeroed() }
    }
}

impl<const STRIPS: usize, const TILES: usize> Accumulator<STRIPS, TILES> {
    /// All zero.
    #[inline(always)]
    pub const fn zero() -> Self {
        // SAFETY: an array of floats, for which zero bits are the number 0. (Written as an array
        // expression, rustc makes a loop that keeps the array in local memory.)
        unsafe { core::mem::zeroed() }
    }

    /// Adds rows · tileᵀ: this warp's rows of `rows` by the tile's rows, over `DEPTH` × 16 columns
    /// of both. `rows` is [`columns_first`](super::SwizzledTile::columns_first), `tile` is
    /// [`rows_first`](super::SwizzledTile::rows_first).
    #[inline(always)]
    pub fn add_rows_by_rows<T: Float16, const CHUNKS: usize>(
        &mut self,
        rows: LaneRows<CHUNKS>,
        tile: LaneRows<CHUNKS>,
    ) {
        for step in 0..CHUNKS / 2 {
            let mut a = [[0; 4]; STRIPS];
            for (strip, a) in a.iter_mut().enumerate() {
                *a = gpu::ldmatrix_x4(rows.block(strip as u32 * STRIP_ROWS, step as u32));
            }
            for pair in 0..TILES / 2 {
                let [left0, left1, right0, right1] =
                    gpu::ldmatrix_x4(tile.block(pair as u32 * 16, step as u32));
                for (c, &a) in self.elements.iter_mut().zip(&a) {
                    c[2 * pair] = T::mma(a, [left0, left1], c[2 * pair]);
                    c[2 * pair + 1] = T::mma(a, [right0, right1], c[2 * pair + 1]);
                }
            }
        }
    }

    /// Adds weights · tile: the weights' columns are the tile's rows. `tile` is
    /// [`columns_first`](super::SwizzledTile::columns_first).
    #[inline(always)]
    pub fn add_weighted_rows<T: Float16, const KEY_TILES: usize, const CHUNKS: usize>(
        &mut self,
        weights: &Packed<STRIPS, KEY_TILES>,
        tile: LaneRows<CHUNKS>,
    ) {
        for step in 0..KEY_TILES / 2 {
            let mut a = [[0; 4]; STRIPS];
            for (a, weights) in a.iter_mut().zip(&weights.pairs) {
                let (left, right) = (weights[2 * step], weights[2 * step + 1]);
                *a = [left[0], left[1], right[0], right[1]];
            }
            for pair in 0..TILES / 2 {
                let [left0, left1, right0, right1] =
                    gpu::ldmatrix_x4_trans(tile.block(step as u32 * 16, pair as u32));
                for (c, &a) in self.elements.iter_mut().zip(&a) {
                    c[2 * pair] = T::mma(a, [left0, left1], c[2 * pair]);
                    c[2 * pair + 1] = T::mma(a, [right0, right1], c[2 * pair + 1]);
                }
            }
        }
    }

    /// Multiplies each row by its factor: by strip, and upper or lower half.
    #[inline(always)]
    pub fn scale_rows(&mut self, factors: &[[f32; 2]; STRIPS]) {
        for (strip, factors) in self.elements.iter_mut().zip(factors) {
            for tile in strip {
                for (i, x) in tile.iter_mut().enumerate() {
                    *x *= factors[i / 2];
                }
            }
        }
    }
}
