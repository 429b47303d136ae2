//! The consumers: 64 rows of each work tile, from Q to O.

use super::super::work::QueryRows;
use super::HopperParams;
use super::seat::{Seat, scale_rows};
use super::shared::{Barrier, Facts, Memory, Turn};
use super::{output, poison};
use crate::gpu;
use crate::tile::warpgroup::{self, Products, Scores};
use crate::tile::{Float16, LazySoftmax, Rescale, scale};

/// A consumer warpgroup's work.
#[inline(always)]
pub(super) fn consume<T: Float16, D: Products<T>>(p: &HopperParams) {
    let scale_log2 = scale::magnitude(p.attention.scale_log2);
    let mut turn = Turn::FIRST;
    let mut parity = 0;
    loop {
        Memory::<D>::wait(Barrier::QFull, parity);
        if !Memory::<D>::has_work(parity) {
            return;
        }
        let rows = Memory::<D>::read_rows(parity);
        let queries = load_queries::<T, D>(p, Seat::of_this_thread(), rows);
        Memory::<D>::arrive_warp(Barrier::QEmpty);
        attend::<T, D>(p, parity, &queries, scale_log2, &mut turn);
        parity ^= 1;
    }
}

/// The warp's queries, with the sign of the scale, so that the maximum of the scores is that of the exponents. Zero where the tile
/// has no row: the box that TMA copied may hold rows of a neighbouring sequence there, whose scores would decide when the warp
/// rescales.
#[inline(always)]
fn load_queries<T: Float16, D: Products<T>>(
    p: &HopperParams,
    seat: Seat,
    rows: QueryRows,
) -> D::Queries {
    let mut queries = warpgroup::load_queries::<D>(Memory::<D>::q(), seat.first_row, seat.lane);
    let scale_log2 = p.attention.scale_log2;
    let flip = scale::flipped_signs(scale_log2);
    let keep = [0, 8].map(|below| {
        if rows.has(seat.row() + below) {
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
    turn: &mut Turn,
) {
    let mut softmax = LazySoftmax::EMPTY;
    // SAFETY: an array of floats, for which zero bits are the number 0. (As an array expression it would be a loop.)
    let mut output: D::Output = unsafe { core::mem::zeroed() };

    let mut scores = begin_scores::<T, D>(queries, *turn);
    let mut facts = Memory::<D>::read_facts(turn.stage);
    gpu::wgmma_wait_group::<0, _>(&mut scores);
    Memory::<D>::arrive_warp(Barrier::KEmpty(turn.stage));
    weigh::<T>(p, facts, &mut scores, &mut softmax, scale_log2);
    let mut weights = warpgroup::pack::<T>(&scores);
    let mut poisoned = false;
    Memory::<D>::wait(Barrier::VFull(turn.stage), turn.parity);
    let mut has_read_values = facts.is_own();
    if has_read_values {
        poisoned = poison::take_out::<T, D>(Seat::of_this_thread(), Memory::<D>::v(turn.stage));
    }

    while !facts.is_last() {
        let next = turn.next::<D>();
        scores = begin_scores::<T, D>(queries, next);
        D::add_values(&mut output, &weights, Memory::<D>::v(turn.stage));
        facts = Memory::<D>::read_facts(next.stage);
        gpu::wgmma_wait_group::<1, _>(&mut scores);
        Memory::<D>::arrive_warp(Barrier::KEmpty(next.stage));
        let rescale = weigh::<T>(p, facts, &mut scores, &mut softmax, scale_log2);
        // The exponentials run beside the product of the weights before.
        gpu::keep_operand(&weights, softmax.after_all());
        gpu::wgmma_wait_group::<0, _>(&mut output);
        Memory::<D>::release_values(turn.stage, has_read_values);
        has_read_values = false;
        if let Some(factors) = rescale {
            scale_rows(output.as_mut(), factors);
        }
        weights = warpgroup::pack::<T>(&scores);
        Memory::<D>::wait(Barrier::VFull(next.stage), next.parity);
        *turn = next;
    }
    D::add_values(&mut output, &weights, Memory::<D>::v(turn.stage));
    gpu::wgmma_wait_group::<0, _>(&mut output);
    Memory::<D>::release_values(turn.stage, has_read_values);
    *turn = turn.next::<D>();

    let seat = Seat::of_this_thread();
    let work = Memory::<D>::read_work(slot);
    if poisoned {
        poison::add_back::<T, D>(p, seat, work, queries, &softmax, scale_log2, &mut output);
    }
    // Each row sees a key if the last tile has any; only a work tile without any ends with one that has none.
    let finished = softmax.finish::<T>(scale_log2, facts.keys() != 0);
    output::write::<T, D>(p, seat, work, finished, &mut output);
}

/// Issues the scores of a stage, once it is full.
#[inline(always)]
fn begin_scores<T: Float16, D: Products<T>>(queries: &D::Queries, turn: Turn) -> Scores {
    Memory::<D>::wait(Barrier::KFull(turn.stage), turn.parity);
    D::scores(queries, Memory::<D>::k(turn.stage))
}

/// Masks a tile's scores and makes weights of them.
#[inline(always)]
fn weigh<T: Float16>(
    p: &HopperParams,
    facts: Facts,
    scores: &mut Scores,
    softmax: &mut LazySoftmax,
    scale_log2: f32,
) -> Option<Rescale> {
    if facts.is_partial() {
        let seat = Seat::of_this_thread();
        let first_column = (seat.lane % 4 * 2) as i32;
        let mut last = [facts.keys() as i32 - 1; 2];
        for (i, last) in last.iter_mut().enumerate() {
            let row = seat.row() as i32 + 8 * i as i32;
            if facts.is_own() {
                *last = (*last).min(row);
            }
            *last -= first_column;
        }
        warpgroup::mask(scores, last);
    }
    softmax.weigh::<T>(scores, scale_log2, p.slack_log2)
}
