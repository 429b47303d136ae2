//! Selection of single keys, one list for a sequence of a head; the lists of its query blocks are the window.
//!
//! A range of candidates is a contiguous 32nd of the keys, one a warp. Each warp counts what its range holds above the
//! threshold and equal to it, so that all know where their keys begin and how many ties come before; then each writes its
//! own, without another barrier.
//!
//! # Shape contract
//! [`launch_shape`]. Writes lists and `kept` of the units' query tiles.

use super::{Masses, SelectionOutput, SharedMemory, WARPS};
use super::{before, count_ranges, launch_shape_of_units, threshold, write_range};
use crate::gpu;
use crate::launch::LaunchShape;
use crate::reduction::keys::WholeHeads;
use crate::tile::panel;
use crate::tile::sum::sum_in_block;

/// What the selection of keys reads and writes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct TopKKeysParams {
    /// Which units.
    pub units: WholeHeads,
    /// From the reduction to keys.
    pub masses: Masses,
    /// Selected keys and window. The mask holds all query tiles of the batch.
    pub output: SelectionOutput,
}

/// The launch of `top_k_keys`.
pub const fn launch_shape(units: &WholeHeads) -> LaunchShape {
    launch_shape_of_units(units.units())
}

#[inline(always)]
fn select(p: &TopKKeysParams) {
    let slice = &p.units.slice;
    let unit = gpu::ctaid_x();
    let (slot, sequence) = p.units.unit(unit);
    let q_head = slice.heads.head_of(slot);
    let policy = slice.heads.get(q_head).policy.without_offset();
    let shared = SharedMemory::new();
    let blocks = slice.block_capacity;
    let candidates = p.units.key_capacity();
    let first_candidate = u64::from(unit) * u64::from(candidates);
    let mass = p.masses.mass.add(first_candidate);
    let outside = p.masses.outside.add(first_candidate);
    let counts_more = !p.masses.outside.is_null();
    let covered = p.masses.covered.add(u64::from(unit) * u64::from(blocks));
    let rows = policy.sampled_rows(&sequence, 0, sequence.k_len);
    let (threshold, covered) = threshold(
        shared,
        (mass, candidates),
        (covered, blocks),
        &policy,
        rows.len(),
    );

    let per_warp = candidates.div_ceil(WARPS);
    let range = |warp: u32| {
        let first = (warp * per_warp).min(candidates);
        (mass.add(first.into()), per_warp.min(candidates - first))
    };
    count_ranges(shared, threshold, WARPS, range);
    let warp = panel::warp();
    let before = before(shared, threshold, warp);
    let mask = &p.output.mask;
    let key_row = mask.key_row(sequence.index, slice.q_heads, q_head, 0);
    let list = mask.keys(key_row).add(before.selected.into());
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
        gpu::st_global(mask.num_keys.add(key_row), before.selected + written);
    }
    let selected = sum_in_block(selected, shared.sums());
    let first_tile = slice.sequences.first_query_tile(&sequence);
    let mut place = warp;
    while place < sequence.query_tiles() {
        let tile = first_tile + place;
        match sequence.query_tile(place).and_then(|tile| tile.query_block) {
            Some(query_block) => {
                p.output
                    .end_with_window(&policy, (q_head, tile), query_block, 0);
            }
            None => {
                if gpu::laneid() == 0 {
                    p.output.set_count(q_head, tile, 0);
                }
            }
        }
        if gpu::laneid() == 0 {
            let of_sequence = if place == 0 { covered + selected } else { 0 };
            p.output.set_kept(q_head, tile, of_sequence);
        }
        place += WARPS;
    }
}

crate::entry! {
    /// Selection of keys.
    TOP_K_KEYS, top_k_keys = select, TopKKeysParams
}
