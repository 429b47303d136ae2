//! Selection for each sampled row by itself: a query tile's list is its window and what its rows ask for.
//!
//! ```text
//! a CTA: one query tile of a head; a warp: every 8th of its sampled rows
//!
//! bitmap of key blocks = the window; everything where the head is dense
//! for each of the warp's rows:
//!     its normaliser; without a finite one the row asks for nothing
//!     mass of each key block and of the sinks, in fixed point, in the place of the statistics; whole = their sum
//!     need = ⌈coverage · whole⌉ − mass in window and sinks
//!     threshold = the greatest mass for which the blocks before the window that have it or more reach need  (bit by bit)
//!     bitmap |= blocks above the threshold and, of those equal to it, the first few
//! no row with a finite normaliser: bitmap = everything
//! list = the bitmap's blocks, ascending;  kept = Σ over rows of the mass of sinks and of listed blocks
//! ```
//!
//! The list depends on nothing but the tile's own rows. So it is the same however a prompt is cut into chunks of whole blocks
//! (if the row stride divides a block), whatever else is in the batch, and whatever the slice.
//!
//! # Synchronisation
//! Barriers behind the bitmap's beginning, behind the last row, and two for the sum of `kept`. Bits are set by atomics, in any
//! order. A lane reads no mass but those that it wrote itself.
//!
//! # Shape contract
//! [`launch_shape`]. Writes lists and `kept` of all numbers of query tiles of the slice, of its heads of [`HeadKind::Rows`]; the
//! slice that has slot 0 also those of the heads that are not sampled. Tiles that see no key have empty lists.

use super::{SelectionOutput, share_of};
use crate::abi::{HeadEntry, HeadKind, HeadPolicy, TileSlice};
use crate::gpu::{self, Global, Shared};
use crate::launch::{LaunchShape, SELECT_ROWS_THREADS as THREADS};
use crate::params::BLOCK;
use crate::reduction::fixed_point;
use crate::reduction::statistics::{RowStatistics, Statistics};
use crate::tile::sum::sum_in_block;
use crate::tile::{WARP, panel};

/// What the selection by rows reads and writes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SelectRowsParams {
    /// Which query tiles.
    pub slice: TileSlice,
    /// From sampling. Masses take the place of `stats`: \[row, key block\] of `u32`, in 2^-32 of the row's.
    pub statistics: Statistics,
    /// \[row\]: the row's log-sum-exp in two parts, the second NaN where it is not finite, is written here; or null.
    pub row_lse: Global<f32>,
    /// \[q_heads, query tiles of the batch\]: how many sampled rows have a finite normaliser.
    pub finite_rows: Global<u32>,
    /// Selected blocks and window.
    pub output: SelectionOutput,
}

impl SelectRowsParams {
    /// Writes what is known of a query tile.
    #[inline(always)]
    fn set(&self, q_head: u32, tile: u32, count: u32, kept: u64, finite_rows: u32) {
        self.output.set_count(q_head, tile, count);
        self.output.set_kept(q_head, tile, kept);
        gpu::st_global(
            self.finite_rows.add(self.output.at(q_head, tile)),
            finite_rows,
        );
    }
}

/// The launch of `select_rows`.
pub const fn launch_shape(slice: &TileSlice) -> LaunchShape {
    let words = slice.block_capacity.div_ceil(32);
    LaunchShape::linear(
        slice.q_heads * slice.tiles,
        THREADS,
        BITMAP_OFFSET + 4 * words,
    )
}

const WARPS: u32 = THREADS / 32;
/// Behind the scratch of a sum, and the count of rows with a finite normaliser.
const BITMAP_OFFSET: u32 = 16;
/// Rows of a warp have a bit each in a register.
const _: () = assert!(BLOCK <= 32 * WARPS);

/// The key blocks of a query tile's list, a bit each.
#[derive(Clone, Copy)]
struct Bitmap {
    words: Shared<u32>,
    /// Blocks that the tile sees.
    blocks: u32,
}

impl Bitmap {
    #[inline(always)]
    const fn word_count(self) -> u32 {
        self.blocks.div_ceil(32)
    }

    #[inline(always)]
    fn word(self, index: u32) -> u32 {
        gpu::ld_shared(self.words.add(index))
    }

    /// Makes it the blocks from `first` on. All threads of the CTA call it.
    #[inline(always)]
    fn fill_from(self, first: u32) {
        let mut index = gpu::tid_x();
        while index < self.word_count() {
            let below = |end: u32| {
                let bits = end.saturating_sub(32 * index);
                if bits >= 32 {
                    u32::MAX
                } else {
                    (1 << bits) - 1
                }
            };
            gpu::st_shared(self.words.add(index), below(self.blocks) & !below(first));
            index += THREADS;
        }
    }

    /// Writes the blocks to `list`, ascending, and returns how many there are. All threads of the CTA call it, and whole warps
    /// get the same.
    #[inline(always)]
    fn write(self, list: Global<u32>) -> u32 {
        let lanes_before = (1 << gpu::laneid()) - 1;
        let mut index = panel::warp();
        while index < self.word_count() {
            let word = self.word(index);
            let before = self.count_before(index);
            if word >> gpu::laneid() & 1 != 0 {
                let at = before + (word & lanes_before).count_ones();
                gpu::st_global(list.add(at.into()), 32 * index + gpu::laneid());
            }
            index += WARPS;
        }
        self.count_before(self.word_count())
    }

    /// Blocks in the words before one. Called by whole warps.
    #[inline(always)]
    fn count_before(self, end: u32) -> u32 {
        let mut count = 0;
        let mut index = gpu::laneid();
        while index < end {
            count += self.word(index).count_ones();
            index += 32;
        }
        gpu::redux_sync_add_u32(WARP, count)
    }
}

/// The masses of one row's key blocks. A lane has every 32nd.
#[derive(Clone, Copy)]
struct RowMasses {
    masses: Global<u32>,
    /// Key blocks before the window.
    candidates: u32,
}

/// What a row asks for: blocks whose mass is above the threshold, and the first `ties` of those that have it.
#[derive(Clone, Copy)]
struct Threshold {
    mass: u32,
    ties: u32,
}

/// Masses that a lane loads before it uses the first.
const LOADS: usize = 4;

impl RowMasses {
    #[inline(always)]
    fn load(self, block: u32) -> u32 {
        if block < self.candidates {
            gpu::ld_global(self.masses.add(block.into()))
        } else {
            0
        }
    }

    /// Σ of the masses of at least `least`, which is not 0. The whole warp calls it.
    #[inline(always)]
    fn sum_from(self, least: u32) -> u64 {
        let mut sum = 0;
        let mut block = gpu::laneid();
        while block < self.candidates {
            let loaded: [u32; LOADS] = core::array::from_fn(|i| self.load(block + 32 * i as u32));
            for &mass in &loaded {
                sum += u64::from(if mass >= least { mass } else { 0 });
            }
            block += 32 * LOADS as u32;
        }
        sum_in_warp(sum)
    }

    /// The threshold of the smallest set that reaches `need`, which is above 0 and at most the sum of all. The whole warp calls
    /// it.
    #[inline(always)]
    fn threshold(self, need: u64, heaviest: u32) -> Threshold {
        let mut mass = 0;
        let mut bit = 1 << heaviest.ilog2();
        while bit > 0 {
            if self.sum_from(mass | bit) >= need {
                mass |= bit;
            }
            bit >>= 1;
        }
        let above = match mass.checked_add(1) {
            Some(least) => self.sum_from(least),
            None => 0,
        };
        Threshold {
            mass,
            ties: (need - above).div_ceil(mass.into()) as u32,
        }
    }

    /// Sets the bits of the blocks that the row asks for. The whole warp calls it.
    #[inline(always)]
    fn select(self, threshold: Threshold, bitmap: Bitmap) {
        let lanes_before = (1 << gpu::laneid()) - 1;
        let mut ties = threshold.ties;
        let mut start = 0;
        while start < self.candidates {
            let mass = self.load(start + gpu::laneid());
            let above = gpu::vote_sync_ballot(WARP, mass > threshold.mass);
            let equal = gpu::vote_sync_ballot(WARP, mass == threshold.mass);
            let is_first = (equal & lanes_before).count_ones() < ties;
            let first = gpu::vote_sync_ballot(WARP, mass == threshold.mass && is_first);
            ties -= first.count_ones();
            if gpu::laneid() == 0 && above | first != 0 {
                gpu::atom_shared_or_b32(bitmap.words.add(start / 32), above | first);
            }
            start += 32;
        }
    }

    /// This lane's share of the mass of the blocks in the bitmap.
    #[inline(always)]
    fn kept(self, bitmap: Bitmap) -> u64 {
        let mut kept = 0;
        let mut start = 0;
        while start < self.candidates {
            let is_listed = bitmap.word(start / 32) >> gpu::laneid() & 1 != 0;
            let mass = self.load(start + gpu::laneid());
            kept += u64::from(if is_listed { mass } else { 0 });
            start += 32;
        }
        kept
    }
}

/// The sum over a warp of what is below 2^42 in each lane.
#[inline(always)]
fn sum_in_warp(x: u64) -> u64 {
    let low = gpu::redux_sync_add_u32(WARP, x as u32 & 0xffff);
    let high = gpu::redux_sync_add_u32(WARP, (x >> 16) as u32);
    (u64::from(high) << 16) + u64::from(low)
}

/// A share of a row's mass, in fixed point.
#[inline(always)]
fn mass_of(statistic: f32, lse: f32) -> u32 {
    let share = gpu::ex2_approx_ftz_f32(statistic - lse);
    fixed_point(share, 1.0).min(u32::MAX.into()) as u32
}

/// Turns a row's statistics into masses and sets the bits of what it asks for. Returns what window and sinks cover; `None` for a
/// row without a finite normaliser. The whole warp calls it.
#[inline(always)]
fn select_of_row(
    p: &SelectRowsParams,
    policy: &HeadPolicy,
    row: u32,
    bitmap: Bitmap,
    masses: RowMasses,
) -> Option<u64> {
    let statistics = RowStatistics::new(&p.statistics, &p.slice, row, bitmap.blocks);
    let lse = statistics.lse();
    statistics.write_row_lse(p.row_lse, row, lse);
    let lse = lse?;
    let (mut of_window, mut outside, mut heaviest) = (0, 0, 0);
    let mut block = gpu::laneid();
    while block < bitmap.blocks {
        let mass = mass_of(statistics.block(block), lse);
        gpu::st_global(masses.masses.add(block.into()), mass);
        if block < masses.candidates {
            outside += u64::from(mass);
            heaviest = mass.max(heaviest);
        } else {
            of_window += u64::from(mass);
        }
        block += 32;
    }
    let outside = sum_in_warp(outside);
    let covered = sum_in_warp(of_window) + u64::from(mass_of(statistics.sinks(), lse));
    let need = share_of(policy.coverage, covered + outside, 0).saturating_sub(covered);
    if need > 0 {
        let heaviest = gpu::redux_sync_max_u32(WARP, heaviest);
        masses.select(masses.threshold(need, heaviest), bitmap);
    }
    Some(covered)
}

#[inline(always)]
fn select(p: &SelectRowsParams) {
    let slice = &p.slice;
    // Later tiles have longer lists.
    let q_head = gpu::ctaid_x() % slice.q_heads;
    let number = slice.first_tile + (slice.tiles - 1 - gpu::ctaid_x() / slice.q_heads);
    let HeadEntry { policy, slot } = slice.heads.get(q_head);
    let is_here = match policy.kind {
        HeadKind::Rows => slot.wrapping_sub(slice.first_slot) < slice.slots,
        HeadKind::Dense | HeadKind::Local => slice.first_slot == 0,
        HeadKind::Blocks | HeadKind::Residual | HeadKind::Paper => false,
    };
    if !is_here {
        return;
    }
    let tile = slice.sequences.query_tile(number);
    if let Some(tile) = tile
        && gpu::tid_x() == 0
    {
        let sequence = tile.sequence.index;
        p.output.set_no_keys(sequence, slice.q_heads, q_head);
    }
    let Some((sequence, query_block)) =
        tile.and_then(|tile| Some((tile.sequence, tile.query_block?)))
    else {
        if gpu::tid_x() == 0 {
            p.set(q_head, number, 0, 0, 0);
        }
        return;
    };
    let shared = gpu::dynamic_shared();
    let finite_rows: Shared<u32> = shared.byte_add(8).cast();
    let bitmap = Bitmap {
        words: shared.byte_add(BITMAP_OFFSET).cast(),
        blocks: query_block + 1,
    };
    let window = policy.first_window_block(query_block);
    bitmap.fill_from(if policy.kind == HeadKind::Dense {
        0
    } else {
        window
    });
    if gpu::tid_x() == 0 {
        gpu::st_shared(finite_rows, 0);
    }
    gpu::bar_sync(0);

    let mut kept = 0;
    let mut finite_of_tile = 0;
    if policy.kind == HeadKind::Rows {
        let from = query_block * BLOCK;
        let rows = policy.sampled_rows(&sequence, from, from + BLOCK).len();
        let first_row = slice.first_row(slot, number);
        let masses_of = |row: u32| RowMasses {
            masses: p
                .statistics
                .stats
                .add(u64::from(first_row + row) * u64::from(slice.block_capacity))
                .cast(),
            candidates: window,
        };
        let mut finite = 0u32;
        let mut row = panel::warp();
        while row < rows {
            if let Some(covered) =
                select_of_row(p, &policy, first_row + row, bitmap, masses_of(row))
            {
                finite |= 1 << (row / WARPS);
                kept += if gpu::laneid() == 0 { covered } else { 0 };
            }
            row += WARPS;
        }
        if gpu::laneid() == 0 {
            gpu::atom_shared_add_u32(finite_rows, finite.count_ones());
        }
        gpu::bar_sync(0);
        finite_of_tile = gpu::ld_shared(finite_rows);
        if finite_of_tile == 0 {
            bitmap.fill_from(0);
            gpu::bar_sync(0);
        }
        let mut row = panel::warp();
        while row < rows {
            if finite >> (row / WARPS) & 1 != 0 {
                kept += masses_of(row).kept(bitmap);
            }
            row += WARPS;
        }
    }
    let list = p.output.mask.blocks(p.output.mask.row(q_head, number));
    let count = bitmap.write(list);
    let kept = sum_in_block(kept, shared.cast());
    if gpu::tid_x() == 0 {
        p.set(q_head, number, count, kept, finite_of_tile);
    }
}

crate::entry! {
    /// Selection by rows.
    SELECT_ROWS, select_rows = select, SelectRowsParams
}
