//! In which order the blocks of the attention kernel take its tasks.
//!
//! A task is a query block of one head, and takes as long as it has tiles. Blocks of threads take tasks one by one, from a counter. If
//! the longest come first, what is left when the last is taken is short, and all multiprocessors end together.
//!
//! ```text
//! dense:   for each group of heads that share keys: query blocks from the last to the first, all heads of the group for each
//! sparse:  for each group: its tasks sorted by their tiles into 1024 buckets, longest first, by one block of this kernel
//! ```
//!
//! Groups keep what runs at the same time to few heads of keys and values, which then stay in the cache: all heads of 128K tokens at once,
//! 512 MB of them, would come from memory for every query block. The dense order needs no memory: blocks compute it. The sparse order
//! keeps the dense one within a bucket only roughly: lanes take their places with atomics. No result depends on it.
//!
//! The kernel also sets the counter, so that a launch relies on no memory that the host cleared.

use super::super::record::Task;
use super::super::{SparseFlashParams, query_tiles};
use crate::gpu::{self, Global, Shared};
use crate::launch::LaunchShape;
use crate::params::{BLOCK, ProblemSizes};
use crate::tile::WARP;

/// Threads of a block. Each has a bucket.
pub const THREADS: u32 = 1024;

/// The order of the tasks, and how many have been taken.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    /// One word: tasks taken, beyond each block's first.
    pub taken: Global<u32>,
    /// [`tasks`] words: the tasks' numbers, group by group, longest first. Null: in the order of their numbers.
    pub order: Global<u32>,
    /// Heads whose tasks of one query block follow each other: a divisor of batch · q_heads.
    pub group_heads: u32,
}

/// What the scheduling kernel reads and writes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ScheduleParams {
    /// Of the launch that follows.
    pub attention: SparseFlashParams,
    /// What it writes.
    pub schedule: Schedule,
}

/// Query blocks of all heads.
pub const fn tasks(sizes: &ProblemSizes) -> u32 {
    sizes.heads() * query_tiles(sizes)
}

/// Bytes of keys and values that should stay in the cache while their group runs: well under the 50 MB of an H100's L2.
const CACHED_BYTES: u64 = 16 << 20;

/// Heads of a group: those of as many key/value heads as fit in the cache together, at least one.
pub const fn group_heads(sizes: &ProblemSizes) -> u32 {
    let kv_bytes = sizes.k_len as u64 * sizes.head_dim as u64 * 4;
    let kv_heads = sizes.batch * sizes.kv_heads;
    let fit = CACHED_BYTES / kv_bytes;
    let mut count = if fit > kv_heads as u64 {
        kv_heads
    } else if fit == 0 {
        1
    } else {
        fit as u32
    };
    while !kv_heads.is_multiple_of(count) {
        count -= 1;
    }
    count * (sizes.q_heads / sizes.kv_heads)
}

impl Schedule {
    /// Tasks of a group, whose numbers follow each other.
    #[inline(always)]
    const fn group_tasks(&self, sizes: &ProblemSizes) -> u32 {
        self.group_heads * query_tiles(sizes)
    }

    /// The task of number `number`, which is below [`tasks`].
    #[inline(always)]
    pub(in super::super) const fn task(&self, sizes: &ProblemSizes, number: u32) -> Task {
        let of_group = self.group_tasks(sizes);
        let in_group = number % of_group;
        let head = number / of_group * self.group_heads + in_group % self.group_heads;
        let query_block = sizes.query_blocks() - 1 - in_group / self.group_heads;
        Task::new(
            sizes,
            head / sizes.q_heads,
            head % sizes.q_heads,
            query_block,
        )
    }

    /// The number of the task at a place of the order, if there are so many.
    #[inline(always)]
    pub fn number(&self, sizes: &ProblemSizes, place: u32) -> Option<u32> {
        if place >= tasks(sizes) {
            None
        } else if self.order.is_null() {
            Some(place)
        } else {
            Some(gpu::ld_global(self.order.add(place.into())))
        }
    }
}

/// The launch of the scheduling kernel: a block for each group, or one where there is nothing to sort.
pub const fn launch_shape(sizes: &ProblemSizes, schedule: &Schedule) -> LaunchShape {
    let groups = if schedule.order.is_null() {
        1
    } else {
        sizes.heads() / schedule.group_heads
    };
    LaunchShape::linear(groups, THREADS, 4 * (THREADS + THREADS / 32))
}

/// About how many tiles a task has, at least 1.
#[inline(always)]
fn tiles(p: &SparseFlashParams, task: Task) -> u32 {
    let sizes = &p.sizes;
    let head = u64::from(task.batch * sizes.q_heads + task.head);
    let dense = if sizes.is_causal() {
        task.query_block + 1
    } else {
        sizes.key_blocks()
    };
    if !p.dense.is_null() && gpu::ld_global_nc(p.dense.add(head)) != 0 {
        return dense;
    }
    let row = head * u64::from(sizes.query_blocks()) + u64::from(task.query_block);
    let mut tiles = gpu::ld_global_nc(p.list_count.add(row)) + u32::from(p.sinks > 0);
    if !p.stripes.is_null() {
        // As if stripes were spread evenly.
        let stripes = gpu::ld_global_nc(p.stripe_count.add(head));
        let seen = u64::from(stripes) * u64::from(dense) / u64::from(sizes.key_blocks());
        tiles += seen as u32 / BLOCK;
    }
    tiles.clamp(1, dense)
}

/// The bucket of a task: 0 for the longest.
#[inline(always)]
fn bucket(p: &SparseFlashParams, task: Task) -> u32 {
    let longest = p.sizes.key_blocks();
    let tiles = tiles(p, task);
    if longest < THREADS {
        longest - tiles
    } else {
        THREADS - 1 - (u64::from(tiles) * u64::from(THREADS - 1) / u64::from(longest)) as u32
    }
}

#[inline(always)]
fn order_tasks(p: &ScheduleParams) {
    let thread = gpu::tid_x();
    if thread == 0 && gpu::ctaid_x() == 0 {
        gpu::st_global(p.schedule.taken, 0);
    }
    if p.schedule.order.is_null() {
        return;
    }
    let sizes = &p.attention.sizes;
    let first = gpu::ctaid_x() * p.schedule.group_tasks(sizes);
    let end = first + p.schedule.group_tasks(sizes);
    let buckets: Shared<u32> = gpu::dynamic_shared().cast();
    gpu::st_shared(buckets.add(thread), 0);
    gpu::bar_sync(0);
    let mut number = first + thread;
    while number < end {
        let bucket = bucket(&p.attention, p.schedule.task(sizes, number));
        gpu::atom_shared_add_u32(buckets.add(bucket), 1);
        number += THREADS;
    }
    gpu::bar_sync(0);
    let before = tasks_before(gpu::ld_shared(buckets.add(thread)), buckets.add(THREADS));
    gpu::st_shared(buckets.add(thread), before);
    gpu::bar_sync(0);
    let mut number = first + thread;
    while number < end {
        let bucket = bucket(&p.attention, p.schedule.task(sizes, number));
        let place = first + gpu::atom_shared_add_u32(buckets.add(bucket), 1);
        gpu::st_global(p.schedule.order.add(place.into()), number);
        number += THREADS;
    }
}

/// The sum of `count` over the threads before this one. `totals` holds a word a warp.
#[inline(always)]
fn tasks_before(count: u32, totals: Shared<u32>) -> u32 {
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
    /// The order of the tasks of the Hopper attention kernels.
    SCHEDULE, sparse_flash_schedule = order_tasks, ScheduleParams
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(batch: u32, q_heads: u32, kv_heads: u32, q_len: u32, k_len: u32) -> ProblemSizes {
        ProblemSizes {
            batch,
            q_heads,
            kv_heads,
            q_len,
            k_len,
            head_dim: 128,
            causal: 1,
        }
    }

    #[test]
    fn every_query_block_of_every_head_is_one_task() {
        for sizes in [
            sizes(1, 32, 8, 1 << 17, 1 << 17),
            sizes(3, 6, 2, 300, 1000),
            sizes(2, 8, 8, 8192, 1 << 15),
            sizes(1, 4, 1, 1, 1),
        ] {
            let schedule = Schedule {
                taken: Global::NULL,
                order: Global::NULL,
                group_heads: group_heads(&sizes),
            };
            assert!(sizes.heads().is_multiple_of(schedule.group_heads));
            let mut seen = std::collections::HashSet::new();
            for number in 0..tasks(&sizes) {
                let task = schedule.task(&sizes, number);
                let blocks = sizes.first_query_block()..sizes.query_blocks();
                assert!(task.batch < sizes.batch && task.head < sizes.q_heads);
                assert!(blocks.contains(&task.query_block));
                assert!(seen.insert((task.batch, task.head, task.query_block)));
            }
            assert_eq!(seen.len(), tasks(&sizes) as usize);
        }
    }

    #[test]
    fn a_group_shares_keys_that_fit_the_cache() {
        // 16 MiB of keys and values a head at 32K tokens: a group is the heads of one.
        assert_eq!(group_heads(&sizes(1, 32, 8, 1 << 15, 1 << 15)), 4);
        assert_eq!(group_heads(&sizes(1, 32, 8, 1 << 17, 1 << 17)), 4);
        assert_eq!(group_heads(&sizes(1, 32, 8, 1 << 13, 1 << 13)), 16);
        assert_eq!(group_heads(&sizes(1, 32, 8, 256, 256)), 32);
        assert_eq!(group_heads(&sizes(3, 6, 2, 1 << 14, 1 << 14)), 6);
    }
}
