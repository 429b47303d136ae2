//! The producers: which work tiles, which tiles of keys, and their copies.

use super::super::walk::{KeyTile, KeyWalk};
use super::super::warp::{Place, WarpMemory};
use super::super::work::{Tokens, WorkTile};
use super::HopperParams;
use super::shared::{Barrier, Facts, Memory, Turn};
use crate::abi::KvTensor;
use crate::gpu::{self, Shared, TensorMap};
use crate::params::BLOCK;
use crate::tile::warpgroup::{self, HeadDim, PIECE_BYTES, PIECE_COLUMNS, TILE_ROWS};
use crate::tile::{SwizzledTile, WARP};

/// Rows of a gathered tile that a warp copies: a lane each knows its key.
const WARP_ROWS: u32 = TILE_ROWS / 4;

const _: () = assert!(WARP_ROWS == 32);

/// The producer warpgroup's work.
#[inline(always)]
pub(super) fn produce<D: HeadDim>(p: &HopperParams, in_place: &HopperParams) {
    let attention = &p.attention;
    let mut turn = Turn::FIRST;
    let mut tiles = WorkTiles::first();
    loop {
        let place = Place::of_this_thread();
        let memory = Memory::<D>::of_producer(place);
        let work = if place.warp == 0 {
            let work = tiles.take(p);
            publish::<D>(in_place, work, tiles.parity);
            work
        } else {
            receive::<D>(tiles.parity)
        };
        tiles.parity ^= 1;
        let Some(work) = work else {
            return;
        };
        let (mut walk, mut tile) = KeyWalk::<TILE_ROWS>::new(attention, work, memory);
        loop {
            // Recomputed per tile: what follows from it would take registers all through the walk.
            let place = Place::of_this_thread();
            let memory = Memory::<D>::of_producer(place);
            let record = memory.record;
            let source = Source::new(p, place, memory, tile);
            let next = if tile.keys == 0 {
                tile
            } else {
                walk.next(attention, memory, tile)
            };
            let own = attention.sequences.is_causal()
                && !tile.is_loose()
                && tile.start >= record.query_block() * BLOCK;
            let facts = Facts::new(tile.keys, own, next.keys == 0);
            Memory::<D>::wait(Barrier::KEmpty(turn.stage), turn.parity ^ 1);
            if gpu::tid_x() == 0 {
                Memory::<D>::write_facts(turn.stage, facts);
            }
            let [k, v] = [Memory::<D>::k, Memory::<D>::v].map(|at| at(turn.stage));
            let [k_full, v_full] = [Barrier::KFull(turn.stage), Barrier::VFull(turn.stage)];
            match source {
                Source::Gathered { k_slot, v_slot } => {
                    gather::<D>(k, &attention.k, record.k(), tile, k_slot);
                    Memory::<D>::wait(Barrier::VEmpty(turn.stage), turn.parity ^ 1);
                    gather::<D>(v, &attention.v, record.v(), tile, v_slot);
                    gpu::cp_async_wait_group::<1>();
                    hand_over::<D>(k_full);
                    gpu::cp_async_wait_group::<0>();
                    hand_over::<D>(v_full);
                }
                Source::Tensor { at } => {
                    load::<D>(k, &in_place.k_map, at, k_full);
                    Memory::<D>::wait(Barrier::VEmpty(turn.stage), turn.parity ^ 1);
                    load::<D>(v, &in_place.v_map, at, v_full);
                }
            }
            turn = turn.next::<D>();
            if next.keys == 0 {
                break;
            }
            tile = next;
        }
    }
}

/// Where a tile's rows come from.
enum Source {
    /// Key by key: the slots of the lane's row. See [`Tokens::slot`].
    Gathered { k_slot: u32, v_slot: u32 },
    /// A box of the tensors at `[token, head, batch]`; zero where the tensor ends.
    Tensor { at: [i32; 3] },
}

impl Source {
    /// The source of a tile, before the walk puts the next tile's keys into the queue.
    #[inline(always)]
    fn new(p: &HopperParams, place: Place, memory: WarpMemory, tile: KeyTile) -> Self {
        let attention = &p.attention;
        let record = memory.record;
        if tile.is_loose() || attention.keys_are_followed() && tile.keys < TILE_ROWS {
            let row = place.warp * WARP_ROWS + place.lane;
            let key = if tile.is_loose() {
                gpu::ld_shared(memory.queue.add(row))
            } else {
                tile.start + row
            };
            let slot = |tensor, tokens: Tokens| {
                if row < tile.keys {
                    tokens.slot(tensor, key)
                } else {
                    0
                }
            };
            return Self::Gathered {
                k_slot: slot(&attention.k, record.k()),
                v_slot: slot(&attention.v, record.v()),
            };
        }
        let work = record.work();
        let token = work.keys.start + tile.start;
        Self::Tensor {
            at: [token, work.kv_head, work.rows.batch].map(|i| i as i32),
        }
    }
}

/// The work tiles of this block, as its first warp takes them.
struct WorkTiles {
    /// The place of the next one in the order.
    place: u32,
    /// The phase of its hand-over, and its slot.
    parity: u32,
}

impl WorkTiles {
    #[inline(always)]
    fn first() -> Self {
        Self {
            place: gpu::ctaid_x(),
            parity: 0,
        }
    }

    /// The next work tile; asks at once for the one after it. All lanes of the first warp call it.
    #[inline(always)]
    fn take(&mut self, p: &HopperParams) -> Option<WorkTile> {
        let attention = &p.attention;
        loop {
            let number = p.schedule.number(attention, self.place)?;
            let mut taken = 0;
            if gpu::laneid() == 0 {
                taken = gpu::atom_global_add_u32(p.schedule.taken, 1);
            }
            self.place = gpu::nctaid_x() + gpu::shfl_sync_idx(WARP, taken, 0);
            // Numbers of a ragged batch may name no query tile.
            if let Some(work) = p.schedule.work_tile(attention, number) {
                return Some(work);
            }
        }
    }
}

/// Hands a work tile and the copies of its Q over.
#[inline(always)]
fn publish<D: HeadDim>(in_place: &HopperParams, work: Option<WorkTile>, parity: u32) {
    Memory::<D>::wait(Barrier::QEmpty, parity ^ 1);
    if gpu::laneid() != 0 {
        return;
    }
    Memory::<D>::write_work(parity, work);
    let full = Memory::<D>::barrier(Barrier::QFull);
    let Some(work) = work else {
        gpu::mbarrier_arrive(full);
        return;
    };
    gpu::mbarrier_arrive_expect_tx(full, D::TILE_BYTES);
    let rows = work.rows;
    let first = rows.start as i32 + rows.first;
    let at = [first, work.q_head as i32, rows.batch as i32];
    warpgroup::copy_tile::<D>(Memory::<D>::q(), &in_place.q_map, at, full);
}

/// The work tile that the first warp published.
#[inline(always)]
fn receive<D: HeadDim>(parity: u32) -> Option<WorkTile> {
    Memory::<D>::wait(Barrier::QFull, parity);
    let work = Memory::<D>::read_work(parity);
    Memory::<D>::arrive_warp(Barrier::QEmpty);
    work
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

/// Copies the warp's rows of a gathered tile, zero after its keys; `slot` is that of row `lane`.
#[inline(always)]
fn gather<D: HeadDim>(to: Shared<u8>, tensor: &KvTensor, tokens: Tokens, tile: KeyTile, slot: u32) {
    /// Lanes that copy a piece of a row, 16 bytes each.
    const LANES: u32 = 8;
    // Recomputed per tile: what follows from it would take registers all through the walk.
    let place = Place::of_this_thread();
    let chunk = place.lane % LANES;
    for first in 0..LANES {
        // Rows 8 apart: their chunks are permuted alike.
        let in_warp = place.lane / LANES * 8 + first;
        let row = place.warp * WARP_ROWS + in_warp;
        let slot = gpu::shfl_sync_idx(WARP, slot, in_warp);
        let bytes = if row < tile.keys { 16 } else { 0 };
        let from = tokens.at_slot(tensor, slot).add(u64::from(chunk * 8));
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
