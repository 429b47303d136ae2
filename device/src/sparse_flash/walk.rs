//! The tiles of keys that a query block attends to, in order: own block, listed blocks, loose keys.

use super::loose::{LooseKeys, LooseMemory};
use super::{SparseFlashParams, TILE_KEYS};
use crate::gpu::{self, Global};
use crate::params::BLOCK;

/// A tile of keys.
#[derive(Clone, Copy, Debug)]
pub(super) struct KeyTile {
    /// The first key; the tile's keys follow it, unless they are loose.
    pub start: u32,
    /// How many keys; 0 after the last tile.
    pub keys: u32,
    /// Whether the keys are those at the front of the warp's queue.
    pub loose: bool,
}

impl KeyTile {
    /// No tile: after the last.
    pub const END: Self = Self {
        start: 0,
        keys: 0,
        loose: true,
    };

    /// The contiguous tile at `start`, which is before `k_len`.
    #[inline(always)]
    fn contiguous(start: u32, k_len: u32) -> Self {
        Self {
            start,
            keys: (k_len - start).min(TILE_KEYS),
            loose: false,
        }
    }
}

/// The way through a query block's tiles. The same in every thread, but for the loose keys' lanes.
pub(super) struct KeyWalk {
    list: Global<u32>,
    dense: bool,
    k_len: u32,
    /// Key blocks from this one on are not walked: the own block, which comes first, or the end.
    end_block: u32,
    /// Entries of the list.
    entries: u32,
    /// The next entry, and its key block (`u32::MAX` after the last): loaded one tile ahead.
    entry: u32,
    upcoming: u32,
    loose: LooseKeys,
}

/// Where one query block of one head is.
#[derive(Clone, Copy)]
pub(super) struct Task {
    pub batch: u32,
    pub head: u32,
    pub query_block: u32,
}

impl KeyWalk {
    /// The walk, and its first tile. All threads of the block call it.
    #[inline(always)]
    pub fn new(p: &SparseFlashParams, task: Task, memory: LooseMemory) -> (Self, KeyTile) {
        let sizes = &p.sizes;
        let head = u64::from(task.batch * sizes.q_heads + task.head);
        let end_block = if sizes.is_causal() {
            task.query_block
        } else {
            sizes.key_blocks()
        };
        let mut dense = p.lists.is_null();
        if !dense && !p.dense.is_null() {
            dense = gpu::ld_global_nc(p.dense.add(head)) != 0;
        }
        let (mut list, mut entries) = (p.lists, end_block);
        if !dense {
            let row = head * u64::from(sizes.query_blocks()) + u64::from(task.query_block);
            list = p.lists.add(row * u64::from(p.list_capacity));
            entries = gpu::ld_global_nc(p.list_count.add(row));
        }
        let loose = if dense {
            LooseKeys::none(memory)
        } else {
            LooseKeys::new(p, head, end_block, list, entries, memory)
        };
        let mut walk = Self {
            list,
            dense,
            k_len: sizes.k_len,
            end_block,
            entries,
            entry: 0,
            upcoming: u32::MAX,
            loose,
        };
        walk.look_ahead();
        let first = if sizes.is_causal() {
            KeyTile::contiguous(task.query_block * BLOCK, sizes.k_len)
        } else {
            walk.next(KeyTile::END)
        };
        (walk, first)
    }

    #[inline(always)]
    fn look_ahead(&mut self) {
        self.upcoming = if self.entry >= self.entries {
            u32::MAX
        } else if self.dense {
            self.entry
        } else {
            gpu::ld_global_nc(self.list.add(self.entry.into()))
        };
        self.entry += 1;
    }

    /// The tile after `tile`. All lanes of the warp call it, having read the queue for `tile`.
    #[inline(always)]
    pub fn next(&mut self, tile: KeyTile) -> KeyTile {
        let other_half = tile.start + TILE_KEYS;
        if !tile.loose && tile.start.is_multiple_of(BLOCK) && other_half < self.k_len {
            return KeyTile::contiguous(other_half, self.k_len);
        }
        // The list is ascending: the first block that is out of range ends it.
        if self.upcoming < self.end_block {
            let start = self.upcoming * BLOCK;
            self.look_ahead();
            return KeyTile::contiguous(start, self.k_len);
        }
        KeyTile {
            start: 0,
            keys: self.loose.pack(),
            loose: true,
        }
    }

    /// The key at `row` of a loose tile.
    #[inline(always)]
    pub fn loose_key(&self, row: u32) -> u32 {
        self.loose.key(row)
    }
}
