//! Gathered keys: the sinks and stripes that no listed block covers, packed into full tiles.
//!
//! Sinks, then stripes are the *candidates*, in ascending order. Each warp goes through them by itself,
//! a lane each: a ballot says which are gathered, and their place in the warp's queue follows from the
//! lanes below. What is left over from the last 32 candidates starts the next tile.

use super::warp_lane::WarpMemory;
use super::work::end_key;
use super::{COPY_BARRIER, COPY_THREADS, SparseFlashParams};
use crate::gpu;
use crate::params::BLOCK;
use crate::tile::WARP;

/// Keys that a warp's queue holds, in front a tile of `tile_keys`: less than that, and then 32 candidates more.
pub(super) const fn queue_keys(tile_keys: u32) -> u32 {
    tile_keys + 32
}

/// A warp's way through its query block's candidates. What does not change is in its [`WarpContext`](super::warp_context::WarpContext).
pub(super) struct GatheredKeys<const TILE_KEYS: u32> {
    /// The first of the 32 candidates whose keys the lanes hold in `ahead`.
    pub next: u32,
    pub ahead: u32,
    /// Keys in the queue; the first `TILE_KEYS` of them are the current tile's.
    pub queued: u32,
}

impl<const TILE_KEYS: u32> GatheredKeys<TILE_KEYS> {
    /// The gathered keys of the context's query block, whose bitmap is made.
    #[inline(always)]
    pub fn new(p: &SparseFlashParams, memory: WarpMemory) -> Self {
        let mut keys = Self {
            next: 0,
            ahead: u32::MAX,
            queued: 0,
        };
        keys.look_ahead(p, memory);
        keys
    }

    /// Loads this lane's candidate of the next 32, or `u32::MAX`.
    #[inline(always)]
    fn look_ahead(&mut self, p: &SparseFlashParams, memory: WarpMemory) {
        let context = memory.context;
        let sink_candidates = context.sink_candidates();
        let candidate = self.next + memory.warp_lane.lane;
        self.ahead = if candidate < sink_candidates {
            candidate
        } else if candidate < context.candidates() {
            let stripe = context.stripes().add((candidate - sink_candidates).into());
            let key = gpu::ld_global_nc(stripe);
            // A stripe among the sinks has been a candidate already.
            if key < p.mask.sinks { u32::MAX } else { key }
        } else {
            u32::MAX
        };
    }

    /// Replaces the tile at the front of the queue by the next one and returns its keys: fewer than a
    /// full tile only in the last, 0 after it. All lanes of the warp call it.
    #[inline(always)]
    pub fn pack(&mut self, p: &SparseFlashParams, memory: WarpMemory) -> u32 {
        let candidates = memory.context.candidates();
        let lane = memory.warp_lane.lane;
        if self.queued != 0 {
            let left = self.queued.saturating_sub(TILE_KEYS);
            let key = if lane < left {
                gpu::ld_shared(memory.queue.add(TILE_KEYS + lane))
            } else {
                0
            };
            // All lanes have read what the front of the queue held.
            gpu::bar_warp_sync(WARP);
            if lane < left {
                gpu::st_shared(memory.queue.add(lane), key);
            }
            self.queued = left;
        }
        while self.queued < TILE_KEYS && self.next < candidates {
            let key = self.ahead;
            self.next += 32;
            self.look_ahead(p, memory);
            let gathered = is_gathered(memory, key);
            let lanes = gpu::vote_sync_ballot(WARP, gathered);
            if gathered {
                let before = (lanes & ((1 << lane) - 1)).count_ones();
                gpu::st_shared(memory.queue.add(self.queued + before), key);
            }
            self.queued += lanes.count_ones();
        }
        gpu::bar_warp_sync(WARP);
        self.queued.min(TILE_KEYS)
    }
}

/// Makes the bitmap of the listed blocks before `end_block`. The [`COPY_THREADS`] threads that copy call it.
#[inline(always)]
pub(super) fn mark_listed(memory: WarpMemory, end_block: u32) {
    let WarpMemory {
        context, listed, ..
    } = memory;
    // Nobody reads the bitmap of the work tile before.
    gpu::bar_sync_count(COPY_BARRIER, COPY_THREADS);
    let mut word = gpu::tid_x();
    while word < end_block.div_ceil(32) {
        gpu::st_shared(listed.add(word), 0);
        word += COPY_THREADS;
    }
    gpu::bar_sync_count(COPY_BARRIER, COPY_THREADS);
    let (list, entries) = (context.list(), context.entries());
    let mut entry = gpu::tid_x();
    while entry < entries {
        let block = gpu::ld_global_nc(list.add(entry.into()));
        if block < end_block {
            gpu::atom_shared_or_b32(listed.add(block / 32), 1 << (block % 32));
        }
        entry += COPY_THREADS;
    }
    gpu::bar_sync_count(COPY_BARRIER, COPY_THREADS);
}

/// Whether no row attends to `key` but for its being a candidate.
#[inline(always)]
fn is_gathered(memory: WarpMemory, key: u32) -> bool {
    let context = memory.context;
    if key >= end_key(context.end_block(), context.k_len()) {
        return false;
    }
    let block = key / BLOCK;
    gpu::ld_shared(memory.listed.add(block / 32)) >> (block % 32) & 1 == 0
}
