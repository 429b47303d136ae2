//! The tiles of keys that a query tile attends to, in order: own block, listed blocks, loose keys.

use super::SparseFlashParams;
use super::loose::{LooseKeys, mark_listed};
use super::record::{Contents, Record};
use super::warp::WarpMemory;
use super::work::WorkTile;
use crate::gpu::{self, Global};
use crate::params::BLOCK;
use crate::tile::scale;

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
    pub fn new(p: &SparseFlashParams, work: WorkTile, memory: WarpMemory) -> (Self, KeyTile) {
        let contents = Contents::new(p, work);
        memory.record.write(&contents);
        if contents.candidates != 0 {
            mark_listed(memory, contents.end_block);
        }
        let mut walk = Self {
            entry: 0,
            upcoming: u32::MAX,
            loose: LooseKeys::NONE,
            in_list: true,
        };
        walk.look_ahead(memory.record);
        let first = if p.sequences.is_causal() && work.query_block != WorkTile::MASKED {
            KeyTile::contiguous::<TILE_KEYS>(work.query_block * BLOCK, work.keys.len)
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
        if TILE_KEYS < BLOCK && tile.start.is_multiple_of(BLOCK) {
            let k_len = memory.record.k_len();
            if other_half < k_len {
                return KeyTile::contiguous::<TILE_KEYS>(other_half, k_len);
            }
        }
        self.next_block(p, memory)
    }

    /// The first tile of the next block, or the next loose tile.
    #[inline(always)]
    fn next_block(&mut self, p: &SparseFlashParams, memory: WarpMemory) -> KeyTile {
        let record = memory.record;
        if self.in_list {
            // The list is ascending: the first block that is out of range ends it.
            if self.upcoming < record.end_block() {
                let start = self.upcoming * BLOCK;
                self.look_ahead(record);
                return KeyTile::contiguous::<TILE_KEYS>(start, record.k_len());
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
    /// The record of a work tile.
    #[inline(always)]
    fn new(p: &SparseFlashParams, work: WorkTile) -> Self {
        let mask = &p.mask;
        let end_block = work.end_block(p);
        let mut contents = Self {
            k: work.tokens(&p.k),
            v: work.tokens(&p.v),
            list: Global::NULL,
            stripes: Global::NULL,
            entries: end_block,
            candidates: 0,
            sink_candidates: 0,
            end_block,
            work,
            scale_log2: scale::magnitude(p.scale_log2),
        };
        if !is_dense(p, &work) {
            let row = mask.row(work.q_head, work.number);
            contents.list = mask
                .kv_indices
                .add(gpu::opaque(row * u64::from(mask.block_capacity)));
            contents.entries = gpu::ld_global_nc(mask.kv_num_blocks.add(row));
            contents.sink_candidates = mask.sinks.min(end_key(end_block, work.keys.len));
            contents.candidates = contents.sink_candidates;
            if !mask.num_keys.is_null() && end_block != 0 {
                let row = mask.key_row(work.keys.sequence, p.q_heads, work.q_head, work.number);
                contents.stripes = mask
                    .key_indices
                    .add(gpu::opaque(row * u64::from(mask.key_capacity)));
                contents.candidates += gpu::ld_global_nc(mask.num_keys.add(row));
            }
        }
        contents
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

/// Keys from this one on are not loose: the own block's, and what no row sees.
#[inline(always)]
pub(super) const fn end_key(end_block: u32, k_len: u32) -> u32 {
    let end = end_block * BLOCK;
    if end < k_len { end } else { k_len }
}
