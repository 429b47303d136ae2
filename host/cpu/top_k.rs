//! Top-k key selection: each unit of a wave takes the smallest set of candidates that reaches its need, by
//! [`crate::top_k`]; then each head decides whether its selection is worth it.

use std::ops::Range;
use std::sync::Mutex;

use super::reduction::{MASS_ONE, Normaliser, Sampled};
use super::scratch::Scratch;
use super::simd::{Kernel, PANEL, Simd};
use super::tile::{self, Stats};
use super::totals::HeadTotals;
use super::units::{Unit, Units};
use crate::geometry::{BLOCK, Geometry};
use crate::policy::Budget;
use crate::selection::{BlockRows, HeadSelection, SelectionMut, StripeList};
use crate::top_k;

/// What reduction found for the units of a wave.
#[derive(Clone, Copy)]
pub(super) struct Masses<'a> {
    pub(super) units: &'a Units,
    pub(super) coverage: f32,
    /// [unit, candidate]
    pub(super) mass: &'a [u64],
    /// [unit, candidate], or empty where it is the same as `mass`.
    pub(super) outside: &'a [u64],
    /// [unit, reduction task]
    pub(super) covered: &'a [u64],
    /// Of the same units.
    pub(super) sampled: Sampled<'a>,
}

impl<'a> Masses<'a> {
    pub(super) fn range(&self, slot: usize) -> Range<usize> {
        slot * self.units.candidates()..(slot + 1) * self.units.candidates()
    }

    fn row_stats(&self, slot: usize) -> &'a [Stats] {
        let panels = self.units.panels;
        &self.sampled.row_stats[slot * panels..(slot + 1) * panels]
    }

    /// What the unit's candidates are ranked by, and their mass outside window and sinks.
    fn of(&self, slot: usize) -> (&'a [u64], &'a [u64]) {
        let mass = &self.mass[self.range(slot)];
        match self.units.budget {
            Budget::Paper => (mass, &self.outside[self.range(slot)]),
            Budget::Rows | Budget::Blocks | Budget::Residual => (mass, mass),
        }
    }

    /// The unit's sampled rows whose softmax is finite, the mass that window and sinks cover, and the mass that the selected set has to reach.
    pub(super) fn need(&self, slot: usize) -> (usize, u64, u64) {
        let tasks = self.units.reductions();
        let covered = self.covered[slot * tasks..(slot + 1) * tasks].iter().sum();
        let rows = tile::finite_rows(self.row_stats(slot));
        let goal = (f64::from(self.coverage) * rows as f64 * MASS_ONE as f64).ceil() as u64;
        let need = match self.units.budget {
            // The paper's rule does not count what the window covers.
            Budget::Paper => goal,
            Budget::Rows | Budget::Blocks | Budget::Residual => goal.saturating_sub(covered),
        };
        (rows, covered, need)
    }
}

/// What the tasks of a wave share.
pub(super) struct Shared<'a> {
    masses: Masses<'a>,
    totals: Mutex<&'a mut [HeadTotals]>,
}

impl<'a> Shared<'a> {
    pub(super) fn new(masses: Masses<'a>, totals: &'a mut [HeadTotals]) -> Self {
        Shared {
            masses,
            totals: Mutex::new(totals),
        }
    }
}

/// The selection of one unit.
pub(super) struct Task<'a> {
    masses: &'a Masses<'a>,
    totals: &'a Mutex<&'a mut [HeadTotals]>,
    slot: usize,
    unit: Unit,
    lists: Lists<'a>,
}

enum Lists<'a> {
    Blocks(BlockRows<'a>),
    Stripes(StripeList<'a>),
}

/// The tasks of one wave of a call.
pub(super) fn tasks<'a>(
    shared: &'a Shared<'a>,
    wave: usize,
    selection: &'a mut SelectionMut<'_>,
) -> Box<dyn Iterator<Item = Task<'a>> + Send + 'a> {
    let units = shared.masses.units;
    let task = |(slot, (unit, lists))| Task {
        masses: &shared.masses,
        totals: &shared.totals,
        slot,
        unit,
        lists,
    };
    let first = wave * units.wave;
    let of_wave = units.of_wave(wave);
    match units.budget {
        Budget::Rows => Box::new(std::iter::empty()),
        Budget::Blocks => {
            let segments = (0..units.per_head).map(|segment| units.query_blocks(segment));
            let rows = selection.block_rows(segments).skip(first);
            Box::new(of_wave.zip(rows.map(Lists::Blocks)).enumerate().map(task))
        }
        Budget::Residual | Budget::Paper => {
            let lists = selection.stripe_lists(first..first + units.wave);
            Box::new(of_wave.zip(lists.map(Lists::Stripes)).enumerate().map(task))
        }
    }
}

impl Task<'_> {
    pub(super) fn run(self, scratch: &mut Scratch<'_>) {
        let Task {
            masses,
            totals,
            slot,
            unit,
            lists,
        } = self;
        let (rows, covered, need) = masses.need(slot);
        let (mass, outside) = masses.of(slot);
        let mut covered_rows = HeadTotals::EMPTY;
        let selected = match lists {
            Lists::Blocks(mut lists) => {
                let blocks = masses.units.geometry.blocks();
                let selected = top_k::select(mass, need, |candidate| {
                    lists.keep(candidate / blocks, candidate % blocks);
                });
                covered_rows = scratch.instruction_set.run(RowCoverages {
                    masses,
                    slot,
                    unit,
                    kept: &lists,
                });
                selected
            }
            Lists::Stripes(mut stripes) => {
                let mut selected = 0;
                top_k::select(mass, need, |key| {
                    stripes.push(key);
                    selected += outside[key];
                });
                selected
            }
        };
        if let Ok(mut totals) = totals.lock() {
            let totals = &mut totals[unit.head];
            totals.add_rows(&covered_rows);
            // Sums of integers: the same whoever comes first. Shares are rounded, so that their sum may exceed a row's whole mass.
            totals.rows += rows as u64;
            totals.kept += (covered + selected).min(rows as u64 * MASS_ONE);
            totals.non_finite += (masses.units.rows(unit).len() - rows) as u64;
        }
    }
}

/// How much of each sampled row the lists of its query block keep, of one unit of [`Budget::Blocks`]: read off the statistics that
/// sampling left, so that it costs about as much as the reduction.
struct RowCoverages<'a, 'r> {
    masses: &'a Masses<'a>,
    slot: usize,
    unit: Unit,
    kept: &'a BlockRows<'r>,
}

impl Kernel for RowCoverages<'_, '_> {
    type Output = HeadTotals;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> HeadTotals {
        let Masses { units, sampled, .. } = *self.masses;
        let geometry = units.geometry;
        let rows = units.rows(self.unit);
        let query_blocks = units.query_blocks(self.unit.segment);
        let mut totals = HeadTotals::EMPTY;
        for first_rank in (0..rows.len()).step_by(PANEL) {
            let panel = self.slot * units.panels + first_rank / PANEL;
            let normaliser = Normaliser::new(simd, &sampled.row_stats[panel]);
            let in_sinks = normaliser.shares(simd, &sampled.sinks[panel]);
            let end = rows.len().min(first_rank + PANEL);
            let block_of = |rank: usize| rows.position(rank) / BLOCK;
            for query_block in block_of(first_rank)..=block_of(end - 1) {
                let ranks = rows.rank_at(query_block * BLOCK).max(first_rank)
                    ..rows.rank_at((query_block + 1) * BLOCK).min(end);
                let mut covered = in_sinks.0.map(f64::from);
                for block in self.kept.blocks(query_block - query_blocks.start) {
                    let stats = &sampled.blocks[panel * geometry.blocks() + block];
                    let shares = normaliser.shares(simd, stats);
                    for (covered, share) in covered.iter_mut().zip(shares.0) {
                        *covered += f64::from(share);
                    }
                }
                for rank in ranks {
                    let lane = rank - first_rank;
                    if normaliser.has_mass(lane) {
                        let row = rows.row(rank);
                        let is_last = row + 1 == geometry.q_len;
                        totals.add_row(row, covered[lane].min(1.0), is_last);
                    }
                }
            }
        }
        totals
    }
}

/// Makes each head dense whose selection costs as much as dense.
pub(super) fn choose_dense_heads(geometry: Geometry, selection: &mut SelectionMut<'_>) {
    for head in 0..selection.dense.len() {
        let mask = selection.as_ref().head(head);
        let dense = sparse_tiles(geometry, &mask) >= dense_tiles(geometry);
        selection.dense[head] = u8::from(dense);
    }
}

/// Tiles of a head's selection: each listed key block is one, and so are each 128 keys that no block covers.
fn sparse_tiles(geometry: Geometry, mask: &HeadSelection<'_>) -> usize {
    let loose: usize = geometry
        .query_blocks()
        .map(|block| mask.loose_keys(block).count().div_ceil(BLOCK))
        .sum();
    mask.blocks_kept() + loose
}

fn dense_tiles(geometry: Geometry) -> usize {
    let first = |block| geometry.first_visible(geometry.rows_of_block(block).start) / BLOCK;
    let blocks = geometry.query_blocks();
    blocks.map(|block| block + 1 - first(block)).sum()
}
