//! The consumers: 64 rows of each work tile, from Q to O.

use super::super::work::QueryRows;
use super::HopperParams;
use super::lane_rows::{LaneRows, scale_rows};
use super::shared::{Barrier, Memory, PipelineState, TileInfo};
use super::{nonfinite, output};
use crate::gpu;
use crate::tile::warpgroup::{self, Products, Scores};
use crate::tile::{Float16, LazySoftmax, Rescale, scale};

/// A consumer warpgroup's work.
#[inline(always)]
pub(super) fn consume<T: Float16, D: Products<T>>(p: &HopperParams) {
    let scale_log2 = scale::magnitude(p.attention.scale_log2);
    let mut state = PipelineState::FIRST;
    let mut parity = 0;
    loop {
        Memory::<D>::wait(Barrier::QFull, parity);
        if !Memory::<D>::has_work(parity) {
            return;
        }
        let rows = Memory::<D>::read_rows(parity);
        let queries = load_queries::<T, D>(p, LaneRows::of_this_thread(), rows);
        Memory::<D>::arrive_warp(Barrier::QEmpty);
        attend::<T, D>(p, parity, &queries, scale_log2, &mut state);
        parity ^= 1;
    }
}

/// The warp's queries, with the sign of the scale, so that the maximum of the scores is that of the exponents. Zero where the tile
/// has no row: the box that TMA copied may hold rows of a neighbouring sequence there, whose scores would decide when the warp
/// rescales.
#[inline(always)]
fn load_queries<T: Float16, D: Products<T>>(
    p: &HopperParams,
    lane_rows: LaneRows,
    rows: QueryRows,
) -> D::Queries {
    let mut queries =
        warpgroup::load_queries::<D>(Memory::<D>::q(), lane_rows.first_row, lane_rows.lane);
    let scale_log2 = p.attention.scale_log2;
    let flip = scale::flipped_signs(scale_log2);
    let keep = [0, 8].map(|below| {
        if rows.has(lane_rows.row() + below) {
            u32::MAX
        } else {
            0
        }
    });
    for registers in queries.as_mut() {
        for (i, pair) in registers.iter_mut().enumerate() {
            *pair = (*pair & keep[i % 2]) ^ flip;
        }
    }
    if scale_log2 == 0.0 {
        for pair in queries.as_mut().as_flattened_mut() {
            *pair = scale::times_zero::<T>(*pair);
        }
    }
    queries
}

/// Attends with the rows of the work tile in `slot`.
#[inline(always)]
fn attend<T: Float16, D: Products<T>>(
    p: &HopperParams,
    slot: u32,
    queries: &D::Queries,
    scale_log2: f32,
    state: &mut PipelineState,
) {
    let mut softmax = LazySoftmax::EMPTY;
    // SAFETY: an array of floats, for which zero bits are the number 0. (As an array expression it would be a loop.)
    let mut output: D::Output = unsafe { core::mem::zeroed() };

    let mut scores = begin_scores::<T, D>(queries, *state);
    let mut info = Memory::<D>::read_tile_info(state.stage);
    gpu::wgmma_wait_group::<0, _>(&mut scores);
    Memory::<D>::arrive_warp(Barrier::KEmpty(state.stage));
    weigh::<T>(p, info, &mut scores, &mut softmax, scale_log2);
    let mut weights = warpgroup::pack::<T>(&scores);
    let mut poisoned = false;
    Memory::<D>::wait(Barrier::VFull(state.stage), state.parity);
    let mut has_read_values = info.is_diagonal();
    if has_read_values {
        poisoned = nonfinite::zero::<T, D>(LaneRows::of_this_thread(), Memory::<D>::v(state.stage));
    }

    while !info.is_last() {
        let next = state.next::<D>();
        scores = begin_scores::<T, D>(queries, next);
        D::add_values(&mut output, &weights, Memory::<D>::v(state.stage));
        info = Memory::<D>::read_tile_info(next.stage);
        gpu::wgmma_wait_group::<1, _>(&mut scores);
        Memory::<D>::arrive_warp(Barrier::KEmpty(next.stage));
        let rescale = weigh::<T>(p, info, &mut scores, &mut softmax, scale_log2);
        // The exponentials run beside the product of the weights before.
        gpu::keep_operand(&weights, softmax.after_all());
        gpu::wgmma_wait_group::<0, _>(&mut output);
        Memory::<D>::release_values(state.stage, has_read_values);
        has_read_values = false;
        if let Some(factors) = rescale {
            scale_rows(output.as_mut(), factors);
        }
        weights = warpgroup::pack::<T>(&scores);
        Memory::<D>::wait(Barrier::VFull(next.stage), next.parity);
        *state = next;
    }
    D::add_values(&mut output, &weights, Memory::<D>::v(state.stage));
    gpu::wgmma_wait_group::<0, _>(&mut output);
    Memory::<D>::release_values(state.stage, has_read_values);
    *state = state.next::<D>();

    let lane_rows = LaneRows::of_this_thread();
    let work = Memory::<D>::read_work(slot);
    if poisoned {
        nonfinite::accumulate::<T, D>(
            p,
            lane_rows,
            work,
            queries,
            &softmax,
            scale_log2,
            &mut output,
        );
    }
    // Each row sees a key if the last tile has any; only a work tile without any ends with one that has none.
    let finished = softmax.finish::<T>(scale_log2, info.keys() != 0);
    output::write::<T, D>(p, lane_rows, work, finished, &mut output);
}

/// Issues the scores of a stage, once it is full.
#[inline(always)]
fn begin_scores<T: Float16, D: Products<T>>(queries: &D::Queries, state: PipelineState) -> Scores {
    Memory::<D>::wait(Barrier::KFull(state.stage), state.parity);
    D::scores(queries, Memory::<D>::k(state.stage))
}

/// Masks a tile's scores and makes weights of them.
#[inline(always)]
fn weigh<T: Float16>(
    p: &HopperParams,
    info: TileInfo,
    scores: &mut Scores,
    softmax: &mut LazySoftmax,
    scale_log2: f32,
) -> Option<Rescale> {
    if info.is_partial() {
        let lane_rows = LaneRows::of_this_thread();
        let first_column = (lane_rows.lane % 4 * 2) as i32;
        let mut last = [info.keys() as i32 - 1; 2];
        for (i, last) in last.iter_mut().enumerate() {
            let row = lane_rows.row() as i32 + 8 * i as i32;
            if info.is_diagonal() {
                *last = (*last).min(row);
            }
            *last -= first_column;
        }
        warpgroup::mask(scores, last);
    }
    softmax.weigh::<T>(scores, scale_log2, p.rescale_threshold_log2)
}
