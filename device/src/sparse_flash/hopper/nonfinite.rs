//! NaN and infinity in V under the causal diagonal, where a weight of 0 would not keep them from the rows that do not see their key.
//!
//! Such elements are taken out of the diagonal block's tile, so that the products are finite, and added by themselves at the end to the rows
//! that do see them. Slow, and never needed for finite inputs.

use super::super::work::WorkTile;
use super::lane_rows::LaneRows;
use super::{CONSUMERS, HopperParams};
use crate::gpu::{self, Global, Shared};
use crate::params::BLOCK;
use crate::tile::warpgroup::{HeadDim, Products, WARPGROUP};
use crate::tile::{Float16, LazySoftmax, WARP, not_finite, spread};

/// Barriers: one for each consumer warpgroup, and one for both.
const WARPGROUP_BARRIER: u32 = 2;
const CONSUMERS_BARRIER: u32 = WARPGROUP_BARRIER + CONSUMERS;

/// Sets NaNs and infinities of a tile of V to zero; whether there was one. All consumers call it, and get the same answer: each
/// warpgroup looks through the whole tile, so that they meet only where there is one.
#[inline(always)]
pub(super) fn zero<T: Float16, D: HeadDim>(lane_rows: LaneRows, tile: Shared<u8>) -> bool {
    let thread = gpu::tid_x() % WARPGROUP;
    let mut found = 0;
    for step in 0..D::TILE_BYTES / (16 * WARPGROUP) {
        let words = gpu::ld_shared_v4(
            tile.byte_add((step * WARPGROUP + thread) * 16)
                .cast::<u32>(),
        );
        for &pair in &words {
            found |= not_finite::<T>(pair);
        }
    }
    let found = gpu::bar_red_or_count(
        WARPGROUP_BARRIER + lane_rows.warpgroup,
        WARPGROUP,
        found != 0,
    );
    if found {
        // Both have looked.
        gpu::bar_sync_count(CONSUMERS_BARRIER, CONSUMERS * WARPGROUP);
        let mut at = (lane_rows.warpgroup * WARPGROUP + thread) * 16;
        while at < D::TILE_BYTES {
            let words = gpu::ld_shared_v4(tile.byte_add(at).cast::<u32>());
            let finite = words.map(|pair| pair & !spread(not_finite::<T>(pair)));
            gpu::st_shared_v4(tile.byte_add(at).cast::<u32>(), finite);
            at += CONSUMERS * WARPGROUP * 16;
        }
        gpu::fence_proxy_async_shared_cta();
        gpu::bar_sync_count(CONSUMERS_BARRIER, CONSUMERS * WARPGROUP);
    }
    found
}

/// Adds what [`zero`] took out of V, weighted, to the thread's rows that see it. Whole warps call it.
///
/// The weights are computed again, a key at a time, from the keys in global memory: a row's four lanes have a quarter of its query each.
#[inline(always)]
pub(super) fn accumulate<T: Float16, D: Products<T>>(
    p: &HopperParams,
    lane_rows: LaneRows,
    work: WorkTile,
    queries: &D::Queries,
    softmax: &LazySoftmax,
    scale_log2: f32,
    output: &mut D::Output,
) {
    let p = &p.attention;
    let [k, v] = [&p.k, &p.v].map(|tensor| work.tokens(tensor));
    let first_key = work.query_block * BLOCK;
    let keys = (work.keys.len - first_key).min(BLOCK);
    let first_column = u64::from(lane_rows.lane % 4 * 2);
    let mut key = 0;
    while key < keys {
        let values = v.token(&p.v, first_key + key);
        let mut found = 0;
        for column in 0..D::DIM / 64 {
            let pair = values
                .add(u64::from(column * 64 + lane_rows.lane * 2))
                .cast();
            found |= not_finite::<T>(gpu::ld_global(pair));
        }
        if gpu::vote_sync_any(WARP, found != 0) {
            let of_key = k.token(&p.k, first_key + key);
            let scores = scores::<T, D>(queries, of_key.add(first_column));
            let mut weights = [0.0; 2];
            for (row, weight) in weights.iter_mut().enumerate() {
                *weight = softmax.weight::<T>(row, scores[row], scale_log2);
            }
            for (tile, x) in output.as_mut().chunks_exact_mut(4).enumerate() {
                let pair: u32 = gpu::ld_global(values.add(first_column + 8 * tile as u64).cast());
                let bad = not_finite::<T>(pair);
                for (i, x) in x.iter_mut().enumerate() {
                    let shift = 16 * (i as u32 % 2);
                    let sees = key <= lane_rows.row() + 8 * (i as u32 / 2);
                    if sees && bad >> shift & 0x8000 != 0 {
                        *x += weights[i / 2] * T::to_f32((pair >> shift) as u16);
                    }
                }
            }
        }
        key += 1;
    }
}

/// The scores of the thread's two rows and the key whose lane's first column is at `key`.
#[inline(always)]
fn scores<T: Float16, D: Products<T>>(queries: &D::Queries, key: Global<u16>) -> [f32; 2] {
    let mut scores = [0.0; 2];
    for (step, registers) in queries.as_ref().iter().enumerate() {
        for half in 0..2 {
            let at = key.add(16 * step as u64 + 8 * half as u64);
            let keys: u32 = gpu::ld_global(at.cast());
            for (row, score) in scores.iter_mut().enumerate() {
                let query = registers[2 * half + row];
                for half in 0..2 {
                    let number = |pair: u32| T::to_f32((pair >> (16 * half)) as u16);
                    *score = gpu::fma_rn_f32(number(query), number(keys), *score);
                }
            }
        }
    }
    scores.map(|score| {
        let score = score + gpu::shfl_sync_bfly(WARP, score, 1);
        score + gpu::shfl_sync_bfly(WARP, score, 2)
    })
}
