//! The kernel: one work tile.

use super::super::SparseFlashParams;
use super::super::walk::{KeyTile, KeyWalk};
use super::super::warp_context::WarpContext;
use super::super::warp_lane::WarpLane;
use super::super::work::WorkTile;
use super::stage::{Stage, ThreadChunks};
use super::{KEY_TILES, STRIPS, TILE_KEYS, WARP_ROWS, nonfinite, query};
use crate::gpu;
use crate::params::BLOCK;
use crate::tile::{Accumulator, Float16, OnlineSoftmax, RowLimits, WARP};

/// See the module's documentation. `CHUNKS` is head_dim / 8: the chunks of 16 bytes of a row, and the
/// column tiles of the output.
#[inline(always)]
pub(super) fn sparse_flash<T: Float16, const CHUNKS: usize>(p: &SparseFlashParams) {
    if gpu::ctaid_x() >= p.tiles() {
        return;
    }
    let number = p.first_tile() + p.tiles() - 1 - gpu::ctaid_x();
    let Some(tile) = p.sequences.query_tile(number) else {
        return;
    };
    let work = WorkTile::new(p, gpu::ctaid_y(), number, &tile);
    let warp_lane = WarpLane::of_this_thread();
    let stage = Stage::<CHUNKS>::of(warp_lane);
    query::copy::<T, CHUNKS>(p, work, stage);
    let (mut walk, mut tile) = KeyWalk::<TILE_KEYS>::new(p, stage.warp, || work);
    ThreadChunks::of(warp_lane).copy_keys(stage.k, &p.k, stage.warp.context.k(p), tile, stage.warp);

    let mut softmax = OnlineSoftmax::<STRIPS>::EMPTY;
    let mut output = Accumulator::<STRIPS, CHUNKS>::zero();
    // Each row sees one if the first tile, in a causal problem the diagonal block's, has any.
    let sees_keys = tile.keys != 0;
    while tile.keys != 0 {
        gpu::cp_async_wait_group::<0>();
        gpu::bar_sync(0);
        let warp_lane = WarpLane::of_this_thread();
        let stage = Stage::<CHUNKS>::of(warp_lane);
        let context = stage.warp.context;
        let chunks = ThreadChunks::<CHUNKS>::of(warp_lane);
        chunks.copy_keys(stage.v, &p.v, context.v(p), tile, stage.warp);

        let first_row = warp_lane.warp * WARP_ROWS;
        let q_rows = stage.q.columns_first(first_row, warp_lane.lane);
        let k_rows = stage.k.rows_first(0, warp_lane.lane);
        let sight = Sight::new(p, context, tile, first_row);
        let attends = context.work().rows.any(first_row, WARP_ROWS) && !sight.nothing;
        let mut scores = Accumulator::<STRIPS, KEY_TILES>::zero();
        if attends {
            scores.add_rows_by_rows::<T, CHUNKS>(q_rows, k_rows);
            if sight.partial {
                RowLimits::causal(sight.diagonal, tile.keys).apply(&mut scores);
            }
        }

        gpu::cp_async_wait_group::<0>();
        let found = sight.own && nonfinite::zero::<T, CHUNKS>(chunks, stage.v);
        let poisoned = gpu::bar_red_or(0, found);
        let next = walk.next(p, stage.warp, tile);
        if next.keys != 0 {
            // Recomputed: the chunk's place would be kept through the scores.
            let chunks = ThreadChunks::<CHUNKS>::of(WarpLane::of_this_thread());
            chunks.copy_keys(stage.k, &p.k, context.k(p), next, stage.warp);
        }

        if attends {
            let (weights, rescale) =
                softmax.weigh::<T, KEY_TILES>(&mut scores, context.scale_log2());
            let mut moved = false;
            for factors in &rescale {
                moved |= factors[0] != 1.0 || factors[1] != 1.0;
            }
            if gpu::vote_sync_any(WARP, moved) {
                output.scale_rows(&rescale);
            }
            // Asked anew: it would take registers through the softmax.
            let warp_lane = WarpLane::of_this_thread();
            let v_rows = Stage::<CHUNKS>::of(warp_lane)
                .v
                .columns_first(0, warp_lane.lane);
            output.add_weighted_rows::<T, KEY_TILES, CHUNKS>(&weights, v_rows);
        }
        if poisoned && attends {
            // Asked anew: it is too rare to keep anything for it.
            let warp_lane = WarpLane::of_this_thread();
            let stage = Stage::<CHUNKS>::of(warp_lane);
            let context = stage.warp.context;
            let first_row = warp_lane.warp * WARP_ROWS;
            let tile = KeyTile::contiguous::<TILE_KEYS>(tile.start, context.k_len());
            let tile = nonfinite::Tile {
                q_rows: stage.q.columns_first(first_row, warp_lane.lane),
                k: context.k(p),
                v: context.v(p),
                start: tile.start,
                lane: warp_lane.lane,
                keys: tile.keys,
                diagonal: Sight::new(p, context, tile, first_row).diagonal,
            };
            nonfinite::accumulate::<T, CHUNKS>(
                p,
                &mut output,
                &softmax,
                context.scale_log2(),
                &tile,
            );
        }
        tile = walk.again(
            Stage::<CHUNKS>::of(WarpLane::of_this_thread()).warp,
            next.start,
        );
    }
    // Without any tile, Q and an empty K are still on their way.
    gpu::cp_async_wait_group::<0>();
    let warp_lane = WarpLane::of_this_thread();
    let first_row = warp_lane.warp * WARP_ROWS;
    let context = Stage::<CHUNKS>::of(warp_lane).warp.context;
    let (work, scale_log2) = (context.work(), context.scale_log2());
    if work.rows.any(first_row, WARP_ROWS) {
        let finished = softmax.finish::<T>(scale_log2, sees_keys);
        query::write::<T, CHUNKS>(p, work, first_row, &mut output, &finished);
    }
}

/// What a warp's rows see of a tile.
struct Sight {
    /// Row `r` of the warp sees the tile's keys up to `diagonal + r`, if there are as many.
    diagonal: i32,
    /// Whether the tile is of the diagonal key block, in a causal problem.
    own: bool,
    /// Whether a row does not see all of it.
    partial: bool,
    /// Whether no row sees any of it.
    nothing: bool,
}

impl Sight {
    #[inline(always)]
    fn new(p: &SparseFlashParams, context: WarpContext, tile: KeyTile, first_row: u32) -> Self {
        let own_start = context.query_block() * BLOCK;
        let own = p.sequences.is_causal() && !tile.is_gathered() && tile.start >= own_start;
        let diagonal = if own {
            first_row as i32 - (tile.start - own_start) as i32
        } else {
            TILE_KEYS as i32
        };
        Self {
            diagonal,
            own,
            partial: diagonal < tile.keys as i32 - 1 || tile.keys < TILE_KEYS,
            nothing: diagonal + (WARP_ROWS as i32) <= 0,
        }
    }
}
