//! The tiles of keys that a query block attends to, in order: own block, listed blocks, loose keys.

use super::SparseFlashParams;
use super::loose::{LooseKeys, mark_listed};
use super::record::{Contents, Record, Task, Tokens};
use super::warp::WarpMemory;
use crate::gpu::{self, Global};
use crate::params::{BLOCK, TensorArg};

/// A tile of keys.
#[derive(Clone, Copy, Debug)]
pub(super) struct KeyTile {
    /// The first key; the tile's keys follow it. [`KeyTile::LOOSE`]: they are those at the front of the
    /// warp's queue.
    pub start: u32,
    /// How many keys; 0 after the last tile.
    pub keys: u32,
}

impl KeyTile {
    /// The `start` of a loose tile.
    const LOOSE: u32 = u32::MAX;

    /// The contiguous tile at `start`, which is before `k_len`.
    #[inline(always)]
    pub fn contiguous<const TILE_KEYS: u32>(start: u32, k_len: u32) -> Self {
        Self {
            start,
            keys: (k_len - start).min(TILE_KEYS),
        }
    }

    /// Whether the keys are loose.
    #[inline(always)]
    pub const fn is_loose(self) -> bool {
        self.start == Self::LOOSE
    }
}

/// The way through a query block's tiles. The same in every thread, but for the loose keys' lanes.
/// What does not change is in the warp's [`Record`].
pub(super) struct KeyWalk<const TILE_KEYS: u32> {
    /// The list's next entry, and its key block (`u32::MAX` after the last): loaded a tile ahead.
    entry: u32,
    upcoming: u32,
    /// Where the keys of loose tiles come from, once `in_list` is over.
    loose: LooseKeys<TILE_KEYS>,
    in_list: bool,
}

impl<const TILE_KEYS: u32> KeyWalk<TILE_KEYS> {
    /// The walk, and its first tile. All threads that copy call it.
    #[inline(always)]
    pub fn new(p: &SparseFlashParams, task: Task, memory: WarpMemory) -> (Self, KeyTile) {
        let contents = Contents::new(p, task);
        memory.record.write(&contents);
        if contents.candidates != 0 {
            mark_listed(memory, end_block(p, task.query_block));
        }
        let mut walk = Self {
            entry: 0,
            upcoming: u32::MAX,
            loose: LooseKeys::NONE,
            in_list: true,
        };
        walk.look_ahead(memory.record);
        let first = if p.sizes.is_causal() {
            KeyTile::contiguous::<TILE_KEYS>(task.query_block * BLOCK, p.sizes.k_len)
        } else {
            walk.next_block(p, memory)
        };
        (walk, first)
    }

    #[inline(always)]
    fn look_ahead(&mut self, record: Record) {
        let list = record.list();
        self.upcoming = if self.entry >= record.entries() {
            u32::MAX
        } else if list.is_null() {
            self.entry
        } else {
            gpu::ld_global_nc(list.add(self.entry.into()))
        };
        self.entry += 1;
    }

    /// The tile after `tile`. All lanes of the warp call it, having read the queue for `tile`.
    #[inline(always)]
    pub fn next(&mut self, p: &SparseFlashParams, memory: WarpMemory, tile: KeyTile) -> KeyTile {
        let other_half = tile.start.wrapping_add(TILE_KEYS);
        if TILE_KEYS < BLOCK && tile.start.is_multiple_of(BLOCK) && other_half < p.sizes.k_len {
            return KeyTile::contiguous::<TILE_KEYS>(other_half, p.sizes.k_len);
        }
        self.next_block(p, memory)
    }

    /// The first tile of the next block, or the next loose tile.
    #[inline(always)]
    fn next_block(&mut self, p: &SparseFlashParams, memory: WarpMemory) -> KeyTile {
        let record = memory.record;
        if self.in_list {
            // The list is ascending: the first block that is out of range ends it.
            if self.upcoming < end_block(p, record.query_block()) {
                let start = self.upcoming * BLOCK;
                self.look_ahead(record);
                return KeyTile::contiguous::<TILE_KEYS>(start, p.sizes.k_len);
            }
            self.in_list = false;
            self.loose = LooseKeys::new(p, memory);
        }
        KeyTile {
            start: KeyTile::LOOSE,
            keys: self.loose.pack(p, memory),
        }
    }
}

impl Contents {
    /// The record of a task.
    #[inline(always)]
    fn new(p: &SparseFlashParams, task: Task) -> Self {
        let sizes = &p.sizes;
        let head = u64::from(task.batch * sizes.q_heads + task.head);
        let end_block = end_block(p, task.query_block);
        let tokens = |tensor: &TensorArg| {
            let first = u64::from(task.batch) * tensor.stride_batch
                + u64::from(task.kv_head) * tensor.stride_head;
            Tokens {
                // Strides in bytes would otherwise be kept from task to task.
                first: tensor.address.cast().add(gpu::opaque(first)),
                stride: tensor.stride_token,
            }
        };
        let mut contents = Self {
            k: tokens(&p.k),
            v: tokens(&p.v),
            list: Global::NULL,
            stripes: p
                .stripes
                .add(gpu::opaque(head * u64::from(p.stripe_capacity))),
            entries: end_block,
            candidates: 0,
            sink_candidates: 0,
            end_key: sizes.k_len.min(end_block * BLOCK),
            task,
            scale_log2: p.scale_log2,
        };
        let mut dense = p.lists.is_null();
        if !dense && !p.dense.is_null() {
            dense = gpu::ld_global_nc(p.dense.add(head)) != 0;
        }
        if !dense {
            let row = head * u64::from(sizes.query_blocks()) + u64::from(task.query_block);
            contents.list = p.lists.add(gpu::opaque(row * u64::from(p.list_capacity)));
            contents.entries = gpu::ld_global_nc(p.list_count.add(row));
            contents.sink_candidates = p.sinks.min(contents.end_key);
            contents.candidates = contents.sink_candidates;
            if !p.stripes.is_null() && end_block != 0 {
                contents.candidates += gpu::ld_global_nc(p.stripe_count.add(head));
            }
        }
        contents
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
