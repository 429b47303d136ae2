//! Block-sparse FlashAttention with `mma.sync`: O and its log-sum-exp over a selection, and dense as
//! the selection of everything.
//!
//! Query row `i` attends to key `j` iff it sees it (see [`params`](crate::params)) and `j`'s key
//! block is listed for `i`'s query block, or `j` is one of the head's *stripes*, or `j < sinks`. A
//! causal query block always attends to its own key block, listed or not. Keys that only a stripe or
//! a sink names are *loose*; a key that several name counts once.
//!
//! ```text
//! one block of threads = one query block of one head:             128 rows
//!     mark the listed key blocks in a bitmap                      only if the head has loose keys
//!     K <- the first tile of 64 keys
//!     for each tile: own block, listed blocks, loose keys packed 64 at a time
//!         wait for K          barrier        V <- this tile
//!         S = Q·Kᵀ, mask
//!         wait for V          barrier        K <- the next tile
//!         P = online softmax of S;  O = O·rescale + P·V
//!     O / sum, lse = max + ln sum
//! ```
//!
//! # Who does what
//! Four warps, each with 32 query rows (two strips of m16n8k16): S and O live in its registers, which
//! they all but fill (192 of 255), so Q stays in shared memory, and so does what a warp needs only
//! once a tile (its *record*). All 128 threads copy tiles, 16 bytes at a time with `cp.async`; rows past
//! the end are zero-filled. Each warp filters the head's stripes by itself, 32 at a time with a
//! ballot, into its own queue of packed keys, so that loose keys need no barrier of the block. A
//! warp whose rows see nothing of a tile, or that has no rows, only copies.
//!
//! # Synchronisation
//! K and V have one buffer each, and the tiles flow through both alternately: V arrives while S is
//! computed, the next K while P·V is. Two barriers a tile. After the first, K is visible to all
//! warps and V's buffer is free (its last readers were before the barrier); after the second, V is
//! visible and K's buffer is free. The second barrier also reduces whether V has poison, below.
//!
//! # The mask is exact
//! Scores of masked keys become −∞ whatever they were, and padding is zero. That leaves 0·V of
//! masked keys: with NaN or infinity in V it would reach rows that do not see the key. It can only
//! happen in the own key block, whose tiles rows see in part. There each thread looks through the
//! chunks of V that it copied, sets such elements to zero, and if there was one, its products are
//! added separately to the rows that do see it, from global memory.
//!
//! # Shape contract
//! [`SparseFlashParams`] says what each address must hold; [`SparseFlashParams::launch_shape`] the
//! grid, the threads and the shared memory. head_dim is 64 or 128, and must be the entry's.
//! Every element of O and every log-sum-exp is written, once; rows that attend to nothing get O = 0
//! and lse = −∞. A query block's result depends only on its own lists, so it has the same bits in
//! every run, whatever the rest of the problem.

mod kernel;
mod loose;
mod poison;
mod query;
mod record;
mod stage;
mod walk;

use crate::gpu::Global;
use crate::params::{BLOCK, LaunchShape, ProblemSizes, TensorArg};
use crate::tile::{Bf16, F16};
use kernel::sparse_flash;

/// Threads of a block. Four warps of 32 rows: with fewer rows a warp, reading K and V fragments
/// from shared memory would cost more than the products themselves; with more, S and O would not
/// fit in 255 registers.
pub const THREADS: u32 = 128;

/// Blocks of threads that a multiprocessor should hold, so that one's softmax hides under the
/// other's products. Registers (2 × 128 × 255) and shared memory (2 × 66 KiB) allow it from sm_80 on.
pub const MIN_BLOCKS_PER_SM: u32 = 2;

/// Query rows of a warp.
const WARP_ROWS: u32 = BLOCK / (THREADS / 32);

/// Strips of 16 rows of a warp.
const STRIPS: usize = WARP_ROWS as usize / 16;

/// Keys of a tile: half a key block. The scores of 32 × 64 take 64 registers beside the 128 of O.
const TILE_KEYS: u32 = 64;

/// Column tiles of a warp's scores.
const KEY_TILES: usize = TILE_KEYS as usize / 8;

/// Loose keys that a warp's queue holds: a tile, and what the last 32 candidates left over.
const QUEUE_KEYS: u32 = TILE_KEYS + 32;

const _: () = assert!(BLOCK == 2 * TILE_KEYS && WARP_ROWS == 32);

/// The parameters of a launch.
///
/// Head indices `bh` below are `batch · q_heads + head`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SparseFlashParams {
    /// The problem.
    pub sizes: ProblemSizes,
    /// softmax_scale · log2(e): any finite number.
    pub scale_log2: f32,
    /// The first keys, that every row keeps.
    pub sinks: u32,
    /// 1 where O is `f32`, 0 where it has the inputs' type.
    pub output_f32: u32,
    /// [batch, q_heads, q_len, head_dim] of the entry's type.
    pub q: TensorArg,
    /// [batch, kv_heads, k_len, head_dim] of the entry's type.
    pub k: TensorArg,
    /// [batch, kv_heads, k_len, head_dim] of the entry's type.
    pub v: TensorArg,
    /// [batch, q_heads, q_len, head_dim].
    pub o: TensorArg,
    /// `f32` [batch, q_heads, q_len]: natural logarithms.
    pub lse: Global<f32>,
    /// `u32` (bh, query block, list_capacity): ascending key blocks, without repeats. Null: every head is
    /// dense, and nothing below is read.
    pub lists: Global<u32>,
    /// `u32` (bh, query block): how many key blocks are listed.
    pub list_count: Global<u32>,
    /// Entries from a list to the next.
    pub list_capacity: u32,
    /// Entries from a head's stripes to the next head's.
    pub stripe_capacity: u32,
    /// `u32` (bh, stripe_capacity): ascending keys, without repeats. Null: none.
    pub stripes: Global<u32>,
    /// Of each `bh`: how many stripes the head has. Null if and only if `stripes` is.
    pub stripe_count: Global<u32>,
    /// Of each `bh`: 1 where the head is dense, and its lists, stripes and sinks do not count. Null: none is.
    pub dense: Global<u32>,
}

impl SparseFlashParams {
    /// The launch: x counts query blocks from the last, the heaviest, to the first, and then blocks of
    /// rows that see nothing; y counts query heads, z sequences.
    pub const fn launch_shape(&self) -> LaunchShape {
        let sizes = &self.sizes;
        LaunchShape {
            grid: [
                query_tiles(sizes) + sizes.blind_rows().div_ceil(BLOCK),
                sizes.q_heads,
                sizes.batch,
            ],
            block: [THREADS, 1, 1],
            shared_bytes: stage::shared_bytes(sizes),
        }
    }
}

/// Query blocks that hold a row.
const fn query_tiles(sizes: &ProblemSizes) -> u32 {
    sizes.query_blocks() - sizes.first_query_block()
}

crate::entry! {
    /// Attention in `bf16` with head_dim 64.
    SPARSE_FLASH_BF16_D64, sparse_flash_bf16_d64 = sparse_flash::<Bf16, 8>, SparseFlashParams
}
crate::entry! {
    /// Attention in `bf16` with head_dim 128.
    SPARSE_FLASH_BF16_D128, sparse_flash_bf16_d128 = sparse_flash::<Bf16, 16>, SparseFlashParams
}
crate::entry! {
    /// Attention in `f16` with head_dim 64.
    SPARSE_FLASH_F16_D64, sparse_flash_f16_d64 = sparse_flash::<F16, 8>, SparseFlashParams
}
crate::entry! {
    /// Attention in `f16` with head_dim 128.
    SPARSE_FLASH_F16_D128, sparse_flash_f16_d128 = sparse_flash::<F16, 16>, SparseFlashParams
}
