//! Top-k key selection: the smallest set of candidates whose mass reaches what is needed, heaviest first, ties to the lower
//! index; the host is not asked.
//!
//! | file | who needs what | candidates | threshold |
//! |---|---|---|---|
//! | [`rows`] | each sampled row by itself | key blocks; a query tile's list is the union over its rows | bisection, a warp a row |
//! | [`blocks`] | 64 query blocks of a head, a segment | pairs (query block, key block) | weighted radix select, a CTA a segment |
//! | [`keys`] | a sequence of a head | single keys | the same |
//!
//! [`blocks`] and [`keys`]:
//! ```text
//! a CTA of 1024 threads: one unit
//!
//! need = coverage · rows − covered           (the paper's rule: coverage · rows)
//! threshold: the mass that the last selected candidate has, by a weighted radix select     (radix)
//! write what lies above it and, of those equal to it, the first few:
//!     pairs (query block, key block) into the query blocks' lists, window included         (blocks)
//!     keys as the head's list of single keys; the lists of blocks are the window           (keys)
//! ```
//! [`dense`] then decides for each of these heads whether its selection is worth it.

pub mod blocks;
pub mod dense;
pub mod keys;
mod radix;
pub mod rows;
mod shared;

use crate::abi::{HeadKind, HeadPolicy, SparseMask};
use crate::gpu::{self, Global};
use crate::launch::{LaunchShape, TOP_K_THREADS as THREADS};
use crate::tile::sum::sum_in_block;
use crate::tile::{WARP, panel};
use radix::{Selected, Threshold};
use shared::{MAX_RANGES, SharedMemory, WARPS};

/// Where a selection goes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SelectionOutput {
    /// The lists, of the query tiles that it holds.
    pub mask: SparseMask,
    /// \[q_heads, `all_tiles`\]: mass that the selection keeps, window and sinks included: of each query tile, or with the first
    /// tile of a unit and 0 with the others.
    pub kept: Global<u64>,
    /// \[q_heads, `all_tiles`\]: how many key blocks are listed.
    pub listed: Global<u32>,
    /// Query tiles of the batch.
    pub all_tiles: u32,
}

impl SelectionOutput {
    /// Ends the list of a query tile, of `selected` blocks so far, with its window. Called by whole warps.
    #[inline(always)]
    fn end_with_window(
        &self,
        policy: &HeadPolicy,
        (q_head, tile): (u32, u32),
        query_block: u32,
        selected: u32,
    ) {
        let list = self.mask.blocks(self.mask.row(q_head, tile));
        let first = policy.first_window_block(query_block);
        let mut block = first + gpu::laneid();
        while block <= query_block {
            gpu::st_global(list.add((selected + block - first).into()), block);
            block += 32;
        }
        if gpu::laneid() == 0 {
            self.set_count(q_head, tile, selected + query_block + 1 - first);
        }
    }

    /// Writes that a head has no single keys in a sequence, where other heads have some. Every query tile of the sequence may.
    #[inline(always)]
    fn set_no_keys(&self, sequence: u32, q_heads: u32, q_head: u32) {
        if !self.mask.num_keys.is_null() {
            let at = self.mask.key_row(sequence, q_heads, q_head, 0);
            gpu::st_global(self.mask.num_keys.add(at), 0);
        }
    }

    /// Writes the length of a query tile's list.
    #[inline(always)]
    fn set_count(&self, q_head: u32, tile: u32, count: u32) {
        let at = self.mask.row(q_head, tile);
        gpu::st_global(self.mask.kv_num_blocks.add(at), count);
        gpu::st_global(self.listed.add(self.at(q_head, tile)), count);
    }

    /// Writes the mass that is kept with a query tile.
    #[inline(always)]
    fn set_kept(&self, q_head: u32, tile: u32, kept: u64) {
        gpu::st_global(self.kept.add(self.at(q_head, tile)), kept);
    }

    #[inline(always)]
    const fn at(&self, q_head: u32, tile: u32) -> u64 {
        q_head as u64 * self.all_tiles as u64 + tile as u64
    }
}

/// What the selections of a unit read.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Masses {
    /// \[unit, candidate\]: what candidates are ranked by.
    pub mass: Global<u64>,
    /// \[unit, candidate\]: mass outside window and sinks where `mass` counts more than that (the paper's rule); or null.
    pub outside: Global<u64>,
    /// \[unit, reduction task\]: mass in window and sinks.
    pub covered: Global<u64>,
}

/// The launch of `top_k_blocks` and of `top_k_keys`, for so many units.
const fn launch_shape_of_units(units: u32) -> LaunchShape {
    LaunchShape::linear(units, THREADS, SharedMemory::BYTES)
}

/// ⌈coverage · rows · 2^32⌉, exactly: the mass of that share of the rows.
///
/// In integers, because a GPU without fast `f64` would wait for the product, which is exact there too.
pub const fn target_mass(coverage: f32, rows: u32) -> u64 {
    share_of(coverage, rows as u64, 32)
}

/// ⌈coverage · whole · 2^shift⌉, exactly. The product has to fit: `whole` is at most 2^33, and `shift` at most 32.
const fn share_of(coverage: f32, whole: u64, shift: u32) -> u64 {
    let bits = coverage.to_bits();
    let exponent = bits >> 23 & 0xff;
    let fraction = bits & 0x7f_ffff;
    // coverage = mantissa · 2^(scale − 150)
    let (mantissa, scale) = if exponent == 0 {
        (fraction, 1)
    } else {
        (fraction | 0x80_0000, exponent)
    };
    let product = mantissa as u64 * whole;
    let scale = scale + shift;
    if scale >= 150 {
        product << (scale - 150)
    } else if 150 - scale < 64 {
        let right = 150 - scale;
        (product >> right) + (product & ((1 << right) - 1) != 0) as u64
    } else {
        (product != 0) as u64
    }
}

/// The threshold of the need of a unit with `rows` sampled rows, and what window and sinks cover. All threads of the CTA call
/// it.
#[inline(always)]
fn threshold(
    shared: SharedMemory,
    (mass, candidates): (Global<u64>, u32),
    (covered, tasks): (Global<u64>, u32),
    policy: &HeadPolicy,
    rows: u32,
) -> (Threshold, u64) {
    let mut of_thread = 0;
    let mut task = gpu::tid_x();
    while task < tasks {
        of_thread += gpu::ld_global_nc(covered.add(task.into()));
        task += THREADS;
    }
    let covered = sum_in_block(of_thread, shared.sums());
    let target_mass = target_mass(policy.coverage, rows);
    let need = match policy.kind {
        // The paper's rule does not count what the window covers.
        HeadKind::Paper => target_mass,
        _ => target_mass.saturating_sub(covered),
    };
    (radix::threshold(shared, mass, candidates, need), covered)
}

/// What precedes a range of candidates.
#[derive(Clone, Copy)]
struct Before {
    /// Selected candidates.
    selected: u32,
    /// Candidates equal to the threshold.
    equal: u32,
}

/// Counts what each of `ranges` ranges holds above the threshold and equal to it; `range` gives a range's candidates. A warp
/// counts every [`WARPS`]-th range. All threads of the block call it.
#[inline(always)]
fn count_ranges(
    shared: SharedMemory,
    threshold: Threshold,
    ranges: u32,
    range: impl Fn(u32) -> (Global<u64>, u32),
) {
    let mut index = panel::warp();
    while index < ranges {
        let (mass, len) = range(index);
        let (mut above, mut equal) = (0, 0);
        let mut at = gpu::laneid();
        while at < len {
            let x = gpu::ld_global_nc(mass.add(at.into()));
            above += u32::from(x > threshold.mass);
            equal += u32::from(threshold.ties > 0 && x == threshold.mass);
            at += 32;
        }
        let above = gpu::redux_sync_add_u32(WARP, above);
        let equal = gpu::redux_sync_add_u32(WARP, equal);
        if gpu::laneid() == 0 {
            gpu::st_shared_v2(shared.counts().add(2 * index), [above, equal]);
        }
        index += WARPS;
    }
    gpu::bar_sync(0);
}

/// What the ranges before `index` hold, from [`count_ranges`]; the same in all lanes of a warp.
#[inline(always)]
fn before(shared: SharedMemory, threshold: Threshold, index: u32) -> Before {
    let (mut above, mut equal) = (0, 0);
    let mut range = gpu::laneid();
    while range < index {
        let [x, y] = gpu::ld_shared_v2(shared.counts().add(2 * range));
        above += x;
        equal += y;
        range += 32;
    }
    let above = gpu::redux_sync_add_u32(WARP, above);
    let equal = gpu::redux_sync_add_u32(WARP, equal);
    Before {
        selected: above + equal.min(threshold.ties),
        equal,
    }
}

/// Writes the indices of a range's selected candidates to `list`, ascending, each plus `first`; returns how many, and this
/// lane's share of what `worth` gives for them. Called by whole warps.
#[inline(always)]
fn write_range(
    threshold: Threshold,
    (mass, len): (Global<u64>, u32),
    equal_before: u32,
    (list, first): (Global<u32>, u32),
    worth: impl Fn(u32, u64) -> u64,
) -> (u32, u64) {
    let lanes_before = (1 << gpu::laneid()) - 1;
    let mut equal_before = equal_before;
    let (mut written, mut sum) = (0, 0);
    let mut start = 0;
    while start < len {
        let at = start + gpu::laneid();
        let x = if at < len {
            gpu::ld_global_nc(mass.add(at.into()))
        } else {
            0
        };
        let kind = threshold.kind(x);
        let equal = gpu::vote_sync_ballot(WARP, kind == Selected::IfFirst);
        let rank = equal_before + (equal & lanes_before).count_ones();
        let selects = kind == Selected::Yes || kind == Selected::IfFirst && rank < threshold.ties;
        let selected = gpu::vote_sync_ballot(WARP, selects);
        if selects {
            let place = written + (selected & lanes_before).count_ones();
            gpu::st_global(list.add(place.into()), first + at);
            sum += worth(at, x);
        }
        written += selected.count_ones();
        equal_before += equal.count_ones();
        start += 32;
    }
    (written, sum)
}

#[cfg(test)]
mod tests {
    use super::target_mass;

    #[test]
    fn the_goal_is_the_exact_product_rounded_up() {
        let coverages = [
            0.0,
            f32::from_bits(1),
            1e-40,
            1e-30,
            1e-12,
            0.002,
            0.5,
            0.9,
            0.95,
            0.97,
            f32::from_bits(1.0f32.to_bits() - 1),
            1.0,
        ];
        for coverage in coverages {
            for rows in [0, 1, 2, 7, 512, 8193, 65_537, (1 << 20) + 1] {
                // Exact: 24 + 21 bits, and a power of two.
                let expected =
                    (f64::from(coverage) * f64::from(rows) * 2f64.powi(32)).ceil() as u64;
                assert_eq!(
                    target_mass(coverage, rows),
                    expected,
                    "{coverage:e} of {rows}"
                );
            }
        }
    }
}
