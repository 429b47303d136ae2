//! The tiles of keys that a query tile attends to, in order: own block, listed blocks, loose keys.

use super::SparseFlashParams;
use super::loose::{LooseKeys, mark_listed};
use super::record::{Listed, Record};
use super::warp::WarpMemory;
use super::work::{WorkTile, end_key};
use crate::gpu::{self, Global};
use crate::params::BLOCK;
use crate::tile::{WARP, scale};

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

/// The way through a query tile's tiles of keys. The same in every thread, but for the loose keys' lanes.
/// What does not change is in the warp's [`Record`].
pub(super) struct KeyWalk<const TILE_KEYS: u32> {
    /// Where the keys of loose tiles come from. As long as `queued` is [`IN_LIST`], its `next` is the list's next entry and `ahead`
    /// the key block of that (`u32::MAX` after the last), loaded a tile ahead: what lies behind the list takes no further registers.
    cursor: LooseKeys<TILE_KEYS>,
}

/// More keys than any queue holds.
const IN_LIST: u32 = u32::MAX;

impl<const TILE_KEYS: u32> KeyWalk<TILE_KEYS> {
    /// The walk, and its first tile. All threads that copy call it; `work` is called by one lane of each warp.
    #[inline(always)]
    pub fn new(
        p: &SparseFlashParams,
        memory: WarpMemory,
        work: impl FnOnce() -> WorkTile,
    ) -> (Self, KeyTile) {
        let record = memory.record;
        if gpu::laneid() == 0 {
            let work = work();
            record.write_work(&work, scale::magnitude(p.scale_log2));
            record.write_k(work.tokens(&p.k));
            record.write_v(work.tokens(&p.v));
            record.write_listed(&Listed::new(p, &work));
        }
        gpu::bar_warp_sync(WARP);
        if record.candidates() != 0 {
            mark_listed(memory, record.end_block());
        }
        let mut walk = Self {
            cursor: LooseKeys {
                next: 0,
                ahead: u32::MAX,
                queued: IN_LIST,
            },
        };
        walk.look_ahead(record);
        let query_block = record.query_block();
        let first = if p.sequences.is_causal() && query_block != WorkTile::MASKED {
            KeyTile::contiguous::<TILE_KEYS>(query_block * BLOCK, record.k_len())
        } else {
            walk.next_block(p, memory)
        };
        (walk, first)
    }

    #[inline(always)]
    fn look_ahead(&mut self, record: Record) {
        let list = record.list();
        let entry = self.cursor.next;
        self.cursor.ahead = if entry >= record.entries() {
            u32::MAX
        } else if list.is_null() {
            entry
        } else {
            gpu::ld_global_nc(list.add(entry.into()))
        };
        self.cursor.next += 1;
    }

    /// The tile after `tile`. All lanes of the warp call it, having read the queue for `tile`.
    #[inline(always)]
    pub fn next(&mut self, p: &SparseFlashParams, memory: WarpMemory, tile: KeyTile) -> KeyTile {
        let other_half = tile.start.wrapping_add(TILE_KEYS);
        if TILE_KEYS < BLOCK && tile.start.is_multiple_of(BLOCK) {
            let k_len = memory.record.k_len();
            if other_half < k_len {
                return KeyTile::contiguous::<TILE_KEYS>(other_half, k_len);
            }
        }
        self.next_block(p, memory)
    }

    /// The tile that `next` gave, from its `start` alone: its other half needs no register meanwhile.
    #[inline(always)]
    pub fn again(&self, memory: WarpMemory, start: u32) -> KeyTile {
        if start == KeyTile::LOOSE {
            KeyTile {
                start,
                keys: self.cursor.queued.min(TILE_KEYS),
            }
        } else {
            KeyTile::contiguous::<TILE_KEYS>(start, memory.record.k_len())
        }
    }

    /// The first tile of the next block, or the next loose tile.
    #[inline(always)]
    fn next_block(&mut self, p: &SparseFlashParams, memory: WarpMemory) -> KeyTile {
        let record = memory.record;
        if self.cursor.queued == IN_LIST {
            // The list is ascending: the first block that is out of range ends it.
            if self.cursor.ahead < record.end_block() {
                let start = self.cursor.ahead * BLOCK;
                self.look_ahead(record);
                return KeyTile::contiguous::<TILE_KEYS>(start, record.k_len());
            }
            self.cursor = LooseKeys::new(p, memory);
        }
        KeyTile {
            start: KeyTile::LOOSE,
            keys: self.cursor.pack(p, memory),
        }
    }
}

impl Listed {
    /// What a work tile attends to.
    #[inline(always)]
    fn new(p: &SparseFlashParams, work: &WorkTile) -> Self {
        let mask = &p.mask;
        let end_block = work.end_block(p);
        let mut listed = Self {
            blocks: Global::NULL,
            keys: Global::NULL,
            entries: end_block,
            candidates: 0,
            sink_candidates: 0,
            end_block,
        };
        if !is_dense(p, work) {
            let row = mask.row(work.q_head, work.number);
            // Strides in bytes would otherwise be kept from tile to tile.
            let first = gpu::opaque(row * u64::from(mask.block_capacity));
            listed.blocks = mask.kv_indices.add(first);
            listed.entries = gpu::ld_global_nc(mask.kv_num_blocks.add(row));
            listed.sink_candidates = mask.sinks.min(end_key(end_block, work.keys.len));
            listed.candidates = listed.sink_candidates;
            if !mask.num_keys.is_null() && end_block != 0 {
                let row = mask.key_row(work.keys.sequence, p.q_heads, work.q_head, work.number);
                let first = gpu::opaque(row * u64::from(mask.key_capacity));
                listed.keys = mask.key_indices.add(first);
                listed.candidates += gpu::ld_global_nc(mask.num_keys.add(row));
            }
        }
        listed
    }
}

/// Whether lists do not count: everything is visible, or nothing.
#[inline(always)]
fn is_dense(p: &SparseFlashParams, work: &WorkTile) -> bool {
    if p.mask.is_dense() || work.query_block == WorkTile::MASKED {
        return true;
    }
    let head = u64::from(work.keys.sequence) * u64::from(p.q_heads) + u64::from(work.q_head);
    !p.mask.dense.is_null() && gpu::ld_global_nc(p.mask.dense.add(head)) != 0
}
