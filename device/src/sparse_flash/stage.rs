//! Shared memory: where everything lies, and the copies that fill it.
//!
//! ```text
//! 4 queues of loose keys | K tile | V tile | Q block | bitmap of listed key blocks
//! ```

use super::loose::LooseMemory;
use super::walk::{KeyTile, KeyWalk};
use super::{QUEUE_KEYS, THREADS, TILE_KEYS};
use crate::gpu::{self, Global, Shared};
use crate::params::{BLOCK, ProblemSizes};
use crate::tile::SwizzledTile;

const QUEUE_BYTES: u32 = QUEUE_KEYS * 4;
const QUEUES_BYTES: u32 = THREADS / 32 * QUEUE_BYTES;

/// Swizzled tiles start at multiples of their rows' size, which is at most 256 bytes.
const _: () = assert!(QUEUES_BYTES.is_multiple_of(256));

/// Dynamic shared memory of a launch.
pub(super) const fn shared_bytes(sizes: &ProblemSizes) -> u32 {
    let row_bytes = sizes.head_dim * 2;
    let bitmap_bytes = sizes.key_blocks().div_ceil(32) * 4;
    QUEUES_BYTES + (2 * TILE_KEYS + BLOCK) * row_bytes + bitmap_bytes
}

/// The tiles in shared memory, for rows of `CHUNKS` chunks of 16 bytes.
#[derive(Clone, Copy)]
pub(super) struct Stage<const CHUNKS: usize> {
    pub k: SwizzledTile<CHUNKS>,
    pub v: SwizzledTile<CHUNKS>,
    pub q: SwizzledTile<CHUNKS>,
    /// This warp's queue, and the block's bitmap.
    pub loose: LooseMemory,
}

impl<const CHUNKS: usize> Stage<CHUNKS> {
    const TILE_BYTES: u32 = TILE_KEYS * SwizzledTile::<CHUNKS>::ROW_BYTES;

    #[inline(always)]
    pub fn new(warp: u32) -> Self {
        let base = gpu::dynamic_shared();
        let tiles = base.byte_add(QUEUES_BYTES);
        Self {
            k: SwizzledTile::new(tiles),
            v: SwizzledTile::new(tiles.byte_add(Self::TILE_BYTES)),
            q: SwizzledTile::new(tiles.byte_add(2 * Self::TILE_BYTES)),
            loose: LooseMemory {
                queue: base.byte_add(warp * QUEUE_BYTES).cast(),
                listed: tiles
                    .byte_add(2 * Self::TILE_BYTES + BLOCK * SwizzledTile::<CHUNKS>::ROW_BYTES)
                    .cast(),
            },
        }
    }
}

/// The chunks of a tile that this thread copies: the same column of every `STEP`th row.
#[derive(Clone, Copy)]
pub(super) struct ThreadChunks<const CHUNKS: usize> {
    pub chunk: u32,
    pub first_row: u32,
}

impl<const CHUNKS: usize> ThreadChunks<CHUNKS> {
    /// Rows that the block copies at once.
    pub const STEP: u32 = THREADS / CHUNKS as u32;

    #[inline(always)]
    pub fn of_this_thread() -> Self {
        Self {
            chunk: gpu::tid_x() % CHUNKS as u32,
            first_row: gpu::tid_x() / CHUNKS as u32,
        }
    }

    /// Copies a tile of the head whose first token is at `head`: asynchronously, zero after its keys.
    #[inline(always)]
    pub fn copy_keys(
        self,
        to: SwizzledTile<CHUNKS>,
        head: Global<u16>,
        stride_token: u64,
        tile: KeyTile,
        walk: &KeyWalk,
    ) {
        for step in 0..TILE_KEYS / Self::STEP {
            let row = self.first_row + step * Self::STEP;
            let token = if tile.loose {
                walk.loose_key(row)
            } else {
                tile.start + row
            };
            self.copy(to, row, head, stride_token, token, row < tile.keys);
        }
    }

    /// Copies this thread's chunk of one row, or zeros.
    #[inline(always)]
    pub fn copy(
        self,
        to: SwizzledTile<CHUNKS>,
        row: u32,
        head: Global<u16>,
        stride_token: u64,
        token: u32,
        exists: bool,
    ) {
        let from = head.add(u64::from(token) * stride_token + u64::from(self.chunk * 8));
        let bytes = if exists { 16 } else { 0 };
        let to: Shared<u16> = to.chunk(row, self.chunk).cast();
        gpu::cp_async_cg_16_zfill(to, from, bytes);
    }
}
