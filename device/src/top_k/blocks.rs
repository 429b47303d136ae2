//! Selection of pairs (query block, key block), segment by segment, into the lists of the query blocks.
//!
//! A unit is a segment of a sequence and head: 64 query blocks, or those of them that the slice holds. A range of candidates is
//! one query block's row. Warps count every row's ties, so that each knows how many ties come before its rows; then each writes
//! its rows' lists: selected key blocks first, the window after them, which holds later ones. A warp works on every 32nd row, so
//! the last barrier is before the writes and nobody waits for the longest row.
//!
//! # Shape contract
//! [`launch_shape`]. Writes lists and `kept` of the slice's query tiles, of its heads of [`HeadKind::Blocks`]. Tiles that see no
//! key have empty lists.

use super::{MAX_RANGES, Masses, SelectionOutput, SharedMemory, WARPS};
use super::{before, count_ranges, launch_shape_of_units, threshold, write_range};
use crate::abi::{HeadKind, TileSlice};
use crate::gpu;
use crate::launch::LaunchShape;
use crate::params::{BLOCK, SEGMENT_BLOCKS};
use crate::tile::panel;
use crate::tile::sum::sum_in_block;

const _: () = assert!(SEGMENT_BLOCKS <= MAX_RANGES);

/// What the selection of blocks reads and writes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct TopKBlocksParams {
    /// Which query tiles.
    pub slice: TileSlice,
    /// From the reduction to blocks; `outside` is null.
    pub masses: Masses,
    /// Selected blocks and window.
    pub output: SelectionOutput,
}

/// The launch of `top_k_blocks`.
pub const fn launch_shape(slice: &TileSlice) -> LaunchShape {
    launch_shape_of_units(slice.slots * slice.runs(SEGMENT_BLOCKS))
}

/// Empties the list of the slice's tile at `place`, if it has no query block. There are at least as many runs as 64 tiles.
#[inline(always)]
fn empty_without_keys(p: &TopKBlocksParams, q_head: u32, place: u32) {
    let tile = p.slice.first_tile + place;
    if place >= p.slice.tiles {
        return;
    }
    let of_number = p.slice.sequences.query_tile(tile);
    if let Some(of_number) = of_number {
        let sequence = of_number.sequence.index;
        p.output.set_no_keys(sequence, p.slice.q_heads, q_head);
    }
    if of_number.is_none_or(|tile| tile.query_block.is_none()) {
        p.output.set_count(q_head, tile, 0);
        p.output.set_kept(q_head, tile, 0);
    }
}

#[inline(always)]
fn select(p: &TopKBlocksParams) {
    let slice = &p.slice;
    let slot = slice.first_slot + gpu::ctaid_x() % slice.slots;
    let q_head = slice.heads.head_of(slot);
    let policy = slice.heads.get(q_head).policy;
    if policy.kind != HeadKind::Blocks {
        return;
    }
    let number = gpu::ctaid_x() / slice.slots;
    if gpu::tid_x() < SEGMENT_BLOCKS {
        empty_without_keys(p, q_head, number * SEGMENT_BLOCKS + gpu::tid_x());
    }
    let Some(segment) = slice.run(number, SEGMENT_BLOCKS) else {
        return;
    };
    let shared = SharedMemory::new();
    let blocks = slice.block_capacity;
    let ranges = segment.end - segment.first;
    let place = u64::from(slice.tile_row(slot, segment.first_tile));
    let mass = p.masses.mass.add(place * u64::from(blocks));
    let covered = p.masses.covered.add(place);
    let rows = policy.in_segment_of(segment.first).sampled_rows(
        &segment.sequence,
        segment.first * BLOCK,
        segment.end * BLOCK,
    );
    let (threshold, covered) = threshold(
        shared,
        (mass, ranges * blocks),
        (covered, ranges),
        &policy,
        rows.len(),
    );

    // A query block's diagonal block is the last that it may select.
    let range = |row: u32| {
        let mass = mass.add(u64::from(row) * u64::from(blocks));
        (mass, segment.first + row + 1)
    };
    count_ranges(shared, threshold, ranges, range);
    let mut selected = 0;
    let mut row = panel::warp();
    while row < ranges {
        let (tile, query_block) = (segment.first_tile + row, segment.first + row);
        let list = p.output.mask.blocks(p.output.mask.row(q_head, tile));
        let equal_before = before(shared, threshold, row).equal;
        let (written, sum) = write_range(threshold, range(row), equal_before, (list, 0), |_, x| x);
        selected += sum;
        p.output
            .end_with_window(&policy, (q_head, tile), query_block, written);
        row += WARPS;
    }
    let selected = sum_in_block(selected, shared.sums());
    if gpu::tid_x() < ranges {
        let of_segment = if gpu::tid_x() == 0 {
            covered + selected
        } else {
            0
        };
        p.output
            .set_kept(q_head, segment.first_tile + gpu::tid_x(), of_segment);
    }
}

crate::entry! {
    /// Selection of blocks.
    TOP_K_BLOCKS, top_k_blocks = select, TopKBlocksParams
}
