//! In which order the blocks of the attention kernel take its work tiles.
//!
//! A work tile is a query tile of one head, and takes as long as it has tiles of keys. Blocks of threads take them one by one, from a
//! counter. If the longest come first, what is left when the last is taken is short, and all multiprocessors end together.
//!
//! ```text
//! dense:   for each group of query tiles, and of heads that share keys: query tiles from the last to the first, all heads for each
//! sparse:  for each such group: its work tiles sorted by their tiles of keys into 1024 buckets, longest first, by one block of this
//!          kernel
//! ```
//!
//! Groups keep what runs at the same time to few heads of keys and values, which then stay in the cache: all heads of 128K tokens at once,
//! 512 MB of them, would come from memory for every query tile. The dense order needs no memory: blocks compute it. The sparse order
//! keeps the dense one within a bucket only roughly: lanes take their places with atomics. No result depends on it.
//!
//! The kernel also sets the counter, so that a launch relies on no memory that the host cleared.

use super::super::SparseFlashParams;
use super::super::work::WorkTile;
use crate::abi::Sequences;
use crate::gpu::{self, Global, Shared};
use crate::launch::LaunchShape;
use crate::params::BLOCK;
use crate::tile::WARP;

/// Threads of a block. Each has a bucket.
pub const THREADS: u32 = 1024;

/// The order of the work tiles, and how many have been taken.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct TileScheduler {
    /// One word: work tiles taken, beyond each block's first.
    pub taken: Global<u32>,
    /// [`work_tiles`] words: the work tiles' numbers, group by group, longest first. Null: in the order of their numbers.
    pub order: Global<u32>,
    /// How they are grouped.
    pub groups: Groups,
}

/// What the scheduling kernel reads and writes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ScheduleParams {
    /// Of the launch that follows.
    pub attention: SparseFlashParams,
    /// What it writes.
    pub schedule: TileScheduler,
}

/// Work tiles, those included whose numbers name no query tile.
pub const fn work_tiles(p: &SparseFlashParams) -> u32 {
    p.q_heads * p.tiles()
}

/// Which work tiles follow each other.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Groups {
    /// Query heads of a group: a divisor of `q_heads`.
    pub heads: u32,
    /// Query tiles of a group: a divisor of the launch's.
    pub tiles: u32,
    /// Work tiles of a group, whose numbers follow each other: the product of both.
    work_tiles: u32,
    /// Groups of the same query tiles.
    of_heads: u32,
}

/// Bytes of keys and values that should stay in the cache while their group runs: well under the 50 MB of an H100's L2.
const CACHED_BYTES: u64 = 16 << 20;

impl Groups {
    /// The groups of a launch: those heads of one sequence, or all heads of all sequences, whose keys and values fit in the cache
    /// together. Ragged sequences count as one: where they begin is device data.
    pub const fn new(p: &SparseFlashParams) -> Self {
        let sequences = &p.sequences;
        let kv_bytes = sequences.max_k as u64 * p.head_dim as u64 * 4;
        let fit = match CACHED_BYTES.checked_div(kv_bytes) {
            Some(fit) => fit,
            None => u64::MAX,
        };
        let everything = fit >= p.kv_heads as u64 * sequences.count as u64;
        let of_each = of_each_sequence(sequences);
        let by_sequence = !everything
            && !sequences.is_ragged()
            && of_each != 0
            && p.first_tile().is_multiple_of(of_each)
            && p.tiles().is_multiple_of(of_each);
        let mut kv_heads = if fit > p.kv_heads as u64 {
            p.kv_heads
        } else if fit == 0 {
            1
        } else {
            fit as u32
        };
        while !p.kv_heads.is_multiple_of(kv_heads) {
            kv_heads -= 1;
        }
        let heads = kv_heads * (p.q_heads / p.kv_heads);
        let tiles = if by_sequence { of_each } else { p.tiles() };
        Self {
            heads,
            tiles,
            work_tiles: heads * tiles,
            of_heads: p.q_heads / heads,
        }
    }

    /// How many there are.
    const fn count(&self, p: &SparseFlashParams) -> u32 {
        match work_tiles(p).checked_div(self.work_tiles) {
            Some(count) => count,
            None => 0,
        }
    }

    /// Query head and query tile of a work tile.
    #[inline(always)]
    const fn head_and_tile(&self, p: &SparseFlashParams, number: u32) -> (u32, u32) {
        let group = number / self.work_tiles;
        let in_group = number % self.work_tiles;
        let head = group % self.of_heads * self.heads + in_group % self.heads;
        let first = p.first_tile() + group / self.of_heads * self.tiles;
        (head, first + self.tiles - 1 - in_group / self.heads)
    }
}

/// Query tiles of each of equal sequences.
const fn of_each_sequence(sequences: &Sequences) -> u32 {
    match sequences.query_tiles().checked_div(sequences.count) {
        Some(tiles) => tiles,
        None => 0,
    }
}

impl TileScheduler {
    /// Calls `each` with the work tile of number `number`, which is below [`work_tiles`], unless it names no query tile; whether it
    /// does. (An optional work tile would be kept in registers, set or not.)
    #[inline(always)]
    pub(in super::super) fn with_work_tile(
        &self,
        p: &SparseFlashParams,
        number: u32,
        each: impl FnOnce(&WorkTile),
    ) -> bool {
        let (head, tile) = self.groups.head_and_tile(p, number);
        // What follows from the lengths would otherwise be kept from work tile to work tile.
        let [max_q, max_k] =
            [p.sequences.max_q, p.sequences.max_k].map(|len| gpu::opaque(len.into()) as u32);
        let sequences = Sequences {
            max_q,
            max_k,
            ..p.sequences
        };
        let sequence = sequences.sequence_of(tile);
        let place = tile - sequences.first_query_tile(&sequence);
        let exists = place < sequence.query_tiles();
        if exists {
            each(&WorkTile::new(p, head, tile, &sequence.tile_at(place)));
        }
        exists
    }

    /// The number of the work tile at a place of the order, if there are so many.
    #[inline(always)]
    pub fn number(&self, p: &SparseFlashParams, place: u32) -> Option<u32> {
        if place >= work_tiles(p) {
            None
        } else if self.order.is_null() {
            Some(place)
        } else {
            Some(gpu::ld_global(self.order.add(place.into())))
        }
    }
}

/// The launch of the scheduling kernel: a block for each group, or one where there is nothing to sort.
pub const fn launch_shape(p: &SparseFlashParams, schedule: &TileScheduler) -> LaunchShape {
    let groups = schedule.groups.count(p);
    let groups = if schedule.order.is_null() || groups == 0 {
        1
    } else {
        groups
    };
    LaunchShape::linear(groups, THREADS, 4 * (THREADS + THREADS / 32))
}

/// About how many tiles of keys a work tile has.
#[inline(always)]
fn tiles_of(p: &SparseFlashParams, work: &WorkTile) -> u32 {
    let mask = &p.mask;
    if work.query_block == WorkTile::MASKED {
        return 0;
    }
    let dense = work.end_block(p) + p.sequences.causal;
    let head = u64::from(work.keys.sequence) * u64::from(p.q_heads) + u64::from(work.q_head);
    if !mask.dense.is_null() && gpu::ld_global_nc(mask.dense.add(head)) != 0 {
        return dense;
    }
    let row = mask.row(work.q_head, work.number);
    let mut tiles = gpu::ld_global_nc(mask.kv_num_blocks.add(row)) + u32::from(mask.sinks > 0);
    if !mask.num_keys.is_null() {
        let row = mask.key_row(work.keys.sequence, p.q_heads, work.q_head, work.number);
        let mut keys = u64::from(gpu::ld_global_nc(mask.num_keys.add(row)));
        if mask.keys_per_tile == 0 {
            // As if they were spread evenly.
            keys = keys * u64::from(dense) / u64::from(work.keys.len.div_ceil(BLOCK));
        }
        tiles += keys as u32 / BLOCK;
    }
    tiles.clamp(1, dense)
}

/// The bucket of a work tile: 0 for the longest, the last for numbers that name no query tile.
#[inline(always)]
fn bucket(p: &ScheduleParams, number: u32) -> u32 {
    let attention = &p.attention;
    let longest = attention.sequences.max_key_blocks();
    let mut tiles = 0;
    p.schedule
        .with_work_tile(attention, number, |work| tiles = tiles_of(attention, work));
    if longest < THREADS {
        longest - tiles
    } else {
        THREADS - 1 - (u64::from(tiles) * u64::from(THREADS - 1) / u64::from(longest)) as u32
    }
}

#[inline(always)]
fn order_work_tiles(p: &ScheduleParams) {
    let thread = gpu::tid_x();
    if thread == 0 && gpu::ctaid_x() == 0 {
        gpu::st_global(p.schedule.taken, 0);
    }
    if p.schedule.order.is_null() {
        return;
    }
    let of_group = p.schedule.groups.work_tiles;
    let first = gpu::ctaid_x() * of_group;
    let end = first + of_group;
    let buckets: Shared<u32> = gpu::dynamic_shared().cast();
    gpu::st_shared(buckets.add(thread), 0);
    gpu::bar_sync(0);
    let mut number = first + thread;
    while number < end {
        let bucket = bucket(p, number);
        gpu::atom_shared_add_u32(buckets.add(bucket), 1);
        number += THREADS;
    }
    gpu::bar_sync(0);
    let before = work_tiles_before(gpu::ld_shared(buckets.add(thread)), buckets.add(THREADS));
    gpu::st_shared(buckets.add(thread), before);
    gpu::bar_sync(0);
    let mut number = first + thread;
    while number < end {
        let bucket = bucket(p, number);
        let place = first + gpu::atom_shared_add_u32(buckets.add(bucket), 1);
        gpu::st_global(p.schedule.order.add(place.into()), number);
        number += THREADS;
    }
}

/// The sum of `count` over the threads before this one. `totals` holds a word a warp.
#[inline(always)]
fn work_tiles_before(count: u32, totals: Shared<u32>) -> u32 {
    let lane = gpu::laneid();
    let warp = gpu::tid_x() / 32;
    let in_warp = up_to_lane(count, lane);
    if lane == 31 {
        gpu::st_shared(totals.add(warp), in_warp);
    }
    gpu::bar_sync(0);
    let of_warps = up_to_lane(gpu::ld_shared(totals.add(lane)), lane);
    let before_warp = gpu::shfl_sync_idx(WARP, of_warps, warp.saturating_sub(1));
    in_warp - count + if warp > 0 { before_warp } else { 0 }
}

/// The sum over the lanes up to and including this one.
#[inline(always)]
fn up_to_lane(mut x: u32, lane: u32) -> u32 {
    for step in 0..5 {
        let below = gpu::shfl_sync_up(WARP, x, 1 << step);
        x += if lane >= 1 << step { below } else { 0 };
    }
    x
}

const _: () = assert!(
    THREADS == 32 * 32,
    "a scan over the warps' totals is one warp wide"
);

crate::entry! {
    sm_90a:
    /// The order of the work tiles of the Hopper attention kernels.
    SCHEDULE, sparse_flash_schedule = order_work_tiles, ScheduleParams
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::SparseMask;

    fn attention(count: u32, heads: (u32, u32), (q_len, k_len): (u32, u32)) -> SparseFlashParams {
        let sequences = Sequences::uniform(count, q_len, k_len, true);
        SparseFlashParams::at_nowhere(sequences, heads, 128)
    }

    #[test]
    fn every_query_tile_of_every_head_is_one_work_tile() {
        let whole = [
            attention(1, (32, 8), (1 << 17, 1 << 17)),
            attention(3, (6, 2), (300, 1000)),
            attention(2, (8, 8), (8192, 1 << 15)),
            attention(2, (4, 2), (1 << 16, 1 << 16)),
            attention(1, (4, 1), (1, 1)),
            attention(2, (4, 2), (1000, 10)),
        ];
        let mut slice = attention(4, (8, 2), (1 << 15, 1 << 15));
        slice.mask = SparseMask {
            kv_indices: Global::from_address(16),
            first_tile: 200,
            tiles: 150,
            ..SparseMask::DENSE
        };
        for p in whole.into_iter().chain([slice]) {
            let schedule = TileScheduler {
                taken: Global::NULL,
                order: Global::NULL,
                groups: Groups::new(&p),
            };
            let mut seen = std::collections::HashSet::new();
            for number in 0..work_tiles(&p) {
                assert!(schedule.with_work_tile(&p, number, |work| {
                    assert!(work.q_head < p.q_heads);
                    assert!((p.first_tile()..p.first_tile() + p.tiles()).contains(&work.number));
                    assert!(seen.insert((work.q_head, work.number)));
                }));
            }
            assert_eq!(seen.len(), work_tiles(&p) as usize);
            assert_eq!(
                schedule.groups.count(&p) * schedule.groups.work_tiles,
                work_tiles(&p)
            );
        }
    }

    #[test]
    fn a_group_shares_keys_that_fit_the_cache() {
        let groups = |count, heads, len| {
            let groups = Groups::new(&attention(count, heads, (len, len)));
            (groups.heads, groups.tiles)
        };
        // 16 MiB of keys and values a head at 32K tokens: a group is the heads of one.
        assert_eq!(groups(1, (32, 8), 1 << 15), (4, 256));
        assert_eq!(groups(1, (32, 8), 1 << 17), (4, 1024));
        assert_eq!(groups(1, (32, 8), 1 << 13), (16, 64));
        assert_eq!(groups(1, (32, 8), 256), (32, 2));
        assert_eq!(groups(3, (6, 2), 1 << 14), (6, 128));
        assert_eq!(groups(3, (6, 2), 256), (6, 6));
    }
}
