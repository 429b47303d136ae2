//! Selection of single keys, as the stripes of a head; the lists of its query blocks are the window.
//!
//! A range of candidates is a contiguous 32nd of the keys, one a warp. Each warp counts what its range holds above the
//! threshold and equal to it, so that all know where their stripes begin and how many ties come before; then each writes its
//! own, without another barrier.
//!
//! # Shape contract
//! [`launch_shape`](super::launch_shape). `lists`, `stripes`, `stripe_counts` and `kept` span all heads; a launch writes those
//! of its units.

use super::{BlockLists, Masses, SharedMemory, WARPS};
use super::{before, count_ranges, threshold, write_range};
use crate::geometry::Units;
use crate::gpu::{self, Global};
use crate::tile::panel;
use crate::tile::sum::sum_in_block;

/// What the selection of keys reads and writes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct TopKKeysParams {
    /// Which units; a unit is a head.
    pub units: Units,
    /// From the reduction to keys.
    pub masses: Masses,
    /// The window.
    pub lists: BlockLists,
    /// \[batch · q_heads, k_len\]: selected keys, ascending.
    pub stripes: Global<u32>,
    /// \[batch · q_heads\]: how many.
    pub stripe_counts: Global<u32>,
}

/// Elements of `stripes`.
pub const fn stripes_len(units: &Units) -> u64 {
    units.sizes.heads() as u64 * units.sizes.k_len as u64
}

#[inline(always)]
fn select(p: &TopKKeysParams) {
    let units = &p.units;
    let slot = gpu::ctaid_x();
    let unit = units.unit(units.first + slot);
    let shared = SharedMemory::new();
    let blocks = units.sizes.key_blocks();
    let candidates = units.key_capacity();
    let first_candidate = u64::from(slot) * u64::from(candidates);
    let mass = p.masses.mass.add(first_candidate);
    let outside = p.masses.outside.add(first_candidate);
    let counts_more = !p.masses.outside.is_null();
    let covered = p.masses.covered.add(u64::from(slot) * u64::from(blocks));
    let rows = units.rows(unit).len();
    let (threshold, covered) = threshold(
        shared,
        &p.masses,
        (mass, candidates),
        (covered, blocks),
        rows,
    );

    let per_warp = candidates.div_ceil(WARPS);
    let range = |warp: u32| {
        let first = (warp * per_warp).min(candidates);
        (mass.add(first.into()), per_warp.min(candidates - first))
    };
    count_ranges(shared, threshold, WARPS, range);
    let warp = panel::warp();
    let before = before(shared, threshold, warp);
    let first_stripe = u64::from(unit.head) * u64::from(units.sizes.k_len);
    let list = p.stripes.add(first_stripe + u64::from(before.selected));
    let first = warp * per_warp;
    let worth = |at: u32, x| {
        if counts_more {
            gpu::ld_global_nc(outside.add((first + at).into()))
        } else {
            x
        }
    };
    let (written, selected) =
        write_range(threshold, range(warp), before.equal, (list, first), worth);
    if gpu::tid_x() == (WARPS - 1) * 32 {
        let count = p.stripe_counts.add(unit.head.into());
        gpu::st_global(count, before.selected + written);
    }
    let mut query_block = units.sizes.first_query_block() + warp;
    while query_block < blocks {
        p.lists.end_with_window(units, unit.head, query_block, 0);
        query_block += WARPS;
    }
    let selected = sum_in_block(selected, shared.sums());
    if gpu::tid_x() == 0 {
        let index = u64::from(units.first + slot);
        gpu::st_global(p.masses.kept.add(index), covered + selected);
    }
}

crate::entry! {
    /// Selection of keys.
    TOP_K_KEYS, top_k_keys = select, TopKKeysParams
}
