//! Block-sparse FlashAttention for Hopper: `wgmma` on tiles that TMA loads.
//!
//! ```text
//! a persistent CTA: 1 producer warpgroup, 2 consumer warpgroups
//!
//! producers, for each work tile that the schedule gives:
//!     Q <- its 128 rows
//!     for each tile of 128 keys: diagonal block, listed blocks, gathered keys packed 128 at a time
//!         K[stage], V[stage] <- the tile
//!
//! consumers, 64 rows each, for each work tile:
//!     queries = Q, in registers                                       Q is free for the next one
//!     S = queries · K[0]ᵀ;  P = weights of S
//!     for each tile but the first:
//!         issue S' = queries · K[tile]ᵀ, then O += P · V[tile − 1]    both in flight at once
//!         wait for S';  mask and maxima of S'                         … while O is computed
//!         wait for O;  V[tile − 1] is free;  O = O · rescale
//!         P = weights of S'                                           … while the other consumer multiplies
//!     O += P · V[last];  O / sum, lse = max + ln sum
//! ```
//!
//! # Who does what
//! Thread 0 issues the bulk copies of Q and of contiguous tiles. Gathered tiles, and those whose rows do not all hold a key while the
//! tensor goes on behind them, are gathered by all four producer warps, each the 32
//! rows of the tile whose keys its own queue names, so that they need no barrier: every producer warp walks the same lists. 56
//! registers are enough for that; the rest go to the consumers, whose S, O, P and queries take 192 of their 224.
//!
//! # Synchronisation
//! All by mbarriers, in `shared::Barrier`: a *full* and an *empty* one for Q and for each stage of K and of V. What a stage holds
//! (how many keys, whether it is the diagonal block, whether it is the last) is written beside it before it becomes full. The work
//! tile goes with Q, in two slots by turns: consumers read it again for their output, when the next one is there already. Generic writes to a tile are fenced before they are handed over, for the tensor cores read through another proxy.
//!
//! # Scheduling
//! Work tiles take very different times. Blocks take them one by one from a counter, the longest first: see [`schedule`].
//!
//! # Shape contract
//! [`HopperParams`] says what each address must hold; [`launch_shape`] the grid, the threads and the shared memory. head_dim is 64
//! or 128, and must be the entry's. [`schedule`] has run before.

mod consumer;
mod lane_rows;
mod nonfinite;
mod output;
mod params;
mod producer;
pub mod schedule;
mod shared;

use super::{COPY_THREADS, SparseFlashParams};
use crate::gpu::{self, FULL_MASK};
use crate::launch::LaunchShape;
use crate::params::BLOCK;
use crate::tile::warpgroup::{D64, D128, Products, TILE_ROWS, WARPGROUP, warpgroups_fit};
pub use crate::tile::warpgroup::{kv_map_layout, map_layout};
use crate::tile::{Bf16, F16, Float16};
pub use params::HopperParams;
use params::{CONSUMER_ROWS, CONSUMERS};

/// Threads of a block.
pub const THREADS: u32 = COPY_THREADS + CONSUMERS * WARPGROUP;

/// Registers of a producer and of a consumer: together what a multiprocessor has, in steps of 8.
const PRODUCER_REGISTERS: u32 = 56;
const CONSUMER_REGISTERS: u32 = 224;

const _: () = assert!(WARPGROUP == COPY_THREADS && CONSUMER_ROWS == 64 && TILE_ROWS == BLOCK);
const _: () = assert!(warpgroups_fit(
    THREADS,
    PRODUCER_REGISTERS,
    CONSUMER_REGISTERS
));

/// The launch: `multiprocessors` blocks, or as many as there are work tiles, and at least one.
pub const fn launch_shape(p: &SparseFlashParams, multiprocessors: u32) -> LaunchShape {
    let tiles = schedule::work_tiles(p);
    let blocks = if tiles == 0 {
        1
    } else if tiles < multiprocessors {
        tiles
    } else {
        multiprocessors
    };
    LaunchShape::linear(blocks, THREADS, shared::bytes(p))
}

#[inline(always)]
fn sparse_flash<T: Float16, D: Products<T>>(p: &HopperParams, in_place: &HopperParams) {
    shared::Memory::<D>::initialise();
    gpu::bar_sync(0);
    // Through a shuffle: the compiler then knows that a warp is of one kind.
    if gpu::shfl_sync_idx(FULL_MASK, gpu::tid_x() / WARPGROUP, 0) == 0 {
        gpu::setmaxnreg_dec::<PRODUCER_REGISTERS>();
        producer::produce::<D>(p, in_place);
    } else {
        gpu::setmaxnreg_inc::<CONSUMER_REGISTERS>();
        consumer::consume::<T, D>(p);
    }
}

crate::entry! {
    sm_90a maps:
    /// Attention in `bf16` with head_dim 64.
    BF16_D64, sparse_flash_sm90_bf16_d64 = sparse_flash::<Bf16, D64>, HopperParams
}
crate::entry! {
    sm_90a maps:
    /// Attention in `bf16` with head_dim 128.
    BF16_D128, sparse_flash_sm90_bf16_d128 = sparse_flash::<Bf16, D128>, HopperParams
}
crate::entry! {
    sm_90a maps:
    /// Attention in `f16` with head_dim 64.
    F16_D64, sparse_flash_sm90_f16_d64 = sparse_flash::<F16, D64>, HopperParams
}
crate::entry! {
    sm_90a maps:
    /// Attention in `f16` with head_dim 128.
    F16_D128, sparse_flash_sm90_f16_d128 = sparse_flash::<F16, D128>, HopperParams
}
