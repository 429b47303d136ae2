//! Scores of 64 rows in registers with a tile of 128 keys in shared memory.

use crate::gpu::{self, Global, KMajor, MatrixDescriptor};
use crate::tile::{Bf16, F16};

use super::TILE;

/// A warpgroup's dot products of 64 rows and 128 keys. Elements 4·i and 4·i + 1 are the lane's first row with keys
/// 8·i + 2·(lane mod 4) and the next; elements 4·i + 2 and 4·i + 3 its second row, 8 below, with the same keys.
pub(super) type Scores = [f32; 64];

/// A warpgroup's 64 rows as A operands: by step of 16 columns.
pub(super) type Rows<const K_STEPS: usize> = [[u32; 4]; K_STEPS];

/// A 16-bit format, with rows of `K_STEPS` · 16 elements.
pub(super) trait Multiply<const K_STEPS: usize> {
    /// Begins the product; a wait ends it.
    fn scores(rows: &Rows<K_STEPS>, tile: MatrixDescriptor) -> Scores;
}

macro_rules! multiply {
    ($($format:ty, $k_steps:literal: $product:ident;)*) => {$(
        impl Multiply<$k_steps> for $format {
            #[inline(always)]
            #[track_caller]
            fn scores(rows: &Rows<$k_steps>, tile: MatrixDescriptor) -> Scores {
                gpu::$product::<KMajor<TILE>>(rows, tile)
            }
        }
    )*};
}

multiply! {
    Bf16, 4: wgmma_m64n128k16x4_f32_bf16_rs_zero;
    Bf16, 8: wgmma_m64n128k16x8_f32_bf16_rs_zero;
    F16, 4: wgmma_m64n128k16x4_f32_f16_rs_zero;
    F16, 8: wgmma_m64n128k16x8_f32_f16_rs_zero;
}

/// The lane's two rows, from where they begin in memory. Each element is read once, by one lane; no lane needs another's.
#[inline(always)]
pub(super) fn fragments<const K_STEPS: usize>(rows: [Global<u16>; 2]) -> Rows<K_STEPS> {
    let first_column = u64::from(gpu::laneid() % 4 * 2);
    let [upper, lower] = rows.map(|row| row.add(first_column));
    // SAFETY: an array of integers. (As an array expression it would be a loop that keeps it in local memory.)
    let mut fragments: Rows<K_STEPS> = unsafe { core::mem::zeroed() };
    for (step, registers) in fragments.iter_mut().enumerate() {
        let pair = |row: Global<u16>, column: usize| {
            gpu::ld_global_nc(row.add((16 * step + column) as u64).cast::<u32>())
        };
        *registers = [
            pair(upper, 0),
            pair(lower, 0),
            pair(upper, 8),
            pair(lower, 8),
        ];
    }
    fragments
}
