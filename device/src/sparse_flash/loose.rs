//! Loose keys: the sinks and stripes that no listed block covers, packed into full tiles.
//!
//! Sinks, then stripes are the *candidates*, in ascending order. Each warp goes through them by itself,
//! a lane each: a ballot says which are loose, and their place in the warp's queue follows from the
//! lanes below. What is left over from the last 32 candidates starts the next tile.

use super::{QUEUE_KEYS, SparseFlashParams, THREADS, TILE_KEYS};
use crate::gpu::{self, Global, Shared};
use crate::params::BLOCK;
use crate::tile::WARP;

/// Where loose keys are worked out in shared memory.
#[derive(Clone, Copy)]
pub(super) struct LooseMemory {
    /// This warp's queue of [`QUEUE_KEYS`].
    pub queue: Shared<u32>,
    /// A bit for each key block: whether it is listed.
    pub listed: Shared<u32>,
}

/// A warp's way through its query block's candidates.
pub(super) struct LooseKeys {
    memory: LooseMemory,
    stripes: Global<u32>,
    /// Stripes before this key are sinks too.
    sinks: u32,
    /// Candidates that are sinks.
    sink_candidates: u32,
    candidates: u32,
    /// Keys from this one on are not loose: the own block's, and what no row sees.
    end_key: u32,
    /// The first of the 32 candidates whose keys the lanes hold in `ahead`.
    next: u32,
    ahead: u32,
    /// Keys in the queue; the first [`TILE_KEYS`] of them are the current tile's.
    queued: u32,
}

impl LooseKeys {
    /// No loose keys.
    #[inline(always)]
    pub fn none(memory: LooseMemory) -> Self {
        Self {
            memory,
            stripes: Global::NULL,
            sinks: 0,
            sink_candidates: 0,
            candidates: 0,
            end_key: 0,
            next: 0,
            ahead: u32::MAX,
            queued: 0,
        }
    }

    /// The loose keys of a query block with `list`. All threads of the block call it: the bitmap is
    /// made here.
    #[inline(always)]
    pub fn new(
        p: &SparseFlashParams,
        head: u64,
        end_block: u32,
        list: Global<u32>,
        entries: u32,
        memory: LooseMemory,
    ) -> Self {
        let end_key = p.sizes.k_len.min(end_block * BLOCK);
        let sink_candidates = p.sinks.min(end_key);
        let stripes = if p.stripes.is_null() || end_key == 0 {
            0
        } else {
            gpu::ld_global_nc(p.stripe_count.add(head))
        };
        let mut keys = Self {
            stripes: p.stripes.add(head * u64::from(p.stripe_capacity)),
            sinks: p.sinks,
            sink_candidates,
            candidates: sink_candidates + stripes,
            end_key,
            ..Self::none(memory)
        };
        if keys.candidates != 0 {
            keys.mark_listed(list, entries, end_block);
            keys.look_ahead();
        }
        keys
    }

    #[inline(always)]
    fn mark_listed(&self, list: Global<u32>, entries: u32, end_block: u32) {
        let mut word = gpu::tid_x();
        while word < end_block.div_ceil(32) {
            gpu::st_shared(self.memory.listed.add(word), 0);
            word += THREADS;
        }
        gpu::bar_sync(0);
        let mut entry = gpu::tid_x();
        while entry < entries {
            let block = gpu::ld_global_nc(list.add(entry.into()));
            if block < end_block {
                gpu::atom_shared_or_b32(self.memory.listed.add(block / 32), 1 << (block % 32));
            }
            entry += THREADS;
        }
        gpu::bar_sync(0);
    }

    /// Loads this lane's candidate of the next 32, or `u32::MAX`.
    #[inline(always)]
    fn look_ahead(&mut self) {
        let candidate = self.next + gpu::laneid();
        self.ahead = if candidate < self.sink_candidates {
            candidate
        } else if candidate < self.candidates {
            let stripe = self.stripes.add((candidate - self.sink_candidates).into());
            let key = gpu::ld_global_nc(stripe);
            if key < self.sinks { u32::MAX } else { key }
        } else {
            u32::MAX
        };
    }

    #[inline(always)]
    fn is_loose(&self, key: u32) -> bool {
        if key >= self.end_key {
            return false;
        }
        let block = key / BLOCK;
        gpu::ld_shared(self.memory.listed.add(block / 32)) >> (block % 32) & 1 == 0
    }

    /// Replaces the tile at the front of the queue by the next one and returns its keys: fewer than a
    /// full tile only in the last, 0 after it. All lanes of the warp call it.
    #[inline(always)]
    pub fn pack(&mut self) -> u32 {
        let lane = gpu::laneid();
        if self.queued != 0 {
            let left = self.queued.saturating_sub(TILE_KEYS);
            let key = if lane < left {
                gpu::ld_shared(self.memory.queue.add(TILE_KEYS + lane))
            } else {
                0
            };
            // All lanes have read what the front of the queue held.
            gpu::bar_warp_sync(WARP);
            if lane < left {
                gpu::st_shared(self.memory.queue.add(lane), key);
            }
            self.queued = left;
        }
        while self.queued < TILE_KEYS && self.next < self.candidates {
            let key = self.ahead;
            self.next += 32;
            self.look_ahead();
            let loose = self.is_loose(key);
            let lanes = gpu::vote_sync_ballot(WARP, loose);
            if loose {
                let before = (lanes & ((1 << lane) - 1)).count_ones();
                gpu::st_shared(self.memory.queue.add(self.queued + before), key);
            }
            self.queued += lanes.count_ones();
        }
        gpu::bar_warp_sync(WARP);
        self.queued.min(TILE_KEYS)
    }

    /// The key at `row` of the current tile; anything after its last.
    #[inline(always)]
    pub fn key(&self, row: u32) -> u32 {
        gpu::ld_shared(self.memory.queue.add(row))
    }
}

/// A queue never overflows: less than a tile, and 32 candidates more.
const _: () = assert!(TILE_KEYS - 1 + 32 <= QUEUE_KEYS);
