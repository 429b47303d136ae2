//! Shared memory: where everything lies, and the copies that fill it.
//!
//! ```text
//! each warp's context and queue of gathered keys | K tile | V tile | Q block | bitmap of listed blocks
//! ```

use super::super::SparseFlashParams;
use super::super::gathered::queue_keys;
use super::super::walk::KeyTile;
use super::super::warp_context::WarpContext;
use super::super::warp_lane::{WarpLane, WarpMemory};
use super::super::work::{Tokens, WorkTile};
use super::{THREADS, TILE_KEYS};
use crate::abi::KvTensor;
use crate::gpu::{self, Global, Shared};
use crate::params::{BLOCK, TensorArg};
use crate::tile::SwizzledTile;

const WARP_BYTES: u32 = WarpContext::BYTES + queue_keys(TILE_KEYS) * 4;
const WARPS_BYTES: u32 = THREADS / 32 * WARP_BYTES;

/// Swizzled tiles start at multiples of their rows' size, which is at most 256 bytes.
const _: () = assert!(WARPS_BYTES.is_multiple_of(256));

/// Dynamic shared memory of a launch.
pub(super) const fn shared_bytes(p: &SparseFlashParams) -> u32 {
    let row_bytes = p.head_dim * 2;
    let bitmap_bytes = p.sequences.max_key_blocks().div_ceil(32) * 4;
    WARPS_BYTES + (2 * TILE_KEYS + BLOCK) * row_bytes + bitmap_bytes
}

/// The tiles in shared memory, for rows of `CHUNKS` chunks of 16 bytes.
#[derive(Clone, Copy)]
pub(super) struct Stage<const CHUNKS: usize> {
    pub k: SwizzledTile<CHUNKS>,
    pub v: SwizzledTile<CHUNKS>,
    pub q: SwizzledTile<CHUNKS>,
    pub warp: WarpMemory,
}

impl<const CHUNKS: usize> Stage<CHUNKS> {
    const TILE_BYTES: u32 = TILE_KEYS * SwizzledTile::<CHUNKS>::ROW_BYTES;

    #[inline(always)]
    pub fn of(warp_lane: WarpLane) -> Self {
        let base = gpu::dynamic_shared();
        let own = base.byte_add(warp_lane.warp * WARP_BYTES);
        let tiles = base.byte_add(WARPS_BYTES);
        Self {
            k: SwizzledTile::new(tiles),
            v: SwizzledTile::new(tiles.byte_add(Self::TILE_BYTES)),
            q: SwizzledTile::new(tiles.byte_add(2 * Self::TILE_BYTES)),
            warp: WarpMemory {
                warp_lane,
                context: WarpContext::new(own),
                queue: own.byte_add(WarpContext::BYTES).cast(),
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
    pub fn of(warp_lane: WarpLane) -> Self {
        let thread = warp_lane.warp * 32 + warp_lane.lane;
        Self {
            chunk: thread % CHUNKS as u32,
            first_row: thread / CHUNKS as u32,
        }
    }

    /// Copies a tile of `tokens`, in a group of its own: asynchronously, zero after its keys.
    #[inline(always)]
    pub fn copy_keys(
        self,
        to: SwizzledTile<CHUNKS>,
        tensor: &KvTensor,
        tokens: Tokens,
        tile: KeyTile,
        memory: WarpMemory,
    ) {
        let to = to.chunk(self.first_row, self.chunk);
        let rows = (tile.keys as i32) - self.first_row as i32;
        let column = u64::from(self.chunk * 8);
        if tensor.is_paged() {
            // The bound is not a constant, so that the loop stays one: the addresses of all rows at once take too many registers.
            let end = gpu::opaque(TILE_KEYS.into()) as u32;
            let mut row = self.first_row;
            while row < end {
                let key = if tile.is_gathered() {
                    gpu::ld_shared(memory.queue.add(row))
                } else {
                    tile.start + row
                };
                // Rows after the tile's keys have no page.
                let (from, bytes) = if row < tile.keys {
                    (tokens.token(tensor, key), 16)
                } else {
                    (Global::NULL, 0)
                };
                let to = to.byte_add((row - self.first_row) * SwizzledTile::<CHUNKS>::ROW_BYTES);
                gpu::cp_async_cg_16_zfill(to.cast(), from.add(column), bytes);
                row += Self::STEP;
            }
        } else if tile.is_gathered() {
            for step in 0..TILE_KEYS / Self::STEP {
                let key = gpu::ld_shared(memory.queue.add(self.first_row + step * Self::STEP));
                let from = tokens.first.add(u64::from(key) * tokens.stride);
                Self::copy(to, step, from.add(column), rows);
            }
        } else {
            let first = u64::from(tile.start + self.first_row) * tokens.stride;
            let mut from = tokens.first.add(first + column);
            for step in 0..TILE_KEYS / Self::STEP {
                Self::copy(to, step, from, rows);
                from = from.add(u64::from(Self::STEP) * tokens.stride);
            }
        }
        gpu::cp_async_commit_group();
    }

    /// Copies the thread's chunk of its `step`th row, or zeros if that is not before `rows` rows.
    #[inline(always)]
    fn copy(to: Shared<u8>, step: u32, from: Global<u16>, rows: i32) {
        // Whole groups of 8 rows: the chunk's place in its row is the same in all of them.
        let to = to.byte_add(step * Self::STEP * SwizzledTile::<CHUNKS>::ROW_BYTES);
        let bytes = if (step * Self::STEP) as i32 >= rows {
            0
        } else {
            16
        };
        gpu::cp_async_cg_16_zfill(to.cast(), from, bytes);
    }

    /// Copies the rows of a query tile: asynchronously, zero where there is none.
    #[inline(always)]
    pub fn copy_queries(self, to: SwizzledTile<CHUNKS>, q: &TensorArg, work: WorkTile) {
        for step in 0..BLOCK / Self::STEP {
            let row = self.first_row + step * Self::STEP;
            let from: Global<u16> = work.token(q, row);
            let bytes = if work.rows.has(row) { 16 } else { 0 };
            let from = from.add(u64::from(self.chunk * 8));
            gpu::cp_async_cg_16_zfill(to.chunk(row, self.chunk).cast(), from, bytes);
        }
    }

    /// Changes the pairs of elements of this thread's chunks, of `rows` rows.
    #[inline(always)]
    pub fn map_pairs(self, tile: SwizzledTile<CHUNKS>, rows: u32, of_pair: impl Fn(u32) -> u32) {
        for step in 0..rows / Self::STEP {
            let row = self.first_row + step * Self::STEP;
            let chunk = tile.chunk(row, self.chunk).cast::<u32>();
            gpu::st_shared_v4(chunk, gpu::ld_shared_v4(chunk).map(&of_pair));
        }
    }
}
