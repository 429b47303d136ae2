//! NaN and infinity in V under the causal diagonal, where a weight of 0 would not keep them from the
//! rows that do not see their key.
//!
//! Such elements are taken out of the tile, so that the products are finite, and added by themselves
//! to the rows that do see them. Slow, and never needed for finite inputs.

use super::super::SparseFlashParams;
use super::super::work::Tokens;
use super::stage::ThreadChunks;
use super::{STRIPS, TILE_KEYS};
use crate::gpu;
use crate::tile::{Accumulator, Float16, LaneRows, OnlineSoftmax, STRIP_ROWS, SwizzledTile, WARP};

/// Sets the NaNs and infinities among this thread's chunks to zero; whether there was one. The
/// thread's copies have landed.
#[inline(always)]
pub(super) fn zero<T: Float16, const CHUNKS: usize>(
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

/// What [`accumulate`] reads again.
pub(super) struct Tile<const CHUNKS: usize> {
    /// The warp's rows of Q.
    pub q_rows: LaneRows<CHUNKS>,
    /// K and V in global memory. K's place in shared memory may be the next tile's already.
    pub k: Tokens,
    pub v: Tokens,
    /// The tile's first key.
    pub start: u32,
    /// This thread's lane.
    pub lane: u32,
    /// Keys of the tile. Row `r` of the warp sees those up to `diagonal + r`.
    pub keys: u32,
    pub diagonal: i32,
}

/// Adds what [`zero`] took out of V, weighted, to the rows that see it.
///
/// The weights are computed again, 16 rows by 16 keys at a time: to keep them all to the end of the
/// product would take registers from every launch, poisoned or not.
#[inline(always)]
pub(super) fn accumulate<T: Float16, const CHUNKS: usize>(
    p: &SparseFlashParams,
    output: &mut Accumulator<STRIPS, CHUNKS>,
    softmax: &OnlineSoftmax<STRIPS>,
    scale_log2: f32,
    tile: &Tile<CHUNKS>,
) {
    let lane = tile.lane;
    for (s, output) in output.elements.iter_mut().enumerate() {
        let q_rows = tile.q_rows.moved(s as u32 * STRIP_ROWS);
        let first_row = tile.diagonal + (s as u32 * STRIP_ROWS + lane / 4) as i32;
        // The bound is not a constant, so that the loop stays one.
        let mut first_key = 0;
        while first_key < tile.keys {
            let mut weights = scores::<T, CHUNKS>(p, q_rows, tile, first_key);
            softmax.weigh_again::<T, 2>(&mut weights, s, scale_log2);
            for key in first_key..tile.keys.min(first_key + 16) {
                let token = tile.v.token(&p.v, tile.start + key);
                // Two neighbouring elements in each of the token's 32 or 64 words.
                let word = |first: u64| -> u32 {
                    gpu::ld_global(token.add(first + u64::from(2 * lane)).cast())
                };
                let near = word(0);
                let far = if CHUNKS > 8 { word(64) } else { 0 };
                let found = !(is_finite::<T>(near)
                    && is_finite::<T>(near >> 16)
                    && is_finite::<T>(far)
                    && is_finite::<T>(far >> 16));
                if !gpu::vote_sync_any(WARP, found) {
                    continue;
                }
                let mut weight = [0.0; 2];
                for (half, weight) in weight.iter_mut().enumerate() {
                    let [left, right] = weights.elements[0];
                    let pair = if key % 16 < 8 { left } else { right };
                    let mine = if key.is_multiple_of(2) {
                        pair[2 * half]
                    } else {
                        pair[2 * half + 1]
                    };
                    *weight = gpu::shfl_sync_idx(WARP, mine, (lane & !3) + key % 8 / 2);
                }
                for (t, elements) in output.iter_mut().enumerate() {
                    let owner = (t % 8 * 4) as u32 + lane % 4;
                    let pair = gpu::shfl_sync_idx(WARP, if t < 8 { near } else { far }, owner);
                    for (i, x) in elements.iter_mut().enumerate() {
                        let bits = pair >> (16 * (i % 2));
                        let sees = key as i32 <= first_row + (i / 2 * 8) as i32;
                        if sees && !is_finite::<T>(bits) {
                            *x += weight[i / 2] * T::to_f32(bits as u16);
                        }
                    }
                }
            }
            first_key += 16;
        }
    }
}

/// The scores of 16 rows of Q and 16 keys, from `first_key` of the tile on; repeats of the last key
/// after it.
#[inline(always)]
fn scores<T: Float16, const CHUNKS: usize>(
    p: &SparseFlashParams,
    q_rows: LaneRows<CHUNKS>,
    tile: &Tile<CHUNKS>,
    first_key: u32,
) -> Accumulator<1, 2> {
    let mut scores = Accumulator::<1, 2>::zero();
    for (t, c) in scores.elements[0].iter_mut().enumerate() {
        let key = first_key + 8 * t as u32 + tile.lane / 4;
        let key = tile.start + key.min(tile.keys - 1);
        let key = tile.k.token(&p.k, key);
        let key = key.add(u64::from(tile.lane % 4 * 2));
        for step in 0..CHUNKS / 2 {
            let a = gpu::ldmatrix_x4(q_rows.block(0, step as u32));
            let b = [0, 8].map(|half| gpu::ld_global(key.add(16 * step as u64 + half).cast()));
            *c = T::mma(a, b, *c);
        }
    }
    scores
}
