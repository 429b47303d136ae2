//! Sampling on Hopper: `wgmma` multiplies, bulk copies bring the keys.
//!
//! ```text
//! a CTA: a panel of 256 sampled rows against the tiles (key blocks) of one split that the last of them sees
//!
//! producer, one thread:
//!     for each step: wait until the stage is empty, copy the step's tile into it
//! four consumer warpgroups of 64 rows:
//!     the rows into shared memory
//!     for each step:
//!         wait until the stage is full;  scores = rows · keysᵀ
//!         sum[row] = Σ 2^((score − reference[row]) · scale);  once more, with new references, if one is too large
//!         the stage is read no more;  total[row] += sum[row];  the tile's statistics
//!     row_lse[row] = (reference, log2 total), if it is wanted
//! ```
//!
//! The steps are the tiles that hold sinks, in split 0, ascending, for the sinks alone; then the tiles of the split, descending,
//! for key blocks without the sinks. What a row has summed up after the sinks is its statistic over them, so it needs no
//! registers of its own.
//!
//! A product is 512 cycles of the tensor cores, and its exponentials are as many of the MUFU. A warpgroup does one after the
//! other; it is the others that work meanwhile. What was tried in its place, and what it took: docs/ladder.md.
//!
//! Each tile in shared memory serves 256 rows: with 128 every multiprocessor would ask the L2 for 32 bytes a cycle, about all
//! that it has.
//!
//! # Who does what
//! Warpgroup 0 gives its registers away and its first thread produces. Warpgroup 1 + g has ranks 64·g to 64·g + 64 of the
//! panel, its warp w 16 of them. Four neighbouring lanes share a row. A warpgroup multiplies the tiles that one of its rows
//! sees, a warp sums up those that one of its own sees. If one row wants a tile again, all four warps of the warpgroup take it
//! again; the other rows find what they found before.
//!
//! # Synchronisation
//! `full[stage]` takes one arrival, of the producer, which expects the tile's bytes. `empty[stage]` takes sixteen: lane 0 of
//! each consumer warp, once its warpgroup has agreed that the sums stand, or at once where the warpgroup sees nothing of the tile. Every
//! consumer takes part in every step. A named barrier for each warpgroup: its rows are there; its sums stand. Each output has one writer.
//!
//! # Shape contract
//! [`launch_shape`], [`k_map_layout`]; head_dim as the entry says.

mod order;
mod rows;
mod sums;
mod tile_shape;

use core::marker::PhantomData;

use super::SamplingParams;
use crate::abi::{KvTensor, RowPanel, TileSlice};
use crate::gpu::{self, Shared, TensorMap, TensorMapLayout};
use crate::launch::LaunchShape;
use crate::tile::warpgroup::{
    self, D64, D128, HeadDim, PIECE_BYTES, PIECE_COLUMNS, Products, WARPGROUP, kv_map_layout,
    warpgroups_fit,
};
use crate::tile::{Bf16, F16, Float16, WARP};

use order::Steps;
use rows::{LaneMemory, Rows};
use tile_shape::{CONSUMERS, GROUP, PANEL, TILE, WARP_ROWS};

/// What sampling reads and writes on Hopper.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HopperParams {
    /// The keys, as [`k_map_layout`] has them.
    pub k_map: TensorMap,
    /// As on every GPU; of `k` only the page numbers are read, if it has some.
    pub sampling: SamplingParams,
}

/// Tiles in shared memory. Each lasts for a microsecond of work, which is about the latency of memory; 128 KB at head_dim
/// 128. A power of two.
const STAGES: u32 = 4;
const BARRIERS_BYTES: u32 = 2 * STAGES * 8;
/// The barrier of the first consumer; the others' follow.
const WARPGROUP_BARRIER: u32 = 1;
/// One warpgroup that produces, and those that consume.
pub const THREADS: u32 = (1 + CONSUMERS) * WARPGROUP;
/// 64 scores, and nearly as much again for what belongs to them.
const CONSUMER_REGISTERS: u32 = 104;
/// Page numbers and their addresses take more than 32; consumers have more than they use.
const PRODUCER_REGISTERS: u32 = 64;
const _: () = assert!(warpgroups_fit(
    THREADS,
    PRODUCER_REGISTERS,
    CONSUMER_REGISTERS
));

/// The launch of a sampling kernel on Hopper.
pub const fn launch_shape(slice: &TileSlice, head_dim: u32) -> LaunchShape {
    LaunchShape::linear(
        slice.panel_ctas(PANEL),
        THREADS,
        (STAGES * TILE + PANEL) * head_dim * 2 + BARRIERS_BYTES + THREADS * LaneMemory::BYTES,
    )
}

/// The layout of [`HopperParams::k_map`]: `[batch, kv_heads, tokens]` tokens, of a page where keys are paged.
pub const fn k_map_layout(
    k: &KvTensor,
    head_dim: u32,
    batch_heads_tokens: [u32; 3],
) -> TensorMapLayout {
    kv_map_layout(k, head_dim, batch_heads_tokens)
}

/// The ring of tiles in shared memory. Steps are counted from 0; step s has stage s mod [`STAGES`].
#[derive(Clone, Copy)]
struct Ring<D> {
    tiles: Shared<u8>,
    head_dim: PhantomData<D>,
}

impl<D: HeadDim> Ring<D> {
    #[inline(always)]
    fn tile(self, step: u32) -> Shared<u8> {
        self.tiles.byte_add(step % STAGES * D::TILE_BYTES)
    }

    #[inline(always)]
    fn full(self, step: u32) -> Shared<u64> {
        let barriers = self.queries(PANEL / GROUP).cast();
        barriers.add(step % STAGES)
    }

    #[inline(always)]
    fn empty(self, step: u32) -> Shared<u64> {
        self.full(step).add(STAGES)
    }

    /// The queries of a group, behind the tiles.
    #[inline(always)]
    fn queries(self, group: u32) -> Shared<u8> {
        self.tiles
            .byte_add(STAGES * D::TILE_BYTES + group * D::TILE_BYTES * GROUP / TILE)
    }

    /// What threads keep of their rows, behind the barriers.
    #[inline(always)]
    fn lanes(self) -> Shared<u32> {
        self.queries(PANEL / GROUP).byte_add(BARRIERS_BYTES).cast()
    }

    /// The parity of the phase in which the step's stage is full.
    #[inline(always)]
    fn parity(step: u32) -> u32 {
        step / STAGES % 2
    }

    #[inline(always)]
    #[track_caller]
    fn wait(self, step: u32) {
        gpu::mbarrier_wait_parity(self.full(step), Self::parity(step));
    }

    /// The warp reads the step's tile no more.
    #[inline(always)]
    #[track_caller]
    fn release(self, step: u32) {
        if gpu::laneid() == 0 {
            gpu::mbarrier_arrive(self.empty(step));
        }
    }
}

#[inline(always)]
fn sample<T: Float16, D: Products<T>>(p: &HopperParams, in_place: &HopperParams) {
    let Some(panel) = p.sampling.slice.panel(gpu::ctaid_x(), PANEL) else {
        return;
    };
    let steps = Steps::new(&p.sampling, &panel);
    let ring = Ring::<D> {
        tiles: gpu::dynamic_shared(),
        head_dim: PhantomData,
    };
    if gpu::tid_x() == 0 {
        for stage in 0..STAGES {
            gpu::mbarrier_init(ring.full(stage), 1);
            gpu::mbarrier_init(ring.empty(stage), CONSUMERS * WARPGROUP / 32);
        }
        gpu::fence_mbarrier_init();
    }
    gpu::bar_sync(0);
    // A shuffle, so that the compiler knows that a warp does not diverge.
    let role = gpu::shfl_sync_idx(WARP, gpu::tid_x() / WARPGROUP, 0);
    if role == 0 {
        gpu::setmaxnreg_dec::<PRODUCER_REGISTERS>();
        if gpu::tid_x() == 0 {
            produce(&p.sampling.k, &in_place.k_map, &panel, steps, ring);
        }
    } else {
        gpu::setmaxnreg_inc::<CONSUMER_REGISTERS>();
        consume::<T, D>(&p.sampling, &panel, steps, ring, role - 1);
    }
}

#[inline(always)]
fn produce<D: HeadDim>(
    k: &KvTensor,
    map: &TensorMap,
    panel: &RowPanel,
    steps: Steps,
    ring: Ring<D>,
) {
    // Of the sequence only what its kind of keys needs, for registers are few.
    let sequence = &panel.sequence;
    let (keys, place) = if k.is_paged() {
        (sequence.k_len, sequence.index)
    } else {
        (sequence.k_start, sequence.batch)
    };
    let mut step = 0;
    while step < steps.count() {
        // The first wait of each stage is for the phase before the first, which counts as complete.
        gpu::mbarrier_wait_parity(ring.empty(step), Ring::<D>::parity(step) ^ 1);
        let tile = steps.tile(step);
        if k.is_paged() {
            copy_pages(k, map, (keys, place, panel.kv_head), tile, ring, step);
        } else {
            gpu::mbarrier_arrive_expect_tx(ring.full(step), D::TILE_BYTES);
            // In a packed batch the tile's end may be the next sequence's: no row sees it.
            let first_key = keys + tile * TILE;
            let at = [first_key, panel.kv_head, place].map(|at| at as i32);
            warpgroup::copy_tile::<D>(ring.tile(step), map, at, ring.full(step));
        }
        step += 1;
    }
}

/// Copies the pages of a tile that hold keys of the sequence. What is left of the tile stays as it was: no row sees it.
#[inline(always)]
fn copy_pages<D: HeadDim>(
    k: &KvTensor,
    map: &TensorMap,
    (k_len, sequence, kv_head): (u32, u32, u32),
    tile: u32,
    ring: Ring<D>,
    step: u32,
) {
    let first_key = tile * TILE;
    let keys = (k_len - first_key).min(TILE);
    let pages = (keys + k.last_in_page()) >> k.page_log2;
    let page_row_bytes = (k.last_in_page() + 1) * PIECE_ROW_BYTES;
    let full = ring.full(step);
    gpu::mbarrier_arrive_expect_tx(full, pages * page_row_bytes * D::PIECES);
    let numbers = k.pages_of(sequence).add((first_key >> k.page_log2).into());
    let mut page = 0;
    while page < pages {
        let number = gpu::ld_global_nc(numbers.add(page.into()));
        for piece in 0..D::PIECES {
            let to = ring
                .tile(step)
                .byte_add(piece * PIECE_BYTES + page * page_row_bytes);
            let column = (piece * PIECE_COLUMNS) as i32;
            let at = [column, 0, kv_head as i32, number as i32];
            gpu::cp_async_bulk_tensor_4d_shared_global(to, map, at, full);
        }
        // Not unrolled: the producer has registers for one page at a time.
        page = gpu::opaque(u64::from(page)) as u32 + 1;
    }
}

/// Bytes of a row of a tile's piece.
const PIECE_ROW_BYTES: u32 = PIECE_BYTES / TILE;

/// The address through a shuffle: the compiler then knows that it is the whole warp's, and keeps it in a uniform register, which products
/// take their descriptors from.
#[inline(always)]
fn of_warp(at: Shared<u8>) -> Shared<u8> {
    Shared::from_address(gpu::shfl_sync_idx(WARP, at.address(), 0))
}

#[inline(always)]
fn consume<T: Float16, D: Products<T>>(
    p: &SamplingParams,
    panel: &RowPanel,
    steps: Steps,
    ring: Ring<D>,
    consumer: u32,
) {
    let first_rank = consumer * GROUP;
    let warp = gpu::shfl_sync_idx(WARP, gpu::tid_x() / 32 % 4, 0);
    let mut rows = Rows::new(panel, first_rank + warp * WARP_ROWS, ring.lanes());
    let queries = of_warp(ring.queries(consumer));
    rows::copy_queries::<T, D>(
        p,
        panel,
        first_rank + warp * WARP_ROWS,
        queries,
        ring.lanes(),
    );
    gpu::fence_proxy_async_shared_cta();
    let barrier = WARPGROUP_BARRIER + consumer;
    gpu::bar_sync_count(barrier, WARPGROUP);

    let first_seen = steps.first_seen(panel, first_rank, first_rank + GROUP - 1);
    let steps = steps.of_warp();
    let mut step = 0;
    while step < steps.count() {
        let tile = of_warp(ring.tile(step));
        ring.wait(step);
        if step < steps.for_sinks || step >= first_seen {
            let mut again = false;
            let sums = loop {
                let mut scores = D::scores_of_group(queries, tile);
                gpu::wgmma_wait_group::<0, _>(&mut scores);
                let sums = rows.weigh(p, steps, step, &mut scores, again, ring.lanes());
                // Twice at most, whatever the scores: what is too large after that is so for no reference.
                if again || !gpu::bar_red_or_count(barrier, WARPGROUP, sums::too_large(sums)) {
                    break sums;
                }
                rows::note_raised(ring.lanes(), sums);
                again = true;
            };
            ring.release(step);
            rows.account(p, steps, step, sums, ring.lanes());
        } else {
            ring.release(step);
        }
        step += 1;
    }
    // The split again, from what has been kept of it.
    rows.finish(p, steps.first_tile() / p.slice.split_blocks, ring.lanes());
}

crate::entry! {
    sm_90a maps:
    /// Sampling of `bf16`, head_dim 64, on Hopper.
    BF16_D64, sampling_sm90_bf16_d64 = sample::<Bf16, D64>, HopperParams
}
crate::entry! {
    sm_90a maps:
    /// Sampling of `bf16`, head_dim 128, on Hopper.
    BF16_D128, sampling_sm90_bf16_d128 = sample::<Bf16, D128>, HopperParams
}
crate::entry! {
    sm_90a maps:
    /// Sampling of `f16`, head_dim 64, on Hopper.
    F16_D64, sampling_sm90_f16_d64 = sample::<F16, D64>, HopperParams
}
crate::entry! {
    sm_90a maps:
    /// Sampling of `f16`, head_dim 128, on Hopper.
    F16_D128, sampling_sm90_f16_d128 = sample::<F16, D128>, HopperParams
}
