//! Shared memory, and the copies that fill it.
//!
//! ```text
//! Q | maxima and sums of the warps | stages of (K tile, V tile) | which rows of each stage hold a key    afterwards, in place of the stages: O of the warps
//! ```

use super::params::{THREADS, TILE_KEYS};
use super::walk::{TileKeys, Walk};
use crate::gpu::{self, Global, Shared};
use crate::sparse_flash::SparseFlashParams;
use crate::sparse_flash::work::{Keys, Tokens};
use crate::tile::SwizzledTile;

/// Stages of the ring, all but one of which are on their way: 96 KiB for either head_dim, so that a multiprocessor of 228 KiB holds
/// two blocks, with 128 KiB or more in flight.
pub(super) const fn stages(head_dim: u32) -> u32 {
    if head_dim > 64 { 3 } else { 6 }
}

/// Bytes of the maxima and sums: of each warp's 16 rows.
const STATISTICS_BYTES: u32 = THREADS / 32 * 16 * 8;

/// Dynamic shared memory of a launch. A byte a row: with more, a multiprocessor would not hold two blocks.
pub(super) const fn shared_bytes(p: &SparseFlashParams, tile_rows: u32) -> u32 {
    let row_bytes = p.head_dim * 2;
    let stages = stages(p.head_dim);
    let flags = if p.mask.is_dense() {
        0
    } else {
        stages * TILE_KEYS
    };
    tile_rows * row_bytes + STATISTICS_BYTES + stages * 2 * TILE_KEYS * row_bytes + flags
}

/// Where everything lies, for rows of `CHUNKS` chunks of 16 bytes and `tile_rows` rows of queries.
#[derive(Clone, Copy)]
pub(super) struct Memory<const CHUNKS: usize> {
    base: Shared<u8>,
    tile_rows: u32,
}

impl<const CHUNKS: usize> Memory<CHUNKS> {
    const TILE_BYTES: u32 = TILE_KEYS * SwizzledTile::<CHUNKS>::ROW_BYTES;

    #[inline(always)]
    pub fn new(tile_rows: u32) -> Self {
        Self {
            base: gpu::dynamic_shared(),
            tile_rows,
        }
    }

    #[inline(always)]
    pub fn q(self) -> SwizzledTile<CHUNKS> {
        SwizzledTile::new(self.base)
    }

    /// Maximum and sum of a warp's row.
    #[inline(always)]
    pub fn statistics(self, warp: u32, row: u32) -> Shared<f32> {
        let first = self
            .base
            .byte_add(self.tile_rows * SwizzledTile::<CHUNKS>::ROW_BYTES);
        first.cast().add(2 * (16 * warp + row))
    }

    #[inline(always)]
    fn stages(self) -> Shared<u8> {
        self.statistics(THREADS / 32, 0).cast()
    }

    #[inline(always)]
    pub fn k(self, stage: u32) -> SwizzledTile<CHUNKS> {
        SwizzledTile::new(self.stages().byte_add(2 * stage * Self::TILE_BYTES))
    }

    #[inline(always)]
    pub fn v(self, stage: u32) -> SwizzledTile<CHUNKS> {
        SwizzledTile::new(self.stages().byte_add((2 * stage + 1) * Self::TILE_BYTES))
    }

    /// 1 where a row of a stage's tile of candidates holds a key.
    #[inline(always)]
    pub fn holds_key(self, stage: u32, row: u32) -> Shared<u8> {
        let all = stages(CHUNKS as u32 * 8) * 2 * Self::TILE_BYTES;
        self.stages().byte_add(all + stage * TILE_KEYS + row)
    }

    /// Element `column` of a warp's row of O, once the stages are done with.
    #[inline(always)]
    pub fn output(self, warp: u32, row: u32, column: u32) -> Shared<f32> {
        self.stages()
            .cast()
            .add((16 * warp + row) * CHUNKS as u32 * 8 + column)
    }
}

/// The keys and values of a block.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    p: &'a SparseFlashParams,
    pub k: Tokens,
    pub v: Tokens,
    /// Keys from this one on no row of the tile sees.
    end: u32,
}

impl<'a> Source<'a> {
    #[inline(always)]
    pub fn new(p: &'a SparseFlashParams, kv_head: u32, batch: u32, keys: Keys, end: u32) -> Self {
        Self {
            p,
            k: Tokens::new(&p.k, kv_head, batch, keys),
            v: Tokens::new(&p.v, kv_head, batch, keys),
            end,
        }
    }

    /// Begins the thread's copies of a tile, zero from `end` on.
    #[inline(always)]
    pub fn copy<const CHUNKS: usize>(
        self,
        memory: Memory<CHUNKS>,
        stage: u32,
        walk: &Walk,
        index: u32,
    ) {
        let tile = walk.keys_of(index);
        let (chunk, first_row) = thread_chunk::<CHUNKS>();
        let [to_k, to_v] = [memory.k(stage), memory.v(stage)].map(|to| to.chunk(first_row, chunk));
        let column = u64::from(chunk * 8);
        let same_pages = self.k.pages.address() == self.v.pages.address();
        for step in 0..TILE_KEYS / rows_at_once::<CHUNKS>() {
            let row = first_row + step * rows_at_once::<CHUNKS>();
            let key = match tile {
                TileKeys::From(first) => first + row,
                TileKeys::Candidates(first) => {
                    let key = walk.candidate(first + row);
                    if chunk == 0 {
                        let holds = u8::from(key.is_some());
                        gpu::st_shared(memory.holds_key(stage, row), holds);
                    }
                    key.unwrap_or(self.end)
                }
            };
            let bytes = if key < self.end { 16 } else { 0 };
            let (mut k_slot, mut v_slot) = (key, key);
            // Keys from the end on have no page.
            if key < self.end {
                k_slot = self.k.slot(&self.p.k, key);
                v_slot = if same_pages {
                    k_slot
                } else {
                    self.v.slot(&self.p.v, key)
                };
            }
            // Whole groups of 8 rows: the chunk's place in its row is the same in all of them.
            let below = step * rows_at_once::<CHUNKS>() * SwizzledTile::<CHUNKS>::ROW_BYTES;
            let from_k = self.k.at_slot(&self.p.k, k_slot).add(column);
            gpu::cp_async_cg_16_zfill(to_k.byte_add(below).cast(), from_k, bytes);
            let from_v = self.v.at_slot(&self.p.v, v_slot).add(column);
            gpu::cp_async_cg_16_zfill(to_v.byte_add(below).cast(), from_v, bytes);
        }
    }

    /// A token of V, before the end.
    #[inline(always)]
    pub fn value(self, key: u32) -> Global<u16> {
        self.v.token(&self.p.v, key)
    }
}

/// Rows that the block's threads copy at once, a multiple of 8.
pub(super) const fn rows_at_once<const CHUNKS: usize>() -> u32 {
    THREADS / CHUNKS as u32
}

/// The chunk of every row that this thread copies, and the first of its rows.
#[inline(always)]
pub(super) fn thread_chunk<const CHUNKS: usize>() -> (u32, u32) {
    let thread = gpu::tid_x();
    (thread % CHUNKS as u32, thread / CHUNKS as u32)
}

/// Waits for the tile that was begun first.
#[inline(always)]
pub(super) fn wait<const CHUNKS: usize>() {
    if stages(CHUNKS as u32 * 8) == 3 {
        gpu::cp_async_wait_group::<1>();
    } else {
        gpu::cp_async_wait_group::<4>();
    }
}
