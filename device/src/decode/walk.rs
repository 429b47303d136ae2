//! The tiles of keys that a row tile attends to, by number, so that splits can begin anywhere.
//!
//! ```text
//! dense:  keys 0 .. 64, 64 .. 128, …
//! lists:  the halves of the diagonal block and of the listed blocks; then 64 candidates at a time, sinks before single keys
//! ```
//!
//! A candidate that a listed block or another candidate names too leaves its row of the tile empty.

use super::params::TILE_KEYS;
use super::row_tile::RowTile;
use crate::gpu::{self, Global};
use crate::params::BLOCK;
use crate::sparse_flash::SparseFlashParams;

/// Tiles of a key block.
const HALVES: u32 = BLOCK / TILE_KEYS;

/// The way through a row tile's tiles of keys.
#[derive(Clone, Copy)]
pub(super) struct Walk {
    /// All tiles in order, and nothing below counts.
    is_dense: bool,
    /// 1 where the diagonal block comes first.
    own: u32,
    own_block: u32,
    /// The list of key blocks, and how many of its entries are walked.
    list: Global<u32>,
    entries: u32,
    sinks: u32,
    keys: Global<u32>,
    candidates: u32,
    /// Keys from this one on are no candidates.
    end_key: u32,
    /// Tiles in all.
    pub tiles: u32,
}

/// Where a tile's keys are.
#[derive(Clone, Copy)]
pub(super) enum TileKeys {
    /// 64 keys from this one on.
    From(u32),
    /// 64 candidates from this one on.
    Candidates(u32),
}

impl Walk {
    /// `seen` is how many keys some row of the tile sees.
    #[inline(always)]
    pub fn new(p: &SparseFlashParams, tile: &RowTile, seen: u32) -> Self {
        let mut walk = Self {
            is_dense: true,
            own: 0,
            own_block: 0,
            list: Global::NULL,
            entries: 0,
            sinks: 0,
            keys: Global::NULL,
            candidates: 0,
            end_key: 0,
            tiles: seen.div_ceil(TILE_KEYS),
        };
        let mask = &p.mask;
        // Rows that see nothing have no list.
        if mask.is_dense() || seen == 0 {
            return walk;
        }
        let sequence = &tile.sequence;
        let head = u64::from(sequence.index) * u64::from(p.q_heads) + u64::from(tile.first_head);
        if !mask.dense.is_null() && gpu::ld_global_nc(mask.dense.add(head)) != 0 {
            return walk;
        }
        walk.is_dense = false;
        let query_block = tile.query_block();
        let number = p.sequences.first_query_tile(sequence) + sequence.place_of(query_block);
        let row = mask.row(tile.first_head, number);
        walk.list = mask.blocks(row);
        let end_block = if sequence.causal {
            walk.own = 1;
            walk.own_block = query_block;
            query_block
        } else {
            sequence.key_blocks()
        };
        walk.end_key = (end_block * BLOCK).min(sequence.k_len);
        let listed = gpu::ld_global_nc(mask.kv_num_blocks.add(row));
        walk.entries = below(walk.list, listed, end_block);
        walk.sinks = mask.sinks.min(walk.end_key);
        walk.candidates = walk.sinks;
        if !mask.num_keys.is_null() && end_block != 0 {
            let row = mask.key_row(sequence.index, p.q_heads, tile.first_head, number);
            walk.keys = mask.keys(row);
            walk.candidates += gpu::ld_global_nc(mask.num_keys.add(row));
        }
        walk.tiles = walk.block_tiles() + walk.candidates.div_ceil(TILE_KEYS);
        walk
    }

    #[inline(always)]
    const fn block_tiles(&self) -> u32 {
        HALVES * (self.own + self.entries)
    }

    /// The keys of a tile.
    #[inline(always)]
    pub fn keys_of(&self, index: u32) -> TileKeys {
        if self.is_dense {
            return TileKeys::From(index * TILE_KEYS);
        }
        if index >= self.block_tiles() {
            return TileKeys::Candidates((index - self.block_tiles()) * TILE_KEYS);
        }
        let nth = index / HALVES;
        let block = if nth < self.own {
            self.own_block
        } else {
            gpu::ld_global_nc(self.list.add((nth - self.own).into()))
        };
        TileKeys::From(block * BLOCK + index % HALVES * TILE_KEYS)
    }

    /// The key of a candidate; `None` where it names none, or one that is attended to already.
    #[inline(always)]
    pub fn candidate(&self, index: u32) -> Option<u32> {
        if index >= self.candidates {
            return None;
        }
        let key = if index < self.sinks {
            index
        } else {
            let key = gpu::ld_global_nc(self.keys.add((index - self.sinks).into()));
            // A single key among the sinks has been a candidate already.
            if key < self.sinks {
                return None;
            }
            key
        };
        if key >= self.end_key {
            return None;
        }
        let block = key / BLOCK;
        let at = below(self.list, self.entries, block);
        if at < self.entries && gpu::ld_global_nc(self.list.add(at.into())) == block {
            return None;
        }
        Some(key)
    }
}

/// How many of the first `count` entries of an ascending list are below `end`.
#[inline(always)]
fn below(list: Global<u32>, count: u32, end: u32) -> u32 {
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low + (high - low) / 2;
        if gpu::ld_global_nc(list.add(middle.into())) < end {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}
