//! Block-sparse FlashAttention with `mma.sync`, `ldmatrix` and `cp.async`, for sm_80 and everything after it.
//!
//! ```text
//! one CTA = one work tile:                                        128 rows
//!     mark the listed key blocks in a bitmap                      only if the head has gathered keys
//!     K <- the first tile of 64 keys
//!     for each tile: diagonal block, listed blocks, gathered keys packed 64 at a time
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
//! once a tile (its *context*). All 128 threads copy tiles, 16 bytes at a time with `cp.async`; rows past
//! the end are zero-filled. Each warp filters the head's stripes by itself, 32 at a time with a
//! ballot, into its own queue of packed keys, so that gathered keys need no barrier of the block. A
//! warp whose rows see nothing of a tile, or that has no rows, only copies.
//!
//! # Synchronisation
//! K and V have one buffer each, and the tiles flow through both alternately: V arrives while S is
//! computed, the next K while P·V is. Two barriers a tile. After the first, K is visible to all
//! warps and V's buffer is free (its last readers were before the barrier); after the second, V is
//! visible and K's buffer is free. The second barrier also reduces whether V has elements that are not finite, below.
//!
//! Elements of V that are not finite (see [`sparse_flash`](super)): each thread looks through the chunks of the diagonal block that
//! it copied.
//!
//! # Shape contract
//! [`SparseFlashParams`] says what each address must hold; [`launch_shape`] the grid, the threads and
//! the shared memory. head_dim is 64 or 128, and must be the entry's.

mod kernel;
mod nonfinite;
mod query;
mod stage;
mod tile_shape;

use super::SparseFlashParams;
use crate::launch::LaunchShape;
use crate::tile::{Bf16, F16};
use kernel::sparse_flash;
use tile_shape::{KEY_TILES, STRIPS, TILE_KEYS, WARP_ROWS};
pub use tile_shape::{MIN_BLOCKS_PER_SM, THREADS};

/// The launch: x counts query tiles from the last to the first, which in each causal sequence is from the heaviest to the
/// lightest; y counts query heads.
pub const fn launch_shape(p: &SparseFlashParams) -> LaunchShape {
    let tiles = if p.tiles() == 0 { 1 } else { p.tiles() };
    LaunchShape {
        grid: [tiles, p.q_heads, 1],
        block: [THREADS, 1, 1],
        shared_bytes: stage::shared_bytes(p),
    }
}

crate::entry! {
    /// Attention in `bf16` with head_dim 64.
    BF16_D64, sparse_flash_bf16_d64 = sparse_flash::<Bf16, 8>, SparseFlashParams
}
crate::entry! {
    /// Attention in `bf16` with head_dim 128.
    BF16_D128, sparse_flash_bf16_d128 = sparse_flash::<Bf16, 16>, SparseFlashParams
}
crate::entry! {
    /// Attention in `f16` with head_dim 64.
    F16_D64, sparse_flash_f16_d64 = sparse_flash::<F16, 8>, SparseFlashParams
}
crate::entry! {
    /// Attention in `f16` with head_dim 128.
    F16_D128, sparse_flash_f16_d128 = sparse_flash::<F16, 16>, SparseFlashParams
}
