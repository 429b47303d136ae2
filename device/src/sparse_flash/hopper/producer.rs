//! The producers: which work tiles, which tiles of keys, and their copies.

use super::super::SparseFlashParams;
use super::super::walk::{KeyTile, KeyWalk};
use super::super::warp_lane::WarpLane;
use super::super::work::{Tokens, WorkTile};
use super::HopperParams;
use super::shared::{Barrier, Memory, PipelineState, TileInfo};
use crate::abi::KvTensor;
use crate::gpu::{self, Global, Shared, TensorMap};
use crate::params::BLOCK;
use crate::tile::warpgroup::{self, HeadDim, PIECE_BYTES, PIECE_COLUMNS, TILE_ROWS};
use crate::tile::{SwizzledTile, WARP};

/// Rows of a gathered tile that a warp copies: a lane each knows its key.
const WARP_ROWS: u32 = TILE_ROWS / 4;

const _: () = assert!(WARP_ROWS == 32);

/// Bytes of a row of a piece.
const PIECE_ROW_BYTES: u32 = PIECE_COLUMNS * 2;

/// The producer warpgroup's work.
#[inline(always)]
pub(super) fn produce<D: HeadDim>(p: &HopperParams, in_place: &HopperParams) {
    let attention = &p.attention;
    let mut state = PipelineState::FIRST;
    let mut tiles = WorkTiles::first();
    loop {
        let warp_lane = WarpLane::of_this_thread();
        let memory = Memory::<D>::of_producer(warp_lane);
        let slot = tiles.parity;
        let has_work = if warp_lane.warp == 0 {
            tiles.publish::<D>(p, in_place)
        } else {
            receive::<D>(slot)
        };
        tiles.parity ^= 1;
        if !has_work {
            return;
        }
        let work = || Memory::<D>::work_of_slot(slot);
        let (mut walk, mut tile) = KeyWalk::<TILE_ROWS>::new(attention, memory, work);
        loop {
            // Recomputed per tile: what follows from it would take registers all through the walk.
            let warp_lane = WarpLane::of_this_thread();
            let memory = Memory::<D>::of_producer(warp_lane);
            let context = memory.context;
            // The lane's key, before the walk puts the next tile into the queue.
            let key = if tile.is_gathered() {
                gpu::ld_shared(
                    memory
                        .queue
                        .add(warp_lane.warp * WARP_ROWS + warp_lane.lane),
                )
            } else {
                tile.start + warp_lane.warp * WARP_ROWS + warp_lane.lane
            };
            let next = if tile.keys == 0 {
                tile
            } else {
                walk.next(attention, memory, tile)
            };
            let own = attention.sequences.is_causal()
                && !tile.is_gathered()
                && tile.start >= context.query_block() * BLOCK;
            let info = TileInfo::new(tile.keys, own, next.keys == 0);
            // All that a copy needs, before the stage is free.
            let at = context.place_of_key(tile.start);
            Memory::<D>::wait(Barrier::KEmpty(state.stage), state.parity ^ 1);
            if gpu::tid_x() == 0 {
                Memory::<D>::write_tile_info(state.stage, info);
            }
            let [k, v] = [Memory::<D>::k, Memory::<D>::v].map(|at| at(state.stage));
            let [k_full, v_full] = [Barrier::KFull(state.stage), Barrier::VFull(state.stage)];
            if is_copied_by_key(attention, tile) {
                gather::<D>(k, &attention.k, context.k(attention), tile, key);
                Memory::<D>::wait(Barrier::VEmpty(state.stage), state.parity ^ 1);
                gather::<D>(v, &attention.v, context.v(attention), tile, key);
                gpu::cp_async_wait_group::<1>();
                hand_over::<D>(k_full);
                gpu::cp_async_wait_group::<0>();
                hand_over::<D>(v_full);
            } else {
                if attention.k.is_paged() {
                    let pages = context.k(attention).pages;
                    load_pages::<D>(
                        k,
                        &attention.k,
                        &in_place.k_map,
                        pages,
                        [tile.start as i32, at[1]],
                        k_full,
                    );
                } else {
                    load::<D>(k, &in_place.k_map, at, k_full);
                }
                Memory::<D>::wait(Barrier::VEmpty(state.stage), state.parity ^ 1);
                if attention.v.is_paged() {
                    let pages = context.v(attention).pages;
                    load_pages::<D>(
                        v,
                        &attention.v,
                        &in_place.v_map,
                        pages,
                        [tile.start as i32, at[1]],
                        v_full,
                    );
                } else {
                    load::<D>(v, &in_place.v_map, at, v_full);
                }
            }
            state = state.next::<D>();
            if next.keys == 0 {
                break;
            }
            tile = next;
        }
    }
}

/// Whether a tile is copied key by key. A contiguous one is where not all of its rows hold a key and the tensor goes on behind them.
#[inline(always)]
fn is_copied_by_key(p: &SparseFlashParams, tile: KeyTile) -> bool {
    tile.is_gathered() || p.keys_are_followed() && tile.keys < TILE_ROWS
}

/// The work tiles of this block, as its first lane takes them.
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

    /// Hands the next work tile and the copies of its Q over; whether there is one. All lanes of the first warp call it.
    #[inline(always)]
    fn publish<D: HeadDim>(&mut self, p: &HopperParams, in_place: &HopperParams) -> bool {
        let slot = self.parity;
        Memory::<D>::wait(Barrier::QEmpty, slot ^ 1);
        if gpu::laneid() == 0 {
            let full = Memory::<D>::barrier(Barrier::QFull);
            let publish = |work: &WorkTile| {
                Memory::<D>::write_work(slot, Some(work));
                gpu::mbarrier_arrive_expect_tx(full, D::TILE_BYTES);
                let rows = work.rows;
                let first = rows.start as i32 + rows.first;
                let at = [first, work.q_head as i32, rows.batch as i32];
                warpgroup::copy_tile::<D>(Memory::<D>::q(), &in_place.q_map, at, full);
            };
            loop {
                let Some(number) = p.schedule.number(&p.attention, self.place) else {
                    Memory::<D>::write_work(slot, None);
                    gpu::mbarrier_arrive(full);
                    break;
                };
                // Asked for at once, for the next time.
                self.place = gpu::nctaid_x() + gpu::atom_global_add_u32(p.schedule.taken, 1);
                // Numbers of a ragged batch may name no query tile.
                if p.schedule.with_work_tile(&p.attention, number, publish) {
                    break;
                }
            }
        }
        gpu::bar_warp_sync(WARP);
        Memory::<D>::has_work(slot)
    }
}

/// Whether the first warp published a work tile.
#[inline(always)]
fn receive<D: HeadDim>(parity: u32) -> bool {
    Memory::<D>::wait(Barrier::QFull, parity);
    let has_work = Memory::<D>::has_work(parity);
    Memory::<D>::arrive_warp(Barrier::QEmpty);
    has_work
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

/// The first thread copies a whole tile page by page, whole warps arrive.
#[inline(always)]
fn load_pages<D: HeadDim>(
    to: Shared<u8>,
    tensor: &KvTensor,
    map: &TensorMap,
    pages: Global<u32>,
    [token, head]: [i32; 2],
    full: Barrier,
) {
    gpu::bar_warp_sync(WARP);
    let full = Memory::<D>::barrier(full);
    let lane = gpu::laneid();
    if gpu::shfl_sync_idx(WARP, gpu::tid_x() / 32, 0) != 0 {
        if lane == 0 {
            gpu::mbarrier_arrive(full);
        }
        return;
    }
    let count = TILE_ROWS >> tensor.page_log2;
    let mut page = 0;
    if lane < count {
        let first = token as u32 >> tensor.page_log2;
        page = gpu::ld_global_nc(pages.add((first + lane).into()));
    }
    if lane == 0 {
        gpu::mbarrier_arrive_expect_tx(full, D::TILE_BYTES);
    }
    let mut index = 0;
    while index < count {
        let page = gpu::shfl_sync_idx(WARP, page, index) as i32;
        if lane == 0 {
            let rows = to.byte_add((index << tensor.page_log2) * PIECE_ROW_BYTES);
            warpgroup::copy_tile::<D>(rows, map, [0, head, page], full);
        }
        index += 1;
    }
}

/// Copies the warp's rows of a gathered tile, zero after its keys; `key` is that of row `lane`.
#[inline(always)]
fn gather<D: HeadDim>(to: Shared<u8>, tensor: &KvTensor, tokens: Tokens, tile: KeyTile, key: u32) {
    /// Lanes that copy a piece of a row, 16 bytes each.
    const LANES: u32 = 8;
    // Recomputed per tile: what follows from it would take registers all through the walk.
    let warp_lane = WarpLane::of_this_thread();
    let chunk = warp_lane.lane % LANES;
    // Rows after the tile's keys have no page.
    let slot = if warp_lane.warp * WARP_ROWS + warp_lane.lane < tile.keys {
        tokens.slot(tensor, key)
    } else {
        0
    };
    for first in 0..LANES {
        // Rows 8 apart: their chunks are permuted alike.
        let in_warp = warp_lane.lane / LANES * 8 + first;
        let row = warp_lane.warp * WARP_ROWS + in_warp;
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
