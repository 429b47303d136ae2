//! Which heads run dense: those whose selection costs as much.
//!
//! The cost is counted in tiles of a query block: each listed key block is one, and so are each 128 *gathered* keys, single keys
//! and sinks that no listed block covers.
//!
//! ```text
//! a CTA: one sequence of a head; a thread: every 256th query block
//!
//! gathered = sinks and single keys before the query block, less those in its listed blocks
//! sparse += listed blocks + ⌈gathered / 128⌉;  dense += query block + 1
//! ```
//!
//! Listed blocks are walked as runs, and only as far as there are sinks or single keys: with selected blocks that is the first
//! few entries, with selected keys the window, one run. A head that selects by rows is left as it is: each of its lists is worth
//! it or dense by itself.
//!
//! # Shape contract
//! [`launch_shape`]; all of the mask's `dense` is written. The mask holds all query tiles of the batch.

use crate::abi::{HeadKind, HeadPolicies, Sequences, SparseMask};
use crate::gpu::{self, Global};
use crate::launch::{CHOOSE_DENSE_THREADS as THREADS, LaunchShape};
use crate::params::BLOCK;
use crate::tile::sum::sum_in_block;

/// What the choice reads and writes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ChooseDenseParams {
    /// The batch; causal.
    pub sequences: Sequences,
    /// How each head is treated.
    pub heads: HeadPolicies,
    /// Query heads.
    pub q_heads: u32,
    /// What is selected; its `dense` is written.
    pub mask: SparseMask,
}

/// The launch of `choose_dense`.
pub const fn launch_shape(sequences: &Sequences, q_heads: u32) -> LaunchShape {
    let shared_bytes = 2 * size_of::<u64>() as u32;
    LaunchShape::linear(sequences.count * q_heads, THREADS, shared_bytes)
}

/// Sinks and single keys of one head.
#[derive(Clone, Copy)]
struct SingleKeys {
    sinks: u32,
    keys: Global<u32>,
    count: u32,
    /// Listed keys that are sinks too.
    in_sinks: u32,
}

impl SingleKeys {
    #[inline(always)]
    fn new(sinks: u32, list: Global<u32>, count: u32) -> Self {
        let mut keys = SingleKeys {
            sinks,
            keys: list,
            count,
            in_sinks: 0,
        };
        keys.in_sinks = keys.keys_below(sinks);
        keys
    }

    #[inline(always)]
    fn keys_below(&self, end: u32) -> u32 {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            if gpu::ld_global_nc(self.keys.add(middle.into())) < end {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    /// Sinks and listed keys below `end`, each once.
    #[inline(always)]
    fn below(&self, end: u32) -> u32 {
        if end <= self.sinks {
            end
        } else {
            self.sinks + self.keys_below(end) - self.in_sinks
        }
    }

    /// One more than the greatest; 0 for none.
    #[inline(always)]
    fn end(&self) -> u32 {
        let last = self.count.wrapping_sub(1);
        if self.count > self.in_sinks {
            gpu::ld_global_nc(self.keys.add(last.into())) + 1
        } else {
            self.sinks
        }
    }
}

#[inline(always)]
fn choose(p: &ChooseDenseParams) {
    let mask = &p.mask;
    let at = gpu::ctaid_x();
    let (index, q_head) = (at / p.q_heads, at % p.q_heads);
    if p.heads.get(q_head).policy.kind == HeadKind::Rows {
        if gpu::tid_x() == 0 {
            gpu::st_global(mask.dense.add(at.into()), 0);
        }
        return;
    }
    let sequence = p.sequences.get(index);
    let first_tile = p.sequences.first_query_tile(&sequence);
    let key_row = mask.key_row(index, p.q_heads, q_head, first_tile);
    let count = if mask.num_keys.is_null() {
        0
    } else {
        gpu::ld_global(mask.num_keys.add(key_row))
    };
    let keys = SingleKeys::new(mask.sinks, mask.keys(key_row), count);
    let keys_end = keys.end();

    let (mut sparse, mut dense) = (0, 0);
    let mut query_block = sequence.first_query_block() + gpu::tid_x();
    while query_block < sequence.end_query_block() {
        let row = mask.row(q_head, first_tile + sequence.place_of(query_block));
        let listed = gpu::ld_global(mask.kv_num_blocks.add(row));
        let list = mask.blocks(row);
        // Keys in the query block itself are in its diagonal block, which is listed.
        let end = keys_end.min(query_block * BLOCK);
        let mut gathered = keys.below(end);
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
                gathered -= keys.below((run.end * BLOCK).min(end)) - keys.below(run.start * BLOCK);
                run = block..block + 1;
            }
            entry += 1;
        }
        gathered -= keys.below((run.end * BLOCK).min(end)) - keys.below(run.start * BLOCK);
        sparse += u64::from(listed + gathered.div_ceil(BLOCK));
        dense += u64::from(query_block + 1);
        query_block += THREADS;
    }

    let sums = gpu::dynamic_shared().cast::<u64>();
    let sparse = sum_in_block(sparse, sums);
    let dense = sum_in_block(dense, sums.add(1));
    if gpu::tid_x() == 0 {
        gpu::st_global(mask.dense.add(at.into()), u32::from(sparse >= dense));
    }
}

crate::entry! {
    /// The choice of dense heads.
    CHOOSE_DENSE, choose_dense = choose, ChooseDenseParams
}
