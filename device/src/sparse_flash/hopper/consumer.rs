//! The consumers: 64 rows of each work tile, from Q to O.

use core::marker::PhantomData;

use super::super::work::QueryRows;
use super::HopperParams;
use super::lane_rows::{LaneRows, scale_rows};
use super::shared::{Barrier, Memory, PipelineState, TileInfo};
use super::{nonfinite, output};
use crate::gpu;
use crate::tile::warpgroup::{self, Products, Scores, Weights};
use crate::tile::{Float16, LazySoftmax, scale};

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
    let mut rows = Rows::<T, D>::of_first_tile(queries, scale_log2, *state);
    let poisoned = rows.zero_nonfinite_values();
    while !rows.info.is_last() {
        rows.begin_tile(p);
        rows.softmax.weigh(&mut rows.scores, scale_log2);
        rows.take_weights();
    }
    *state = rows.add_last_values();
    let Rows {
        softmax,
        mut output,
        info,
        ..
    } = rows;

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

/// A thread's rows on their way through the tiles: one tile has weights, the next one scores.
struct Rows<'a, T: Float16, D: Products<T>> {
    queries: &'a D::Queries,
    scale_log2: f32,
    softmax: LazySoftmax,
    /// Of the tiles before the one with weights.
    output: D::Output,
    /// Of the tile before `next`.
    weights: Weights,
    /// Of the tile of `next`, once it is begun.
    scores: Scores,
    /// What is known of the latest tile.
    info: TileInfo,
    /// The stage of the tile after the one with weights.
    next: PipelineState,
    /// Whether each lane has read the values of the tile with weights by itself.
    has_read_values: bool,
    element: PhantomData<T>,
}

impl<'a, T: Float16, D: Products<T>> Rows<'a, T, D> {
    /// Weighs the tile of stage `state`, the work tile's first, whose values are there when it returns.
    #[inline(always)]
    fn of_first_tile(queries: &'a D::Queries, scale_log2: f32, state: PipelineState) -> Self {
        let mut softmax = LazySoftmax::EMPTY;
        let mut scores = begin_scores::<T, D>(queries, state);
        let info = Memory::<D>::load_tile_info(state.stage).of_warp();
        gpu::wgmma_wait_group::<0, _>(&mut scores);
        Memory::<D>::arrive_warp(Barrier::KEmpty(state.stage));
        mask(info, &mut scores);
        let maxima = softmax.maxima(&scores);
        softmax.raise::<T>(maxima, scale_log2);
        softmax.use_raised::<T>(scale_log2);
        if softmax.has_far_row() {
            softmax.shift_far_rows::<T>(&mut scores, scale_log2);
        }
        softmax.weigh(&mut scores, scale_log2);
        let weights = warpgroup::pack::<T>(&scores);
        Memory::<D>::wait(Barrier::VFull(state.stage), state.parity);
        Self {
            queries,
            scale_log2,
            softmax,
            // SAFETY: an array of floats, for which zero bits are the number 0. (As an array expression it would be a loop.)
            output: unsafe { core::mem::zeroed() },
            weights,
            scores,
            info,
            next: state.next::<D>().of_warp(),
            has_read_values: false,
            element: PhantomData,
        }
    }

    /// Takes what is not finite out of the first tile's values, if that is the diagonal block; whether there is any.
    #[inline(always)]
    fn zero_nonfinite_values(&mut self) -> bool {
        self.has_read_values = self.info.is_diagonal();
        self.has_read_values
            && nonfinite::zero::<T, D>(LaneRows::of_this_thread(), Memory::<D>::v(self.stage()))
    }

    /// The stage of the tile with weights: worked out from the next one's, which the compiler knows to be the whole warp's.
    #[inline(always)]
    fn stage(&self) -> u32 {
        self.next.stage_before::<D>()
    }

    /// Issues the next tile's scores, and the values of the one with weights; masks the scores, raises the references to them, and rescales
    /// the output.
    #[inline(always)]
    fn begin_tile(&mut self, p: &HopperParams) {
        let (stage, next) = (self.stage(), self.next);
        Memory::<D>::wait(Barrier::KFull(next.stage), next.parity);
        let info = Memory::<D>::load_tile_info(next.stage);
        self.scores = D::scores(self.queries, Memory::<D>::k(next.stage));
        D::add_values(&mut self.output, &self.weights, Memory::<D>::v(stage));
        self.info = info.of_warp();
        gpu::wgmma_wait_group::<1, _>(&mut self.scores);
        Memory::<D>::arrive_warp(Barrier::KEmpty(next.stage));
        mask(self.info, &mut self.scores);
        let maxima = self.softmax.maxima(&self.scores);
        let mut factors = [1.0; 2];
        let raises = self
            .softmax
            .must_raise(maxima, self.scale_log2, p.rescale_threshold_log2);
        if raises {
            factors = self.softmax.raise::<T>(maxima, self.scale_log2);
        }
        gpu::wgmma_wait_group::<0, _>(&mut self.output);
        // The assembler moves the exponentials up to the branch below and no further: it decides what they are relative to. So the stage is
        // handed back before them, and its copy has the time that they take.
        Memory::<D>::release_values(stage, self.has_read_values);
        self.has_read_values = false;
        let is_far = self.softmax.has_far_row();
        if raises || is_far {
            self.softmax.use_raised::<T>(self.scale_log2);
            scale_rows(self.output.as_mut(), factors);
            if is_far {
                self.softmax
                    .shift_far_rows::<T>(&mut self.scores, self.scale_log2);
            }
        }
    }

    /// The tile that was begun, and weighed, is the one with weights: its values are there when this returns.
    #[inline(always)]
    fn take_weights(&mut self) {
        let after = self.next.next::<D>().of_warp();
        self.weights = warpgroup::pack::<T>(&self.scores);
        Memory::<D>::wait(Barrier::VFull(self.next.stage), self.next.parity);
        self.next = after;
    }

    /// Adds the values of the tile with weights, which is the last; the stage of the next work tile's first.
    #[inline(always)]
    fn add_last_values(&mut self) -> PipelineState {
        let stage = self.stage();
        D::add_values(&mut self.output, &self.weights, Memory::<D>::v(stage));
        gpu::wgmma_wait_group::<0, _>(&mut self.output);
        Memory::<D>::release_values(stage, self.has_read_values);
        self.next
    }
}

/// Issues the scores of a stage, once it is full.
#[inline(always)]
fn begin_scores<T: Float16, D: Products<T>>(queries: &D::Queries, state: PipelineState) -> Scores {
    Memory::<D>::wait(Barrier::KFull(state.stage), state.parity);
    D::scores(queries, Memory::<D>::k(state.stage))
}

/// Masks a tile's scores.
#[inline(always)]
fn mask(info: TileInfo, scores: &mut Scores) {
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
}
