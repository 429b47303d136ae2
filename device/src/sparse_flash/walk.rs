//! The tiles of keys that a query block attends to, in order: own block, listed blocks, loose keys.

use super::loose::LooseKeys;
use super::record::{Contents, Record, Task, Tokens};
use super::stage::WarpMemory;
use super::{SparseFlashParams, TILE_KEYS};
use crate::gpu;
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
/// What does not change is in the warp's [`Record`](super::record::Record).
pub(super) struct KeyWalk {
    dense: bool,
    /// The list's next entry, and its key block (`u32::MAX` after the last): loaded a tile ahead.
    entry: u32,
    upcoming: u32,
    loose: LooseKeys,
}

impl KeyWalk {
    /// The walk, and its first tile. All threads of the block call it.
    #[inline(always)]
    pub fn new(p: &SparseFlashParams, task: Task, memory: WarpMemory) -> (Self, KeyTile) {
        let sizes = &p.sizes;
        let head = u64::from(task.batch * sizes.q_heads + task.head);
        let kv_head = sizes.kv_head(task.head);
        let mut dense = p.lists.is_null();
        if !dense && !p.dense.is_null() {
            dense = gpu::ld_global_nc(p.dense.add(head)) != 0;
        }
        let end_block = end_block(p, task.query_block);
        let mut contents = Contents {
            k: Tokens {
                first: p.k.head(task.batch, kv_head),
                stride: p.k.stride_token,
            },
            v: Tokens {
                first: p.v.head(task.batch, kv_head),
                stride: p.v.stride_token,
            },
            list: p.lists,
            stripes: p.stripes.add(head * u64::from(p.stripe_capacity)),
            entries: end_block,
            candidates: 0,
            sink_candidates: 0,
            end_key: sizes.k_len.min(end_block * BLOCK),
            task,
        };
        if !dense {
            let row = head * u64::from(sizes.query_blocks()) + u64::from(task.query_block);
            contents.list = p.lists.add(row * u64::from(p.list_capacity));
            contents.entries = gpu::ld_global_nc(p.list_count.add(row));
            contents.sink_candidates = p.sinks.min(contents.end_key);
            contents.candidates = contents.sink_candidates;
            if !p.stripes.is_null() && end_block != 0 {
                contents.candidates += gpu::ld_global_nc(p.stripe_count.add(head));
            }
        }
        memory.record.write(&contents);
        let mut walk = Self {
            dense,
            entry: 0,
            upcoming: u32::MAX,
            loose: LooseKeys::new(p, memory, end_block),
        };
        walk.look_ahead(memory.record);
        let first = if sizes.is_causal() {
            KeyTile::contiguous(task.query_block * BLOCK, sizes.k_len)
        } else {
            walk.next(p, memory, KeyTile::END)
        };
        (walk, first)
    }

    #[inline(always)]
    fn look_ahead(&mut self, record: Record) {
        self.upcoming = if self.entry >= record.entries() {
            u32::MAX
        } else if self.dense {
            self.entry
        } else {
            gpu::ld_global_nc(record.list().add(self.entry.into()))
        };
        self.entry += 1;
    }

    /// The tile after `tile`. All lanes of the warp call it, having read the queue for `tile`.
    #[inline(always)]
    pub fn next(&mut self, p: &SparseFlashParams, memory: WarpMemory, tile: KeyTile) -> KeyTile {
        let k_len = p.sizes.k_len;
        let other_half = tile.start + TILE_KEYS;
        if !tile.loose && tile.start.is_multiple_of(BLOCK) && other_half < k_len {
            return KeyTile::contiguous(other_half, k_len);
        }
        // The list is ascending: the first block that is out of range ends it.
        if self.upcoming < end_block(p, memory.record.query_block()) {
            let start = self.upcoming * BLOCK;
            self.look_ahead(memory.record);
            return KeyTile::contiguous(start, k_len);
        }
        KeyTile {
            start: 0,
            keys: self.loose.pack(p, memory),
            loose: true,
        }
    }
}

/// Key blocks from this one on are not walked: the own block, which comes first, or the end.
#[inline(always)]
const fn end_block(p: &SparseFlashParams, query_block: u32) -> u32 {
    if p.sizes.is_causal() {
        query_block
    } else {
        p.sizes.key_blocks()
    }
}
