//! Selection of pairs (query block, key block), into the lists of the query blocks.
//!
//! A range of candidates is one query block's row. Warps count every row's ties, so that each knows how many ties come before
//! its rows; then each writes its rows' lists: selected key blocks first, the window after them, which holds later ones.
//! A warp works on every 32nd row, so the last barrier is before the writes and nobody waits for the longest row.
//!
//! # Shape contract
//! [`launch_shape`](super::launch_shape). `lists`, `stripe_counts` and `kept` span all heads; a launch writes those of its
//! units, and `stripe_counts` of the heads whose first unit it holds.

use super::{BlockLists, MAX_RANGES, Masses, SharedMemory, WARPS};
use super::{before, count_ranges, threshold, write_range};
use crate::geometry::Units;
use crate::gpu::{self, Global};
use crate::params::SEGMENT_BLOCKS;
use crate::tile::panel;
use crate::tile::sum::sum_in_block;

const _: () = assert!(SEGMENT_BLOCKS <= MAX_RANGES);

/// What the selection of blocks reads and writes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct TopKBlocksParams {
    /// Which units.
    pub units: Units,
    /// From the reduction to blocks; `outside` is null.
    pub masses: Masses,
    /// Selected blocks and window.
    pub lists: BlockLists,
    /// \[batch · q_heads\]: set to 0, for there are no stripes.
    pub stripe_counts: Global<u32>,
}

#[inline(always)]
fn select(p: &TopKBlocksParams) {
    let units = &p.units;
    let slot = gpu::ctaid_x();
    let unit = units.unit(units.first + slot);
    let shared = SharedMemory::new();
    let blocks = units.sizes.key_blocks();
    let candidates = units.pair_capacity();
    let mass = p.masses.mass.add(u64::from(slot) * u64::from(candidates));
    let tasks = units.unit_blocks;
    let covered = p.masses.covered.add(u64::from(slot) * u64::from(tasks));
    let rows = units.rows(unit).len();
    let (threshold, covered) = threshold(
        shared,
        &p.masses,
        (mass, candidates),
        (covered, tasks),
        rows,
    );

    // A query block's own key block is the last that it may select.
    let range = |row: u32| {
        let mass = mass.add(u64::from(row) * u64::from(blocks));
        (mass, unit.first_block + row + 1)
    };
    let ranges = unit.end_block - unit.first_block;
    count_ranges(shared, threshold, ranges, range);
    let mut selected = 0;
    // Query blocks without a row have no list.
    let dead = units.sizes.first_query_block();
    let mut row = panel::warp();
    while unit.first_block + row < dead {
        row += WARPS;
    }
    while row < ranges {
        let query_block = unit.first_block + row;
        let list = p.lists.of(units, unit.head, query_block);
        let equal_before = before(shared, threshold, row).equal;
        let (written, sum) = write_range(threshold, range(row), equal_before, (list, 0), |_, x| x);
        selected += sum;
        p.lists
            .end_with_window(units, unit.head, query_block, written);
        row += WARPS;
    }
    let selected = sum_in_block(selected, shared.sums());
    if gpu::tid_x() == 0 {
        let index = u64::from(units.first + slot);
        gpu::st_global(p.masses.kept.add(index), covered + selected);
        if unit.first_block == 0 {
            gpu::st_global(p.stripe_counts.add(unit.head.into()), 0);
        }
    }
}

crate::entry! {
    /// Selection of blocks.
    TOP_K_BLOCKS, top_k_blocks = select, TopKBlocksParams
}
