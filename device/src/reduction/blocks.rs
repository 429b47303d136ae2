//! The mass that each query tile's sampled rows give each key block, from the statistics of sampling: keys are not read.
//!
//! ```text
//! a CTA: one query tile of a head; a thread: every 128th key block
//!
//! normaliser of each of the tile's rows, a warp each; rows without a finite one count for nothing
//! for each of the thread's key blocks up to the query block:
//!     sum = Σ over the rows of 2^(statistic − normaliser), each in fixed point
//!     in the window: covered += sum, mass = 0        before it: mass = sum
//! covered += the rows' sinks
//! ```
//!
//! # Synchronisation
//! A barrier behind the normalisers, and two for the sum of `covered`; integers, so any order gives the same bits.
//!
//! # Shape contract
//! [`launch_shape`]. `mass` and `covered` have a place for each query tile of the slice and sampled head, and are written whole:
//! zero where a number names no query tile with keys, or a key block is not before the window.

use super::fixed_point;
use super::statistics::{RowStatistics, Statistics};
use crate::abi::TileSlice;
use crate::gpu::{self, Global, Shared};
use crate::launch::{LaunchShape, REDUCTION_BLOCKS_THREADS as THREADS};
use crate::params::BLOCK;
use crate::tile::panel;
use crate::tile::sum::sum_in_block;

/// What the reduction to key blocks reads and writes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ReductionBlocksParams {
    /// Which query tiles.
    pub slice: TileSlice,
    /// From sampling.
    pub statistics: Statistics,
    /// \[row\]: the row's log-sum-exp in two parts, the second NaN where it is not finite, is written here; or null.
    pub row_lse: Global<f32>,
    /// \[tile place, key block\]: mass outside window and sinks.
    pub mass: Global<u64>,
    /// \[tile place\]: mass in window and sinks.
    pub covered: Global<u64>,
}

/// Elements of `mass`.
pub const fn mass_len(slice: &TileSlice) -> u64 {
    covered_len(slice) * slice.block_capacity as u64
}

/// Elements of `covered`.
pub const fn covered_len(slice: &TileSlice) -> u64 {
    slice.slots as u64 * slice.tiles as u64
}

/// The launch of `reduction_blocks`.
pub const fn launch_shape(slice: &TileSlice) -> LaunchShape {
    let shared_bytes = SUM_BYTES + 4 * slice.row_capacity * slice.splits();
    LaunchShape::linear(slice.slots * slice.tiles, THREADS, shared_bytes)
}

/// The sum of `covered`; the normalisers follow.
const SUM_BYTES: u32 = 8;

const WARPS: u32 = THREADS / 32;

/// Rows whose statistics a thread loads before it uses the first: enough to hide most of the way to memory.
const LOADS: usize = 4;

#[inline(always)]
fn reduce(p: &ReductionBlocksParams) {
    let slice = &p.slice;
    let place = gpu::ctaid_x();
    let slot = slice.first_slot + place / slice.tiles;
    let number = slice.first_tile + place % slice.tiles;
    let tile = slice.sequences.query_tile(number);
    let query_block = tile.and_then(|tile| tile.query_block);
    let policy = slice
        .heads
        .get(slice.heads.head_of(slot))
        .policy
        .without_offset();
    let rows = match (tile, query_block) {
        (Some(tile), Some(block)) => policy
            .in_segment_of(block)
            .sampled_rows(&tile.sequence, block * BLOCK, (block + 1) * BLOCK)
            .len(),
        _ => 0,
    };
    let seen = query_block.map_or(0, |block| block + 1);
    let first_row = slice.first_row(slot, number);
    let shared = gpu::dynamic_shared();
    // [row, split]: the normaliser in the terms of the split's statistics.
    let normalisers: Shared<f32> = shared.byte_add(SUM_BYTES).cast();
    let splits = seen.div_ceil(slice.split_blocks);
    let mut row = panel::warp();
    while row < rows {
        let statistics = RowStatistics::new(&p.statistics, slice, first_row + row, seen);
        let lse = statistics.lse();
        statistics.write_row_lse(p.row_lse, first_row + row, lse);
        let mut split = gpu::laneid();
        while split < splits {
            // With +∞ all shares are 0, or NaN, which is nothing too.
            let lse = lse.map_or(f32::INFINITY, |lse| lse - statistics.above(split));
            gpu::st_shared(normalisers.add(row * splits + split), lse);
            split += 32;
        }
        row += WARPS;
    }
    gpu::bar_sync(0);
    let share = |statistic: f32, row: u32, split: u32| {
        let lse = gpu::ld_shared(normalisers.add(row * splits + split));
        fixed_point(gpu::ex2_approx_ftz_f32(statistic - lse), 1.0)
    };

    let mut covered = 0;
    let window = query_block.map_or(0, |block| policy.first_window_block(block));
    let mass = p
        .mass
        .add(u64::from(place) * u64::from(slice.block_capacity));
    let mut key_block = gpu::tid_x();
    while key_block < slice.block_capacity {
        let mut sum = 0;
        if key_block < seen {
            let split = key_block / slice.split_blocks;
            let capacity = u64::from(slice.block_capacity);
            let stats = p.statistics.stats.add(u64::from(first_row) * capacity);
            let load = |row: u32| {
                let at = u64::from(row) * capacity + u64::from(key_block);
                gpu::ld_global_nc(stats.add(at))
            };
            let mut row = 0;
            while row + LOADS as u32 <= rows {
                let mut loaded = [0.0; LOADS];
                for (i, loaded) in loaded.iter_mut().enumerate() {
                    *loaded = load(row + i as u32);
                }
                for (i, &loaded) in loaded.iter().enumerate() {
                    sum += share(loaded, row + i as u32, split);
                }
                row += LOADS as u32;
            }
            while row < rows {
                sum += share(load(row), row, split);
                row += 1;
            }
        }
        let in_window = key_block >= window;
        covered += if in_window { sum } else { 0 };
        gpu::st_global(mass.add(key_block.into()), if in_window { 0 } else { sum });
        key_block += THREADS;
    }
    if slice.sinks > 0 {
        let mut row = gpu::tid_x();
        while row < rows {
            let statistic = p.statistics.sink_stats.add((first_row + row).into());
            covered += share(gpu::ld_global_nc(statistic), row, 0);
            row += THREADS;
        }
    }
    let covered = sum_in_block(covered, shared.cast());
    if gpu::tid_x() == 0 {
        gpu::st_global(p.covered.add(place.into()), covered);
    }
}

crate::entry! {
    /// The reduction to key blocks.
    REDUCTION_BLOCKS, reduction_blocks = reduce, ReductionBlocksParams
}
