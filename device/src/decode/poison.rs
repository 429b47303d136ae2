//! NaN and infinity in values of tiles whose keys not all rows see, where a weight of 0 would not keep them from the other rows.
//!
//! Such elements are taken out of the tile, so that the products are finite, and added by themselves to the rows that do see them.
//! Slow, and never needed for finite inputs.

use super::params::TILE_KEYS;
use super::stage::{Source, rows_at_once, thread_chunk};
use crate::gpu;
use crate::tile::{Accumulator, Float16, Packed, SwizzledTile, WARP};

/// Whether the number in the low half is neither NaN nor infinite.
#[inline(always)]
fn is_finite<T: Float16>(bits: u32) -> bool {
    bits as u16 & T::EXPONENT != T::EXPONENT
}

/// Sets the NaNs and infinities among the chunks that this thread copied to zero; whether there was one.
#[inline(always)]
pub(super) fn take_out<T: Float16, const CHUNKS: usize>(tile: SwizzledTile<CHUNKS>) -> bool {
    let (chunk, first_row) = thread_chunk::<CHUNKS>();
    let mut found = false;
    for step in 0..TILE_KEYS / rows_at_once::<CHUNKS>() {
        let at = tile.chunk(first_row + step * rows_at_once::<CHUNKS>(), chunk);
        let bits = gpu::ld_shared_v4(at.cast::<u32>());
        let finite = bits.map(|pair| {
            let low = if is_finite::<T>(pair) { 0xffff } else { 0 };
            let high = if is_finite::<T>(pair >> 16) {
                0xffff_0000
            } else {
                0
            };
            pair & (low | high)
        });
        if finite != bits {
            gpu::st_shared_v4(at.cast::<u32>(), finite);
            found = true;
        }
    }
    found
}

/// Adds what [`take_out`] took out of the warp's keys, from `first` on, weighted, to the lane's two rows if they see it.
#[inline(always)]
pub(super) fn add_back<T: Float16, const CHUNKS: usize, const KEY_TILES: usize>(
    source: Source<'_>,
    first: u32,
    end: u32,
    sees: [u32; 2],
    weights: &Packed<1, KEY_TILES>,
    output: &mut Accumulator<1, CHUNKS>,
) {
    let lane = gpu::laneid();
    for (tile, pairs) in weights.pairs[0].iter().enumerate() {
        // The bound is not a constant, so that the loop stays one.
        let first = first + 8 * tile as u32;
        let keys = end.saturating_sub(first).min(8);
        let mut key = 0;
        while key < keys {
            let owner = (lane & !3) + key / 2;
            let weight = [0, 1].map(|half: usize| {
                let pair = gpu::shfl_sync_idx(WARP, pairs[half], owner);
                T::to_f32((pair >> (16 * (key % 2))) as u16)
            });
            let token = source.value(first + key).add(u64::from(lane % 4 * 2));
            for (t, elements) in output.elements[0].iter_mut().enumerate() {
                let pair: u32 = gpu::ld_global(token.add(8 * t as u64).cast());
                for (i, x) in elements.iter_mut().enumerate() {
                    let bits = pair >> (16 * (i % 2));
                    if first + key < sees[i / 2] && !is_finite::<T>(bits) {
                        *x += weight[i / 2] * T::to_f32(bits as u16);
                    }
                }
            }
            key += 1;
        }
    }
}
