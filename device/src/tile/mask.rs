//! Masks inside a tile: each row sees the columns up to a limit.
//!
//! A causal row sees the keys up to its own position; every row sees only as many columns as the
//! tile has keys. Both are one limit for each row.

use super::product::{Accumulator, STRIP_ROWS};
use crate::gpu;

/// The last column that each of a lane's rows sees, counted from the lane's first column:
/// −1 or less for none.
#[derive(Clone, Copy, Debug)]
pub struct RowLimits<const STRIPS: usize> {
    last: [[i32; 2]; STRIPS],
}

impl<const STRIPS: usize> RowLimits<STRIPS> {
    /// Every row sees the columns before `columns`.
    #[inline(always)]
    pub fn columns(columns: u32) -> Self {
        let last = columns as i32 - 1 - (gpu::laneid() % 4 * 2) as i32;
        Self {
            last: [[last; 2]; STRIPS],
        }
    }

    /// The warp's row `r` sees the columns up to `first + r`, and only those before `columns`.
    #[inline(always)]
    pub fn causal(first: i32, columns: u32) -> Self {
        let mut limits = Self::columns(columns);
        let lane = gpu::laneid();
        let diagonal = first + (lane / 4) as i32 - (lane % 4 * 2) as i32;
        for (s, last) in limits.last.iter_mut().enumerate() {
            for (half, last) in last.iter_mut().enumerate() {
                *last = (*last).min(diagonal + (s as u32 * STRIP_ROWS) as i32 + 8 * half as i32);
            }
        }
        limits
    }

    /// Sets the scores of what is not seen to −∞, whatever they were.
    #[inline(always)]
    pub fn apply<const TILES: usize>(&self, scores: &mut Accumulator<STRIPS, TILES>) {
        for (strip, last) in scores.elements.iter_mut().zip(&self.last) {
            for (tile, elements) in strip.iter_mut().enumerate() {
                for (i, score) in elements.iter_mut().enumerate() {
                    // A constant against a register: nothing else stays alive.
                    if (8 * tile + i % 2) as i32 > last[i / 2] {
                        *score = f32::NEG_INFINITY;
                    }
                }
            }
        }
    }
}
