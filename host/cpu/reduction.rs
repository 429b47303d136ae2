//! Reduction: the sampled attention mass of every candidate, and what window and sinks already cover.
//!
//! Blocks need no second look at the keys: the mass of (query block, key block) is Σ over the query block's sampled rows of
//! 2^(block's maximum - row's maximum) · block's sum / row's sum, from the statistics that sampling kept. Single keys take a second
//! pass over QKᵀ, one task a key block, which adds up 2^(score - maximum) / sum over all panels. Rows whose softmax is not finite
//! have no mass.
//!
//! A row's whole mass is 1. Sums are fixed-point integers in units of 1 / [`MASS_ONE`], each converted from a sum in a fixed
//! order, so the bits do not depend on who computed what when.

use std::ops::Range;

use super::call::Call;
use super::rows::HeadRows;
use super::sampling::{BlockStats, PanelRows};
use super::scratch::Scratch;
use super::simd::{Kernel, Lanes, PANEL, Simd};
use super::tile::{self, Softcap, Stats};
use super::units::{Unit, Units};
use super::workers::take;
use crate::geometry::{BLOCK, SampledRows};
use crate::policy::Budget;

/// Fixed-point mass of one fully attended row.
pub const MASS_ONE: u64 = 1 << 32;

/// A sum of at most `rows` rows' mass in fixed point. NaN, which comes of NaN or infinite inputs, counts as nothing.
fn fixed_point(mass: f64, rows: usize) -> u64 {
    // `clamp` keeps NaN, and NaN casts to 0.
    (mass.clamp(0.0, rows as f64) * MASS_ONE as f64) as u64
}

/// What sampling left, for all units of a wave.
#[derive(Clone, Copy)]
pub(super) struct Sampled<'a> {
    pub(super) queries: &'a [Lanes],
    pub(super) row_stats: &'a [Stats],
    pub(super) blocks: &'a [BlockStats],
    pub(super) sinks: &'a [BlockStats],
}

/// Where reduction writes, for all units of a wave.
pub(super) struct MassBuffers<'a> {
    /// [unit, candidate]: what the candidates are ranked by.
    pub(super) mass: &'a mut [u64],
    /// [unit, candidate], or empty: mass outside window and sinks, where the ranking counts more than that.
    pub(super) outside: &'a mut [u64],
    /// [unit, task]: mass that window and sinks cover.
    pub(super) covered: &'a mut [u64],
}

/// The tasks of some units of a call.
pub(super) fn tasks<'a>(
    call: Call<'a>,
    units: &'a Units,
    wave: impl Iterator<Item = Unit> + Send + 'a,
    sampled: Sampled<'a>,
    buffers: MassBuffers<'a>,
) -> impl Iterator<Item = Task<'a>> + Send + 'a {
    let per_task = units.candidates_per_reduction();
    let outside_per_task = units.outside_candidates() / units.reductions();
    let MassBuffers {
        mut mass,
        mut outside,
        mut covered,
    } = buffers;
    wave.enumerate().flat_map(move |(slot, unit)| {
        let mut mass = take(&mut mass, units.candidates());
        let mut outside = take(&mut outside, units.outside_candidates());
        let covered = take(&mut covered, units.reductions());
        covered
            .iter_mut()
            .enumerate()
            .map(move |(task, covered)| Task {
                units,
                unit,
                slot,
                task,
                k: call.keys(unit.head),
                softcap: call.softcap(),
                sink_log2: call.sink_log2(unit.head),
                sampled,
                mass: take(&mut mass, per_task),
                outside: take(&mut outside, outside_per_task),
                covered,
            })
    })
}

/// The masses of one query block, or of one key block where single keys are ranked.
pub(super) struct Task<'a> {
    units: &'a Units,
    unit: Unit,
    /// The unit's place in the wave.
    slot: usize,
    /// Query block within the unit, or key block where single keys are ranked.
    task: usize,
    k: HeadRows<'a>,
    softcap: Option<Softcap>,
    sink_log2: f32,
    sampled: Sampled<'a>,
    mass: &'a mut [u64],
    outside: &'a mut [u64],
    covered: &'a mut u64,
}

impl Task<'_> {
    pub(super) fn run(self, scratch: &mut Scratch<'_>) {
        let instruction_set = scratch.instruction_set;
        match self.units.budget {
            Budget::Blocks => instruction_set.run(ReduceBlocks { task: self }),
            Budget::Rows => {}
            Budget::Residual | Budget::Paper => instruction_set.run(ReduceKeys {
                task: self,
                scratch,
            }),
        }
    }
}

/// The mass that one query block's rows give each key block.
struct ReduceBlocks<'a> {
    task: Task<'a>,
}

impl Kernel for ReduceBlocks<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Task {
            units,
            unit,
            slot,
            task,
            sampled,
            mass,
            covered,
            ..
        } = self.task;
        mass.fill(0);
        *covered = 0;
        let blocks = units.geometry.blocks();
        let query_blocks = units.query_blocks(unit.segment);
        let query_block = query_blocks.start + task;
        if query_block >= query_blocks.end {
            return;
        }
        let rows = units.rows(unit);
        let ranks = rows.rank_at(query_block * BLOCK)..rows.rank_at((query_block + 1) * BLOCK);
        if ranks.is_empty() {
            return;
        }
        // The lanes of each panel that hold this query block's rows.
        let panels = (ranks.start / PANEL..=(ranks.end - 1) / PANEL).map(|panel| {
            let first = panel * PANEL;
            let lanes = ranks.start.max(first) - first..(ranks.end - first).min(PANEL);
            (slot * units.panels + panel, lanes)
        });
        // 128 rows take four panels, and one more where the first of them begins within a panel.
        let mut normalisers = [Normaliser::NONE; BLOCK / PANEL + 1];
        for (normaliser, (panel, _)) in normalisers.iter_mut().zip(panels.clone()) {
            *normaliser = Normaliser::new(simd, &sampled.row_stats[panel]);
        }
        let panels = || panels.clone().zip(&normalisers);
        let first_window_block = (query_block + 1).saturating_sub(units.window_blocks);
        for (block, mass) in mass.iter_mut().enumerate().take(query_block + 1) {
            let sum: f64 = panels()
                .map(|((panel, lanes), normaliser)| {
                    let stats = &sampled.blocks[panel * blocks + block];
                    normaliser.sum_of_shares(simd, stats, lanes)
                })
                .sum();
            let sum = fixed_point(sum, ranks.len());
            if block < first_window_block {
                *mass = sum;
            } else {
                *covered += sum;
            }
        }
        let in_sinks: f64 = panels()
            .map(|((panel, lanes), normaliser)| {
                normaliser.sum_of_shares(simd, &sampled.sinks[panel], lanes)
            })
            .sum();
        *covered += fixed_point(in_sinks, ranks.len());
    }
}

/// What turns scores of a panel's rows into shares of each row's mass.
#[derive(Clone, Copy)]
pub(super) struct Normaliser {
    max: Lanes,
    /// 0 where the row has no finite softmax, and so no mass.
    inverse: Lanes,
}

impl Normaliser {
    pub(super) const NONE: Normaliser = Normaliser {
        max: Lanes::ZERO,
        inverse: Lanes::ZERO,
    };

    #[inline(always)]
    pub(super) fn new<S: Simd>(simd: S, row: &Stats) -> Self {
        let inverse = tile::inverse_sums(row);
        let mut max = row.max;
        for at in (0..PANEL).step_by(S::LANES) {
            let reference = tile::finite_or_zero(simd, simd.load(&max, at));
            simd.store(&mut max, at, reference);
        }
        Normaliser { max, inverse }
    }

    /// Whether the row of this lane has a finite softmax.
    pub(super) fn has_mass(&self, lane: usize) -> bool {
        self.inverse.0[lane] > 0.0
    }

    /// The share of each row's mass that `stats` holds.
    #[inline(always)]
    pub(super) fn shares<S: Simd>(&self, simd: S, stats: &BlockStats) -> Lanes {
        let mut shares = Lanes::ZERO;
        let zero = simd.splat(0.0);
        for at in (0..PANEL).step_by(S::LANES) {
            let max = simd.load(&self.max, at);
            let inverse = simd.load(&self.inverse, at);
            let factor = simd.exp2(simd.sub(simd.load(&stats.max, at), max));
            let share = simd.mul(simd.mul(simd.load(&stats.sum, at), factor), inverse);
            simd.store(&mut shares, at, simd.select_lt(zero, inverse, share, zero));
        }
        shares
    }

    #[inline(always)]
    fn sum_of_shares<S: Simd>(&self, simd: S, stats: &BlockStats, lanes: Range<usize>) -> f64 {
        let shares = self.shares(simd, stats);
        shares.0[lanes].iter().map(|&x| f64::from(x)).sum()
    }

    /// `sums[n][key] += 2^(score[key] - maximum) · weights[n]`, lane by lane, where `weights` holds 1 / sum, or 0 for nothing.
    #[inline(always)]
    fn add_shares<S: Simd>(
        &self,
        simd: S,
        scores: &[Lanes],
        weights: [&Lanes; 2],
        sums: [&mut [Lanes]; 2],
    ) {
        let [all, beyond] = sums;
        let zero = simd.splat(0.0);
        for at in (0..PANEL).step_by(S::LANES) {
            let max = simd.load(&self.max, at);
            let inverse = simd.load(&self.inverse, at);
            let weights = weights.map(|weight| simd.load(weight, at));
            for ((score, all), beyond) in scores.iter().zip(all.iter_mut()).zip(beyond.iter_mut()) {
                let share = simd.exp2(simd.sub(simd.load(score, at), max));
                // NaN of a row without mass would pass a weight of 0.
                let share = simd.select_lt(zero, inverse, share, zero);
                let sum = simd.mul_add(share, weights[0], simd.load(all, at));
                simd.store(all, at, sum);
                let sum = simd.mul_add(share, weights[1], simd.load(beyond, at));
                simd.store(beyond, at, sum);
            }
        }
    }
}

/// The mass that all rows of a unit give each key of one key block.
struct ReduceKeys<'a, 's> {
    task: Task<'a>,
    scratch: &'a mut Scratch<'s>,
}

impl Kernel for ReduceKeys<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Task {
            units,
            unit,
            slot,
            task: block,
            k,
            softcap,
            sink_log2,
            sampled,
            mass,
            outside,
            covered,
        } = self.task;
        let geometry = units.geometry;
        let head_dim = units.head_dim;
        let rows: SampledRows = units.rows(unit);
        let tokens = geometry.keys_of_block(block);
        let k = k.tile(tokens.clone(), self.scratch.keys, head_dim);
        let (all, beyond) = self.scratch.output[..2 * BLOCK].split_at_mut(BLOCK);
        all.fill(Lanes::ZERO);
        beyond.fill(Lanes::ZERO);
        let mut in_sink = 0.0;
        for panel in 0..units.panels {
            let at = slot * units.panels + panel;
            let panel = PanelRows::new(geometry, &rows, panel);
            if panel.len == 0 {
                continue;
            }
            if block == 0 {
                // The head's sink has no key; it is counted once.
                let normaliser = Normaliser::new(simd, &sampled.row_stats[at]);
                let shares = normaliser.shares(simd, &Stats::of_sink(sink_log2));
                in_sink += shares.0.iter().map(|&x| f64::from(x)).sum::<f64>();
            }
            if panel.sees_none((tokens.start, tokens.len())) {
                continue;
            }
            let queries = &sampled.queries[at * head_dim..(at + 1) * head_dim];
            let span = (tokens.start, tokens.len());
            let scores = &mut *self.scratch.scores;
            let keys = panel.masked_scores(simd, queries, k, span, scores, softcap);
            let normaliser = Normaliser::new(simd, &sampled.row_stats[at]);
            let outside_window = Lanes(std::array::from_fn(|lane| {
                let reaches = block + units.window_blocks > panel.query_block(lane);
                if reaches {
                    0.0
                } else {
                    normaliser.inverse.0[lane]
                }
            }));
            normaliser.add_shares(
                simd,
                &scores[..keys],
                [&normaliser.inverse, &outside_window],
                [all, beyond],
            );
        }
        mass.fill(0);
        outside.fill(0);
        *covered = fixed_point(in_sink, rows.len());
        for key in 0..tokens.len() {
            let sum = |lanes: &Lanes| {
                let sum = lanes.0.iter().map(|&x| f64::from(x)).sum::<f64>();
                fixed_point(sum, rows.len())
            };
            let whole = sum(&all[key]);
            let beyond = if tokens.start + key < units.sinks {
                0
            } else {
                sum(&beyond[key])
            };
            *covered += whole - beyond.min(whole);
            match units.budget {
                Budget::Paper => {
                    mass[key] = whole;
                    outside[key] = beyond;
                }
                Budget::Rows | Budget::Residual | Budget::Blocks => mass[key] = beyond,
            }
        }
    }
}
