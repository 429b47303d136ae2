//! NaN and infinity in V under the causal diagonal, where a weight of 0 would not keep them from the
//! rows that do not see their key.
//!
//! Such elements are taken out of the tile, so that the products are finite, and added by themselves
//! to the rows that do see them. Slow, and never needed for finite inputs.

use super::stage::ThreadChunks;
use super::walk::KeyTile;
use super::{KEY_TILES, STRIPS, TILE_KEYS};
use crate::gpu::{self, Global};
use crate::tile::{Accumulator, Float16, STRIP_ROWS, SwizzledTile, WARP};

/// Sets the NaNs and infinities among this thread's chunks to zero; whether there was one. The
/// thread's copies have landed.
#[inline(always)]
pub(super) fn take_out<T: Float16, const CHUNKS: usize>(
    chunks: ThreadChunks<CHUNKS>,
    tile: SwizzledTile<CHUNKS>,
) -> bool {
    let mut found = false;
    for step in 0..TILE_KEYS / ThreadChunks::<CHUNKS>::STEP {
        let row = chunks.first_row + step * ThreadChunks::<CHUNKS>::STEP;
        let chunk = tile.chunk(row, chunks.chunk).cast::<u32>();
        let bits = gpu::ld_shared_v4(chunk);
        let finite = bits.map(|bits| {
            let low = if is_finite::<T>(bits) {
                bits & 0xffff
            } else {
                0
            };
            let high = if is_finite::<T>(bits >> 16) {
                bits & 0xffff_0000
            } else {
                0
            };
            low | high
        });
        if finite != bits {
            gpu::st_shared_v4(chunk, finite);
            found = true;
        }
    }
    found
}

/// Whether the number in the low half is neither NaN nor infinite.
#[inline(always)]
fn is_finite<T: Float16>(bits: u32) -> bool {
    bits as u16 & T::EXPONENT != T::EXPONENT
}

/// Adds what [`take_out`] took out of the V of the head at `head`, weighted, to the rows that see it:
/// row `r` of the warp sees the tile's keys up to `diagonal + r`.
#[inline(always)]
pub(super) fn add_back<T: Float16, const CHUNKS: usize>(
    output: &mut Accumulator<STRIPS, CHUNKS>,
    weights: &Accumulator<STRIPS, KEY_TILES>,
    diagonal: i32,
    head: Global<u16>,
    stride_token: u64,
    tile: KeyTile,
) {
    let lane = gpu::laneid();
    // The bound is not a constant, so that the loop stays one.
    for key in 0..tile.keys {
        let owner = lane & !3 | key % 8 / 2;
        let mut weight = [[0.0; 2]; STRIPS];
        for (s, weight) in weight.iter_mut().enumerate() {
            for (half, weight) in weight.iter_mut().enumerate() {
                let mut mine = 0.0;
                for (t, elements) in weights.elements[s].iter().enumerate() {
                    for odd in 0..2 {
                        if key & !6 == (8 * t + odd) as u32 {
                            mine = elements[2 * half + odd];
                        }
                    }
                }
                *weight = gpu::shfl_sync_idx(WARP, mine, owner);
            }
        }
        let row = head.add(u64::from(tile.start + key) * stride_token);
        for t in 0..CHUNKS {
            let pair = row.add((8 * t) as u64 + u64::from(lane % 4 * 2));
            let pair: u32 = gpu::ld_global_nc(pair.cast());
            for odd in 0..2 {
                let bits = pair >> (16 * odd);
                if is_finite::<T>(bits) {
                    continue;
                }
                let value = T::to_f32(bits as u16);
                for (s, weight) in weight.iter().enumerate() {
                    for (half, weight) in weight.iter().enumerate() {
                        let row = (s as u32 * STRIP_ROWS + lane / 4) as i32 + 8 * half as i32;
                        if key as i32 <= diagonal + row {
                            output.elements[s][t][2 * half + odd] += weight * value;
                        }
                    }
                }
            }
        }
    }
}
