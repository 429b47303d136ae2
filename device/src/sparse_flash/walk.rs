//! The tiles of keys that a query tile attends to, in order: diagonal block, listed blocks, gathered keys.

use super::SparseFlashParams;
use super::gathered::{GatheredKeys, mark_listed};
use super::warp_context::{Listed, WarpContext};
use super::warp_lane::WarpMemory;
use super::work::{WorkTile, end_key};
use crate::gpu::{self, Global};
use crate::params::BLOCK;
use crate::tile::{WARP, scale};

/// A tile of keys.
#[derive(Clone, Copy, Debug)]
pub(super) struct KeyTile {
    /// The first key; the tile's keys follow it. [`KeyTile::GATHERED`]: they are those at the front of the
    /// warp's queue.
    pub start: u32,
    /// How many keys; 0 after the last tile.
    pub keys: u32,
}

impl KeyTile {
    /// The `start` of a gathered tile.
    const GATHERED: u32 = u32::MAX;

    /// The contiguous tile at `start`, which is before `k_len`.
    #[inline(always)]
    pub fn contiguous<const TILE_KEYS: u32>(start: u32, k_len: u32) -> Self {
        Self {
            start,
            keys: (k_len - start).min(TILE_KEYS),
        }
    }

    /// Whether the keys are gathered.
    #[inline(always)]
    pub const fn is_gathered(self) -> bool {
        self.start == Self::GATHERED
    }
}

/// The way through a query tile's tiles of keys. The same in every thread, but for the gathered keys' lanes.
/// What does not change is in the warp's [`WarpContext`].
pub(super) struct KeyWalk<const TILE_KEYS: u32> {
    /// Where the keys of gathered tiles come from. As long as `queued` is [`IN_LIST`], its `next` is the list's next entry and `ahead`
    /// the key block of that (`u32::MAX` after the last), loaded a tile ahead: what lies behind the list takes no further registers.
    cursor: GatheredKeys<TILE_KEYS>,
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
        let context = memory.context;
        if gpu::laneid() == 0 {
            let work = work();
            context.write_work(&work, scale::magnitude(p.scale_log2));
            context.write_k(work.tokens(&p.k));
            context.write_v(work.tokens(&p.v));
            context.write_listed(&Listed::new(p, &work));
        }
        gpu::bar_warp_sync(WARP);
        if context.candidates() != 0 {
            mark_listed(memory, context.end_block());
        }
        let mut walk = Self {
            cursor: GatheredKeys {
                next: 0,
                ahead: u32::MAX,
                queued: IN_LIST,
            },
        };
        walk.look_ahead(context);
        let query_block = context.query_block();
        let first = if p.sequences.is_causal() && query_block != WorkTile::MASKED {
            KeyTile::contiguous::<TILE_KEYS>(query_block * BLOCK, context.k_len())
        } else {
            walk.next_block(p, memory)
        };
        (walk, first)
    }

    #[inline(always)]
    fn look_ahead(&mut self, context: WarpContext) {
        let list = context.list();
        let entry = self.cursor.next;
        self.cursor.ahead = if entry >= context.entries() {
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
            let k_len = memory.context.k_len();
            if other_half < k_len {
                return KeyTile::contiguous::<TILE_KEYS>(other_half, k_len);
            }
        }
        self.next_block(p, memory)
    }

    /// The tile that `next` gave, from its `start` alone: its other half needs no register meanwhile.
    #[inline(always)]
    pub fn again(&self, memory: WarpMemory, start: u32) -> KeyTile {
        if start == KeyTile::GATHERED {
            KeyTile {
                start,
                keys: self.cursor.queued.min(TILE_KEYS),
            }
        } else {
            KeyTile::contiguous::<TILE_KEYS>(start, memory.context.k_len())
        }
    }

    /// The first tile of the next block, or the next gathered tile.
    #[inline(always)]
    fn next_block(&mut self, p: &SparseFlashParams, memory: WarpMemory) -> KeyTile {
        let context = memory.context;
        if self.cursor.queued == IN_LIST {
            // The list is ascending: the first block that is out of range ends it.
            if self.cursor.ahead < context.end_block() {
                let start = self.cursor.ahead * BLOCK;
                self.look_ahead(context);
                return KeyTile::contiguous::<TILE_KEYS>(start, context.k_len());
            }
            self.cursor = GatheredKeys::new(p, memory);
        }
        KeyTile {
            start: KeyTile::GATHERED,
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
