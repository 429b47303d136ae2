//! Top-k key selection: each unit of a wave takes the smallest set of candidates that reaches its need, by
//! [`crate::top_k`]; then each head decides whether its selection is worth it.

use std::ops::Range;
use std::sync::Mutex;

use super::reduction::MASS_ONE;
use super::scratch::Scratch;
use super::units::{Unit, Units};
use super::workers::for_each_task;
use super::workspace::HeadTotals;
use crate::geometry::{BLOCK, Geometry};
use crate::policy::Budget;
use crate::selection::{HeadSelection, SelectionMut};
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
}

impl<'a> Masses<'a> {
    pub(super) fn range(&self, slot: usize) -> Range<usize> {
        slot * self.units.candidates()..(slot + 1) * self.units.candidates()
    }

    /// What the unit's candidates are ranked by, and their mass outside window and sinks.
    fn of(&self, slot: usize) -> (&'a [u64], &'a [u64]) {
        let mass = &self.mass[self.range(slot)];
        match self.units.budget {
            Budget::Paper => (mass, &self.outside[self.range(slot)]),
            Budget::Rows | Budget::Blocks | Budget::Residual => (mass, mass),
        }
    }

    /// The unit's sampled rows, the mass that window and sinks cover, and the mass that the selected set has to reach.
    pub(super) fn need(&self, slot: usize, unit: Unit) -> (usize, u64, u64) {
        let tasks = self.units.reductions();
        let covered = self.covered[slot * tasks..(slot + 1) * tasks].iter().sum();
        let rows = self.units.rows(unit.segment).len();
        let goal = (f64::from(self.coverage) * rows as f64 * MASS_ONE as f64).ceil() as u64;
        let need = match self.units.budget {
            // The paper's rule does not count what the window covers.
            Budget::Paper => goal,
            Budget::Rows | Budget::Blocks | Budget::Residual => goal.saturating_sub(covered),
        };
        (rows, covered, need)
    }
}

/// Selects for the units of one wave; `ended` is called after each.
pub(super) fn select(
    masses: &Masses<'_>,
    wave: usize,
    selection: &mut SelectionMut<'_>,
    totals: &mut [HeadTotals],
    scratches: &mut [Scratch<'_>],
    ended: impl Fn() + Sync,
) {
    let units = masses.units;
    let totals = Mutex::new(totals);
    let ended = |slot: usize, unit: Unit, selected: u64| {
        let (rows, covered, _) = masses.need(slot, unit);
        if let Ok(mut totals) = totals.lock() {
            // Sums of integers: the same whoever comes first.
            totals[unit.head].rows += rows as u64;
            totals[unit.head].kept += covered + selected;
        }
        ended();
    };
    let first = wave * units.wave;
    match units.budget {
        Budget::Rows => {}
        Budget::Blocks => {
            let segments = (0..units.per_head).map(|segment| units.query_blocks(segment));
            let rows = selection.block_rows(segments).skip(first);
            let blocks = units.geometry.blocks();
            let tasks = units.of_wave(wave).zip(rows).enumerate();
            for_each_task(scratches, tasks, |_, (slot, (unit, mut rows))| {
                let (mass, _) = masses.of(slot);
                let (.., need) = masses.need(slot, unit);
                let selected = top_k::select(mass, need, |candidate| {
                    rows.keep(candidate / blocks, candidate % blocks);
                });
                ended(slot, unit, selected);
            });
        }
        Budget::Residual | Budget::Paper => {
            let lists = selection.stripe_lists(first..first + units.wave);
            let tasks = units.of_wave(wave).zip(lists).enumerate();
            for_each_task(scratches, tasks, |_, (slot, (unit, mut stripes))| {
                let (mass, outside) = masses.of(slot);
                let (.., need) = masses.need(slot, unit);
                let mut selected = 0;
                top_k::select(mass, need, |key| {
                    stripes.push(key);
                    selected += outside[key];
                });
                ended(slot, unit, selected);
            });
        }
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
    geometry.query_blocks().map(|block| block + 1).sum()
}
