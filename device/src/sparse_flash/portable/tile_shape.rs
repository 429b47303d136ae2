//! How a CTA divides a tile.

use super::super::COPY_THREADS;
use crate::params::BLOCK;

/// Threads of a block. Four warps of 32 rows: with fewer rows a warp, reading K and V fragments
/// from shared memory would cost more than the products themselves; with more, S and O would not
/// fit in 255 registers.
pub const THREADS: u32 = COPY_THREADS;

/// Blocks of threads that a multiprocessor should hold, so that one's softmax hides under the
/// other's products. Registers (2 × 128 × 255) and shared memory (2 × 66 KiB) allow it from sm_80 on.
pub const MIN_BLOCKS_PER_SM: u32 = 2;

/// Query rows of a warp.
pub(super) const WARP_ROWS: u32 = BLOCK / (THREADS / 32);

/// Strips of 16 rows of a warp.
pub(super) const STRIPS: usize = WARP_ROWS as usize / 16;

/// Keys of a tile: half a key block. The scores of 32 × 64 take 64 registers beside the 128 of O.
pub(super) const TILE_KEYS: u32 = 64;

/// Column tiles of a warp's scores.
pub(super) const KEY_TILES: usize = TILE_KEYS as usize / 8;

const _: () = assert!(BLOCK == 2 * TILE_KEYS && WARP_ROWS == 32);
