//! The sparse mask: what each query tile attends to, as lists in memory.
//!
//! Row `i` at position `p(i)` attends to key `j` iff it sees it and `⌊j/128⌋` is listed for its query tile, or `j` is one of its
//! single keys, or `j < sinks`. A causal tile always attends to its diagonal block, listed or not. A key that several name counts
//! once. Who filled the lists (a caller, a selection, a look-up of centroids) makes no difference.

use crate::gpu::Global;

/// Lists over the query tiles `first_tile .. first_tile + tiles` of all query heads.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SparseMask {
    /// \[q_heads, tiles\]: how many key blocks are listed.
    pub kv_num_blocks: Global<u32>,
    /// \[q_heads, tiles, block_capacity\]: ascending key blocks, without repeats. Null: every head is dense, and nothing else is
    /// read.
    pub kv_indices: Global<u32>,
    /// \[q_heads, tiles\] with `keys_per_tile`, else \[sequences, q_heads\]: how many single keys. Null: there are none.
    pub num_keys: Global<u32>,
    /// The same, by `key_capacity`: ascending single keys, without repeats.
    pub key_indices: Global<u32>,
    /// \[sequences, q_heads\]: 1 where the head is dense and its lists do not count. Null: none is.
    pub dense: Global<u32>,
    /// Entries from a tile's key blocks to the next tile's.
    pub block_capacity: u32,
    /// Entries from a list of single keys to the next.
    pub key_capacity: u32,
    /// 1 where each query tile has single keys of its own, 0 where a head has one list for all of them.
    pub keys_per_tile: u32,
    /// The first keys, that every row keeps.
    pub sinks: u32,
    /// The first query tile that has lists.
    pub first_tile: u32,
    /// How many have.
    pub tiles: u32,
}

impl SparseMask {
    /// Everything is visible.
    pub const DENSE: Self = SparseMask {
        kv_num_blocks: Global::NULL,
        kv_indices: Global::NULL,
        num_keys: Global::NULL,
        key_indices: Global::NULL,
        dense: Global::NULL,
        block_capacity: 0,
        key_capacity: 0,
        keys_per_tile: 0,
        sinks: 0,
        first_tile: 0,
        tiles: 0,
    };

    /// Whether every head is dense, and there is nothing to read.
    #[inline(always)]
    pub const fn is_dense(&self) -> bool {
        self.kv_indices.is_null()
    }

    /// The row of the lists that belongs to a query tile.
    #[inline(always)]
    pub const fn row(&self, q_head: u32, tile: u32) -> u64 {
        q_head as u64 * self.tiles as u64 + (tile - self.first_tile) as u64
    }

    /// The key blocks of a row.
    #[inline(always)]
    pub const fn blocks(&self, row: u64) -> Global<u32> {
        self.kv_indices.add(row * self.block_capacity as u64)
    }

    /// The row of the single keys: of a query tile, or of a head.
    #[inline(always)]
    pub const fn key_row(&self, sequence: u32, q_heads: u32, q_head: u32, tile: u32) -> u64 {
        if self.keys_per_tile != 0 {
            self.row(q_head, tile)
        } else {
            sequence as u64 * q_heads as u64 + q_head as u64
        }
    }

    /// The single keys of such a row.
    #[inline(always)]
    pub const fn keys(&self, key_row: u64) -> Global<u32> {
        self.key_indices.add(key_row * self.key_capacity as u64)
    }
}
