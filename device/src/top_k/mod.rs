//! Top-k key selection: the smallest set of candidates whose mass reaches what a unit needs, heaviest first, ties to the lower
//! index; without a word to the host.
//!
//! ```text
//! a block of 1024 threads: one unit
//!
//! need = coverage · rows − covered           (the paper's rule: coverage · rows)
//! threshold: the mass that the last selected candidate has, by a weighted radix select     (radix)
//! write what lies above it and, of those equal to it, the first few:
//!     pairs (query block, key block) into the query blocks' lists, window included         (blocks)
//!     keys as the head's stripes; the lists are the window                                 (keys)
//! ```
//!
//! [`dense`] then decides for each head whether its selection is worth it.

pub mod blocks;
pub mod dense;
pub mod keys;
mod radix;

use crate::geometry::Units;
use crate::gpu::{self, Global, Shared};
use crate::launch::{LaunchShape, TOP_K_THREADS as THREADS};
use crate::tile::sum::sum_in_block;
use crate::tile::{WARP, panel};
use radix::{Selected, Threshold};

const WARPS: u32 = THREADS / 32;

/// The lists that say which key blocks each query block attends to.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct BlockLists {
    /// \[q_heads, query tiles of all sequences, `key_blocks`\]: key blocks, ascending. See [`abi::sequences`](crate::abi::sequences).
    pub key_blocks: Global<u32>,
    /// \[q_heads, query tiles of all sequences\]: how many.
    pub counts: Global<u32>,
}

impl BlockLists {
    /// Elements of `key_blocks`.
    pub const fn key_blocks_len(units: &Units) -> u64 {
        Self::counts_len(units) * units.sizes.key_blocks() as u64
    }

    /// Elements of `counts`.
    pub const fn counts_len(units: &Units) -> u64 {
        units.sizes.q_heads as u64 * units.sizes.sequences().query_tiles() as u64
    }

    /// The row of a query block that holds a row which sees a key. `head` counts those of all sequences.
    #[inline(always)]
    pub fn row(units: &Units, head: u32, query_block: u32) -> u64 {
        let sizes = &units.sizes;
        let sequences = sizes.sequences();
        let sequence = sequences.get(head / sizes.q_heads);
        let tile = sequences.first_query_tile(&sequence) + sequence.place_of(query_block);
        u64::from(head % sizes.q_heads) * u64::from(sequences.query_tiles()) + u64::from(tile)
    }

    /// The list of a query block.
    #[inline(always)]
    fn of(&self, units: &Units, head: u32, query_block: u32) -> Global<u32> {
        let blocks = u64::from(units.sizes.key_blocks());
        self.key_blocks
            .add(Self::row(units, head, query_block) * blocks)
    }

    /// Where its length lies.
    #[inline(always)]
    fn count_of(&self, units: &Units, head: u32, query_block: u32) -> Global<u32> {
        self.counts.add(Self::row(units, head, query_block))
    }

    /// Ends a query block's list, of `selected` so far, with its window. Called by whole warps.
    #[inline(always)]
    fn end_with_window(&self, units: &Units, head: u32, query_block: u32, selected: u32) {
        let list = self.of(units, head, query_block);
        let first = units.first_window_block(query_block);
        let mut block = first + gpu::laneid();
        while block <= query_block {
            gpu::st_global(list.add((selected + block - first).into()), block);
            block += 32;
        }
        if gpu::laneid() == 0 {
            let count = selected + query_block + 1 - first;
            gpu::st_global(self.count_of(units, head, query_block), count);
        }
    }
}

/// What both selections read, and say of the outcome.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Masses {
    /// \[unit, candidate\]: what candidates are ranked by.
    pub mass: Global<u64>,
    /// \[unit, candidate\]: mass outside window and sinks where `mass` counts more than that (the paper's rule); or null.
    pub outside: Global<u64>,
    /// \[unit, reduction task\]: mass in window and sinks.
    pub covered: Global<u64>,
    /// \[all units of the problem\]: mass that the selection keeps, window and sinks included.
    pub kept: Global<u64>,
    /// Share of the sampled mass to reach, in \[0, 1\].
    pub coverage: f32,
}

/// Elements of `kept`, which spans all units whatever a launch works on.
pub const fn kept_len(units: &Units) -> u64 {
    units.total() as u64
}

/// The launch of `top_k_blocks` and of `top_k_keys`.
pub const fn launch_shape(units: &Units) -> LaunchShape {
    LaunchShape::linear(units.count, THREADS, SharedMemory::BYTES)
}

/// ⌈coverage · rows · 2^32⌉, exactly: the mass of that share of the rows.
///
/// In integers, because a GPU without fast `f64` would wait for the product, which is exact there too.
pub const fn goal(coverage: f32, rows: u32) -> u64 {
    let bits = coverage.to_bits();
    let exponent = bits >> 23 & 0xff;
    let fraction = bits & 0x7f_ffff;
    // coverage = mantissa · 2^(scale − 150)
    let (mantissa, scale) = if exponent == 0 {
        (fraction, 1)
    } else {
        (fraction | 0x80_0000, exponent)
    };
    let product = mantissa as u64 * rows as u64;
    // 2^32 · 2^(scale − 150) = 2^(scale − 118); a coverage of 1 has scale 127.
    if scale >= 118 {
        product << (scale - 118)
    } else if 118 - scale < 64 {
        let shift = 118 - scale;
        (product >> shift) + (product & ((1 << shift) - 1) != 0) as u64
    } else {
        (product != 0) as u64
    }
}

/// The block's shared memory.
#[derive(Clone, Copy)]
struct SharedMemory {
    base: Shared<u8>,
}

impl SharedMemory {
    const HISTOGRAM_BYTES: u32 = radix::DIGITS * 8;
    const TOTALS_BYTES: u32 = WARPS * 8;
    const COUNTS_BYTES: u32 = 2 * MAX_RANGES * 4;
    const SUMS_BYTES: u32 = 16;
    const BYTES: u32 =
        Self::HISTOGRAM_BYTES + Self::TOTALS_BYTES + Self::COUNTS_BYTES + Self::SUMS_BYTES;

    #[inline(always)]
    fn new() -> Self {
        SharedMemory {
            base: gpu::dynamic_shared(),
        }
    }

    /// Mass by digit.
    #[inline(always)]
    const fn histogram(self) -> Shared<u64> {
        self.base.cast()
    }

    /// Mass by warp.
    #[inline(always)]
    const fn totals(self) -> Shared<u64> {
        self.base.byte_add(Self::HISTOGRAM_BYTES).cast()
    }

    /// What each range of candidates holds: above the threshold, and equal to it.
    #[inline(always)]
    const fn counts(self) -> Shared<u32> {
        self.base
            .byte_add(Self::HISTOGRAM_BYTES + Self::TOTALS_BYTES)
            .cast()
    }

    /// Two sums over the block.
    #[inline(always)]
    const fn sums(self) -> Shared<u64> {
        self.base
            .byte_add(Self::HISTOGRAM_BYTES + Self::TOTALS_BYTES + Self::COUNTS_BYTES)
            .cast()
    }
}

/// Ranges of candidates that are written independently: query blocks of a unit, or one a warp.
const MAX_RANGES: u32 = 64;

/// The threshold of a unit's need, and what window and sinks cover. All threads of the block call it.
#[inline(always)]
fn threshold(
    shared: SharedMemory,
    masses: &Masses,
    (mass, candidates): (Global<u64>, u32),
    (covered, tasks): (Global<u64>, u32),
    rows: u32,
) -> (Threshold, u64) {
    let mut of_thread = 0;
    let mut task = gpu::tid_x();
    while task < tasks {
        of_thread += gpu::ld_global_nc(covered.add(task.into()));
        task += THREADS;
    }
    let covered = sum_in_block(of_thread, shared.sums());
    let goal = goal(masses.coverage, rows);
    let need = if masses.outside.is_null() {
        goal.saturating_sub(covered)
    } else {
        goal
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
    use super::goal;

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
                assert_eq!(goal(coverage, rows), expected, "{coverage:e} of {rows}");
            }
        }
    }
}
