//! Which heads run dense: those whose selection costs as much.
//!
//! The cost is counted in tiles of a query block: each listed key block is one, and so are each 128 *loose* keys, stripes and
//! sinks that no listed block covers.
//!
//! ```text
//! a block of threads: one head; a thread: every 256th query block
//!
//! loose = sinks and stripes before the query block, less those in its listed blocks
//! sparse += listed blocks + ⌈loose / 128⌉;  dense += query block + 1
//! ```
//!
//! Listed blocks are walked as runs, and only as far as there are sinks or stripes: with selected blocks that is the first
//! few entries, with selected keys the window, one run.
//!
//! # Shape contract
//! [`launch_shape`]; all of `dense` is written. Lists and stripes may be the caller's own: ascending, without repeats; blocks
//! after the query block's own and keys not below `k_len` are not allowed.

use crate::geometry::Units;
use crate::gpu::{self, Global};
use crate::launch::{CHOOSE_DENSE_THREADS as THREADS, LaunchShape};
use crate::params::BLOCK;
use crate::tile::sum::sum_in_block;

use super::BlockLists;

/// What the choice reads and writes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ChooseDenseParams {
    /// The problem and its sinks.
    pub units: Units,
    /// Listed blocks.
    pub lists: BlockLists,
    /// \[batch · q_heads, k_len\]: stripes; not read for heads that have none.
    pub stripes: Global<u32>,
    /// \[batch · q_heads\]: how many.
    pub stripe_counts: Global<u32>,
    /// \[batch · q_heads\]: 1 where the head runs dense, else 0.
    pub dense: Global<u32>,
}

/// The launch of `choose_dense`.
pub const fn launch_shape(units: &Units) -> LaunchShape {
    let shared_bytes = 2 * size_of::<u64>() as u32;
    LaunchShape::linear(units.sizes.heads(), THREADS, shared_bytes)
}

/// Sinks and stripes of one head.
#[derive(Clone, Copy)]
struct SingleKeys {
    sinks: u32,
    stripes: Global<u32>,
    count: u32,
    /// Stripes that are sinks too.
    in_sinks: u32,
}

impl SingleKeys {
    #[inline(always)]
    fn new(sinks: u32, stripes: Global<u32>, count: u32) -> Self {
        let mut keys = SingleKeys {
            sinks,
            stripes,
            count,
            in_sinks: 0,
        };
        keys.in_sinks = keys.stripes_below(sinks);
        keys
    }

    #[inline(always)]
    fn stripes_below(&self, end: u32) -> u32 {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            if gpu::ld_global_nc(self.stripes.add(middle.into())) < end {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    /// Sinks and stripes below `end`, each once.
    #[inline(always)]
    fn below(&self, end: u32) -> u32 {
        if end <= self.sinks {
            end
        } else {
            self.sinks + self.stripes_below(end) - self.in_sinks
        }
    }

    /// One more than the greatest; 0 for none.
    #[inline(always)]
    fn end(&self) -> u32 {
        let last_stripe = self.count.wrapping_sub(1);
        if self.count > self.in_sinks {
            gpu::ld_global_nc(self.stripes.add(last_stripe.into())) + 1
        } else {
            self.sinks
        }
    }
}

#[inline(always)]
fn choose(p: &ChooseDenseParams) {
    let units = &p.units;
    let sizes = &units.sizes;
    let head = gpu::ctaid_x();
    let count = gpu::ld_global(p.stripe_counts.add(head.into()));
    let stripes = p.stripes.add(u64::from(head) * u64::from(sizes.k_len));
    let keys = SingleKeys::new(units.sinks, stripes, count);
    let keys_end = keys.end();

    let (mut sparse, mut dense) = (0, 0);
    let mut query_block = sizes.first_query_block() + gpu::tid_x();
    while query_block < sizes.key_blocks() {
        let listed = gpu::ld_global(p.lists.count_of(units, head, query_block));
        let list = p.lists.of(units, head, query_block);
        // Keys in the query block itself are in its own block, which is listed.
        let end = keys_end.min(query_block * BLOCK);
        let mut loose = keys.below(end);
        let mut entry = 0;
        let mut run = 0..0;
        while entry < listed {
            let block = gpu::ld_global(list.add(entry.into()));
            if block * BLOCK >= end {
                break;
            }
            if block == run.end {
                run.end += 1;
            } else {
                loose -= keys.below((run.end * BLOCK).min(end)) - keys.below(run.start * BLOCK);
                run = block..block + 1;
            }
            entry += 1;
        }
        loose -= keys.below((run.end * BLOCK).min(end)) - keys.below(run.start * BLOCK);
        sparse += u64::from(listed + loose.div_ceil(BLOCK));
        dense += u64::from(query_block + 1);
        query_block += THREADS;
    }

    let sums = gpu::dynamic_shared().cast::<u64>();
    let sparse = sum_in_block(sparse, sums);
    let dense = sum_in_block(dense, sums.add(1));
    if gpu::tid_x() == 0 {
        gpu::st_global(p.dense.add(head.into()), u32::from(sparse >= dense));
    }
}

crate::entry! {
    /// The choice of dense heads.
    CHOOSE_DENSE, choose_dense = choose, ChooseDenseParams
}
