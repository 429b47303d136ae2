//! The producers: which tasks, which tiles, and their copies.

use super::super::SparseFlashParams;
use super::super::query::{QueryRows, write_blind_rows};
use super::super::record::{Task, Tokens};
use super::super::walk::{KeyTile, KeyWalk};
use super::super::warp::Place;
use super::HopperParams;
use super::shared::{Barrier, Facts, Memory, Turn};
use crate::gpu::{self, Shared, TensorMap};
use crate::params::BLOCK;
use crate::tile::warpgroup::{self, HeadDim, PIECE_BYTES, PIECE_COLUMNS, TILE_ROWS};
use crate::tile::{SwizzledTile, WARP};

/// Rows of a loose tile that a warp gathers: a lane each knows its key.
const WARP_ROWS: u32 = TILE_ROWS / 4;

const _: () = assert!(WARP_ROWS == 32);

/// The producer warpgroup's work.
#[inline(always)]
pub(super) fn produce<D: HeadDim>(p: &HopperParams, in_place: &HopperParams) {
    let attention = &p.attention;
    write_all_blind_rows(attention);
    let mut turn = Turn::FIRST;
    let mut tasks = Tasks::first();
    loop {
        let place = Place::of_this_thread();
        let memory = Memory::<D>::of_producer(place);
        let task = if place.warp == 0 {
            let task = tasks.take(p);
            publish::<D>(p, in_place, task, tasks.parity);
            task
        } else {
            receive::<D>(tasks.parity)
        };
        tasks.parity ^= 1;
        let Some(task) = task else {
            return;
        };
        let (mut walk, mut tile) = KeyWalk::<TILE_ROWS>::new(attention, task, memory);
        loop {
            // Asked anew: what follows from it would take registers all through the walk.
            let place = Place::of_this_thread();
            let memory = Memory::<D>::of_producer(place);
            // The lane's key, before the walk puts the next tile into the queue.
            let key = if tile.is_loose() {
                gpu::ld_shared(memory.queue.add(place.warp * WARP_ROWS + place.lane))
            } else {
                0
            };
            let next = if tile.keys == 0 {
                tile
            } else {
                walk.next(attention, memory, tile)
            };
            let own = attention.sizes.is_causal()
                && !tile.is_loose()
                && tile.start >= task.query_block * BLOCK;
            let facts = Facts::new(tile.keys, own, next.keys == 0);
            Memory::<D>::wait(Barrier::KEmpty(turn.stage), turn.parity ^ 1);
            if gpu::tid_x() == 0 {
                Memory::<D>::write_facts(turn.stage, facts);
            }
            let [k, v] = [Memory::<D>::k, Memory::<D>::v].map(|at| at(turn.stage));
            let [k_full, v_full] = [Barrier::KFull(turn.stage), Barrier::VFull(turn.stage)];
            if tile.is_loose() {
                gather::<D>(k, memory.record.k(), tile, key);
                Memory::<D>::wait(Barrier::VEmpty(turn.stage), turn.parity ^ 1);
                gather::<D>(v, memory.record.v(), tile, key);
                gpu::cp_async_wait_group::<1>();
                hand_over::<D>(k_full);
                gpu::cp_async_wait_group::<0>();
                hand_over::<D>(v_full);
            } else {
                let at = [tile.start, task.kv_head, task.batch].map(|i| i as i32);
                load::<D>(k, &in_place.k_map, at, k_full);
                Memory::<D>::wait(Barrier::VEmpty(turn.stage), turn.parity ^ 1);
                load::<D>(v, &in_place.v_map, at, v_full);
            }
            turn = turn.next::<D>();
            if next.keys == 0 {
                break;
            }
            tile = next;
        }
    }
}

/// The tasks of this block, as its first warp takes them.
struct Tasks {
    /// The place of the next task in the order.
    place: u32,
    /// The phase of its hand-over.
    parity: u32,
}

impl Tasks {
    #[inline(always)]
    fn first() -> Self {
        Self {
            place: gpu::ctaid_x(),
            parity: 0,
        }
    }

    /// The next task; asks at once for the one after it. All lanes of the first warp call it.
    #[inline(always)]
    fn take(&mut self, p: &HopperParams) -> Option<Task> {
        let sizes = &p.attention.sizes;
        let number = p.schedule.number(sizes, self.place)?;
        let mut taken = 0;
        if gpu::laneid() == 0 {
            taken = gpu::atom_global_add_u32(p.schedule.taken, 1);
        }
        self.place = gpu::nctaid_x() + gpu::shfl_sync_idx(WARP, taken, 0);
        Some(p.schedule.task(sizes, number))
    }
}

/// Hands a task and the copies of its Q over.
#[inline(always)]
fn publish<D: HeadDim>(p: &HopperParams, in_place: &HopperParams, task: Option<Task>, parity: u32) {
    Memory::<D>::wait(Barrier::QEmpty, parity ^ 1);
    if gpu::laneid() != 0 {
        return;
    }
    Memory::<D>::write_task(task);
    let full = Memory::<D>::barrier(Barrier::QFull);
    let Some(task) = task else {
        gpu::mbarrier_arrive(full);
        return;
    };
    gpu::mbarrier_arrive_expect_tx(full, D::TILE_BYTES);
    let first_token = QueryRows::new(&p.attention, task.query_block).first_token;
    let at = [first_token, task.head as i32, task.batch as i32];
    warpgroup::copy_tile::<D>(Memory::<D>::q(), &in_place.q_map, at, full);
}

/// The task that the first warp published.
#[inline(always)]
fn receive<D: HeadDim>(parity: u32) -> Option<Task> {
    Memory::<D>::wait(Barrier::QFull, parity);
    let task = Memory::<D>::read_task();
    Memory::<D>::arrive_warp(Barrier::QEmpty);
    task
}

/// The first thread copies a contiguous tile, whole warps arrive.
#[inline(always)]
fn load<D: HeadDim>(to: Shared<u8>, map: &TensorMap, at: [i32; 3], full: Barrier) {
    gpu::bar_warp_sync(WARP);
    if gpu::laneid() != 0 {
        return;
    }
    let full = Memory::<D>::barrier(full);
    if gpu::tid_x() == 0 {
        gpu::mbarrier_arrive_expect_tx(full, D::TILE_BYTES);
        warpgroup::copy_tile::<D>(to, map, at, full);
    } else {
        gpu::mbarrier_arrive(full);
    }
}

/// Copies the warp's rows of a loose tile, zero after its keys; `key` is that of row `lane`.
#[inline(always)]
fn gather<D: HeadDim>(to: Shared<u8>, tokens: Tokens, tile: KeyTile, key: u32) {
    /// Lanes that copy a piece of a row, 16 bytes each.
    const LANES: u32 = 8;
    // Asked anew: what follows from it would take registers all through the walk.
    let place = Place::of_this_thread();
    let chunk = place.lane % LANES;
    for first in 0..LANES {
        // Rows 8 apart: their chunks are permuted alike.
        let in_warp = place.lane / LANES * 8 + first;
        let row = place.warp * WARP_ROWS + in_warp;
        let key = gpu::shfl_sync_idx(WARP, key, in_warp);
        let bytes = if row < tile.keys { 16 } else { 0 };
        let key = if row < tile.keys { key } else { 0 };
        let from = tokens.token(key).add(u64::from(chunk * 8));
        for piece in 0..D::PIECES {
            let piece_at = SwizzledTile::<8>::new(to.byte_add(piece * PIECE_BYTES));
            let from = from.add(u64::from(piece * PIECE_COLUMNS));
            gpu::cp_async_cg_16_zfill(piece_at.chunk(row, chunk).cast(), from, bytes);
        }
    }
    gpu::cp_async_commit_group();
}

/// Hands the warp's gathered rows over, which have landed for each lane.
#[inline(always)]
fn hand_over<D: HeadDim>(full: Barrier) {
    gpu::fence_proxy_async_shared_cta();
    Memory::<D>::arrive_warp(full);
}

/// The rows that see nothing, which belong to no task.
#[inline(always)]
fn write_all_blind_rows(p: &SparseFlashParams) {
    let sizes = &p.sizes;
    let of_head = sizes.blind_rows().div_ceil(BLOCK);
    let mut tile = gpu::ctaid_x();
    while tile < of_head * sizes.heads() {
        let head = tile / of_head;
        let (batch, head) = (head / sizes.q_heads, head % sizes.q_heads);
        write_blind_rows(p, batch, head, tile % of_head);
        tile += gpu::nctaid_x();
    }
}
