//! The mass that each query block's sampled rows give each key block, from the statistics of sampling: keys are not read.
//!
//! ```text
//! a block of threads: one query block of a unit; a thread: every 128th key block
//!
//! for each of the thread's key blocks up to the query block:
//!     sum = Σ over the query block's sampled rows of its share in the row's mass, each in fixed point
//!     in the window: covered += sum, mass = 0        before it: mass = sum
//! covered += the rows' sinks
//! ```
//!
//! # Synchronisation
//! Two barriers for the sum of `covered`; integers, so any order gives the same bits.
//!
//! # Shape contract
//! [`launch_shape`]. Buffers "a unit" hold `units.count` units; `mass` and `covered` are written whole, zero where a query
//! block of the last segment does not exist or a key block is not before the window.

use super::fixed_point;
use crate::geometry::Units;
use crate::gpu::{self, Global};
use crate::launch::{LaunchShape, REDUCTION_BLOCKS_THREADS as THREADS};
use crate::params::BLOCK;
use crate::sampling::{log2_share, stats_at};
use crate::tile::scale;
use crate::tile::sum::sum_in_block;

/// What the reduction to key blocks reads and writes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ReductionBlocksParams {
    /// Which rows.
    pub units: Units,
    /// softmax_scale · log2 e.
    pub scale_log2: f32,
    /// From sampling.
    pub row_lse: Global<f32>,
    /// From sampling.
    pub stats: Global<f32>,
    /// From sampling.
    pub sink_stats: Global<f32>,
    /// \[unit, query block of the unit, key block\]: mass outside window and sinks.
    pub mass: Global<u64>,
    /// \[unit, query block of the unit\]: mass in window and sinks.
    pub covered: Global<u64>,
}

/// Elements of `mass`.
pub const fn mass_len(units: &Units) -> u64 {
    units.count as u64 * units.pair_capacity() as u64
}

/// Elements of `covered`.
pub const fn covered_len(units: &Units) -> u64 {
    units.count as u64 * units.unit_blocks as u64
}

/// The launch of `reduction_blocks`.
pub const fn launch_shape(units: &Units) -> LaunchShape {
    let shared_bytes = size_of::<u64>() as u32;
    LaunchShape::linear(units.count * units.unit_blocks, THREADS, shared_bytes)
}

/// Rows whose statistics a thread loads before it uses the first: half a query block's at the default row stride, enough to hide
/// most of the way to memory.
const LOADS: usize = 4;

#[inline(always)]
fn reduce(p: &ReductionBlocksParams) {
    let units = &p.units;
    let (slot, task) = (
        gpu::ctaid_x() / units.unit_blocks,
        gpu::ctaid_x() % units.unit_blocks,
    );
    let unit = units.unit(units.first + slot);
    let rows = units.rows(unit);
    let query_block = unit.first_block + task;
    let exists = query_block < unit.end_block;
    let first_rank = rows.rank_at(query_block * BLOCK);
    let end_rank = if exists {
        rows.rank_at((query_block + 1) * BLOCK)
    } else {
        first_rank
    };
    let lse_of_unit = p
        .row_lse
        .add(2 * u64::from(slot) * u64::from(units.row_capacity));
    let lse = |rank: u32| {
        let both = gpu::ld_global_nc(lse_of_unit.add(2 * u64::from(rank)).cast::<u64>());
        [both as u32, (both >> 32) as u32].map(f32::from_bits)
    };
    let scale = scale::magnitude(p.scale_log2);
    let share_of = |[reference, sum]: [f32; 2], lse: [f32; 2]| {
        let log2_share = log2_share(reference, lse, scale);
        fixed_point(sum * gpu::ex2_approx_ftz_f32(log2_share), 1.0)
    };
    let share = |stats: Global<f32>, rank: u32| share_of(gpu::ld_global_v2(stats), lse(rank));

    let mut covered = 0;
    let first_window_block = units.first_window_block(query_block);
    let blocks = units.sizes.key_blocks();
    let mass = p.mass.add(u64::from(gpu::ctaid_x()) * u64::from(blocks));
    let mut key_block = gpu::tid_x();
    while key_block < blocks {
        let mut sum = 0;
        if key_block <= query_block {
            let stats = p.stats.add(stats_at(units, slot, key_block, 0));
            let mut rank = first_rank;
            while rank + LOADS as u32 <= end_rank {
                let mut loaded = [[0.0; 2]; LOADS];
                for (i, loaded) in loaded.iter_mut().enumerate() {
                    *loaded = gpu::ld_global_v2(stats.add(2 * u64::from(rank + i as u32)));
                }
                for (i, &loaded) in loaded.iter().enumerate() {
                    sum += share_of(loaded, lse(rank + i as u32));
                }
                rank += LOADS as u32;
            }
            while rank < end_rank {
                sum += share(stats.add(2 * u64::from(rank)), rank);
                rank += 1;
            }
        }
        let in_window = key_block >= first_window_block;
        covered += if in_window { sum } else { 0 };
        gpu::st_global(mass.add(key_block.into()), if in_window { 0 } else { sum });
        key_block += THREADS;
    }
    if units.sinks > 0 {
        let sink_stats = p
            .sink_stats
            .add(2 * u64::from(slot) * u64::from(units.row_capacity));
        let mut rank = first_rank + gpu::tid_x();
        while rank < end_rank {
            covered += share(sink_stats.add(2 * u64::from(rank)), rank);
            rank += THREADS;
        }
    }
    let covered = sum_in_block(covered, gpu::dynamic_shared().cast());
    if gpu::tid_x() == 0 {
        gpu::st_global(p.covered.add(gpu::ctaid_x().into()), covered);
    }
}

crate::entry! {
    /// The reduction to key blocks.
    REDUCTION_BLOCKS, reduction_blocks = reduce, ReductionBlocksParams
}
