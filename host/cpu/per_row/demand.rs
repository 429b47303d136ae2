//! What each sampled row asks for, and what the query blocks list because of it.

use std::ops::Range;

use super::buffers::TaskBuffers;
use super::heaviest::{Candidate, heaviest};
use crate::cpu::reduction::MASS_ONE;
use crate::cpu::simd::PANEL;
use crate::cpu::tile::Stats;
use crate::cpu::totals::HeadTotals;
use crate::cpu::units::Units;
use crate::geometry::{BLOCK, SampledRows};
use crate::selection::BlockRows;

/// Selects for some query blocks, of whose sampled rows `buffers` holds the statistics. Returns how many of the rows are finite, and
/// what the lists keep of their mass.
pub(super) fn select(
    units: &Units,
    rows: &SampledRows,
    target: u64,
    query_blocks: Range<usize>,
    mut lists: BlockRows<'_>,
    buffers: &mut TaskBuffers<'_>,
) -> HeadTotals {
    let mut totals = HeadTotals::EMPTY;
    let statistics = Statistics {
        key_blocks: units.geometry.blocks(),
        blocks: buffers.blocks,
        sinks: buffers.sinks,
        whole: buffers.whole,
    };
    let rank_at = |query_block: usize| rows.rank_at(query_block * BLOCK);
    let (first_block, first_rank) = (query_blocks.start, rank_at(query_blocks.start));
    for query_block in query_blocks {
        if units.geometry.rows_of_block(query_block).is_empty() {
            continue;
        }
        let ranks = rank_at(query_block)..rank_at(query_block + 1);
        let finite = ranks
            .clone()
            .filter_map(|rank| Some((rank, statistics.of_row(rank - first_rank)?)));
        let window = (query_block + 1).saturating_sub(units.window_blocks)..query_block + 1;
        let asked = &mut buffers.asked[..window.start];
        asked.fill(0);
        let mut count = 0;
        for (_, row) in finite.clone() {
            count += 1;
            let need = target.saturating_sub(row.covered(window.clone()));
            row.ask(need, asked, buffers.candidates);
        }
        totals.non_finite += (ranks.len() - count) as u64;
        let mut keep = |key_block| lists.keep(query_block - first_block, key_block);
        if count == 0 {
            (0..window.start).for_each(&mut keep);
            continue;
        }
        let kept = || (0..asked.len()).filter(|&block| asked[block] != 0);
        kept().for_each(&mut keep);
        for (rank, row) in finite {
            let others = kept().map(|block| row.of(block)).sum::<u64>();
            // Shares are rounded, so that their sum may exceed the row's whole mass.
            let mass = (row.covered(window.clone()) + others).min(MASS_ONE);
            totals.rows += 1;
            totals.kept += mass;
            let (row, is_last) = (rows.row(rank), rank + 1 == rows.len());
            totals.add_row(row, mass as f64 / MASS_ONE as f64, is_last);
        }
    }
    totals
}

/// What the statistics of a task's rows left.
#[derive(Clone, Copy)]
struct Statistics<'a> {
    key_blocks: usize,
    /// [panel, key block]
    blocks: &'a [Stats],
    /// [panel]
    sinks: &'a [Stats],
    /// [panel]
    whole: &'a [Stats],
}

impl<'a> Statistics<'a> {
    /// A row of the task; `None` where its softmax has no finite normaliser.
    fn of_row(&self, row: usize) -> Option<Row<'a>> {
        let (panel, lane) = (row / PANEL, row % PANEL);
        let whole = &self.whole[panel];
        let (max, sum) = (whole.max.0[lane], whole.sum.0[lane]);
        (max.is_finite() && sum.is_finite() && sum > 0.0).then(|| Row {
            blocks: &self.blocks[panel * self.key_blocks..(panel + 1) * self.key_blocks],
            sinks: &self.sinks[panel],
            lane,
            scale: MASS_ONE as f64 / f64::from(sum),
        })
    }
}

/// The masses of one sampled row, [`MASS_ONE`] together.
#[derive(Clone, Copy)]
struct Row<'a> {
    blocks: &'a [Stats],
    sinks: &'a Stats,
    lane: usize,
    /// From a sum relative to the row's maximum to a mass.
    scale: f64,
}

impl Row<'_> {
    fn mass(&self, stats: &Stats) -> u64 {
        // A part of the row's sum may exceed it by its rounding.
        ((f64::from(stats.sum.0[self.lane]) * self.scale) as u64).min(MASS_ONE)
    }

    /// Mass of a key block, sinks apart.
    fn of(&self, key_block: usize) -> u64 {
        self.mass(&self.blocks[key_block])
    }

    /// Mass of the window's key blocks and of the sinks.
    fn covered(&self, window: Range<usize>) -> u64 {
        self.mass(self.sinks) + window.map(|block| self.of(block)).sum::<u64>()
    }

    /// Flags the smallest set of the key blocks before the window, one flag each in `asked`, whose mass reaches `need`.
    fn ask(&self, need: u64, asked: &mut [u8], candidates: &mut [u64]) {
        if need == 0 {
            return;
        }
        let mut len = 0;
        for block in 0..asked.len() {
            let mass = self.of(block);
            candidates[len] = Candidate::new(mass, block).packed();
            len += usize::from(mass > 0);
        }
        let candidates = &mut candidates[..len];
        let chosen = heaviest(candidates, need);
        for &packed in &candidates[..chosen] {
            asked[Candidate::of_packed(packed).block()] = 1;
        }
    }
}
