//! The softmax statistics of a task's sampled rows over each key block.

use super::buffers::TaskBuffers;
use crate::cpu::rows::HeadRows;
use crate::cpu::sampling::PanelRows;
use crate::cpu::scratch::Scratch;
use crate::cpu::simd::{Kernel, PANEL, Simd};
use crate::cpu::tile::{self, Softcap, Stats};
use crate::cpu::units::Units;
use crate::geometry::{BLOCK, SampledRows};

/// Key blocks whose sums are added up by themselves: thousands of small ones, added one by one to a large sum, would lose bits.
const PARTIAL: usize = 64;

/// Statistics of the sampled rows from `first_rank` on, as many as `row_max` has. Leaves in the buffers, for each row, key block
/// and the sinks, the sum of 2^(score - the row's maximum), and the whole of it there and in `row_sum`.
pub(super) struct Statistics<'a, 'b, 's> {
    pub(super) units: &'a Units,
    pub(super) rows: &'a SampledRows,
    pub(super) first_rank: usize,
    pub(super) q: HeadRows<'a>,
    pub(super) k: HeadRows<'a>,
    pub(super) scale_log2: f64,
    pub(super) softcap: Option<Softcap>,
    pub(super) sink_log2: f32,
    pub(super) row_max: &'a mut [f32],
    pub(super) row_sum: &'a mut [f32],
    pub(super) buffers: &'a mut TaskBuffers<'b>,
    pub(super) scratch: &'a mut Scratch<'s>,
}

impl Kernel for Statistics<'_, '_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let geometry = self.units.geometry;
        let head_dim = self.units.head_dim;
        let blocks = geometry.blocks();
        let TaskBuffers {
            blocks: of_blocks,
            sinks: of_sinks,
            whole,
            ..
        } = self.buffers;
        let Scratch {
            queries,
            scores,
            keys: key_tile,
            row,
            ..
        } = self.scratch;
        let panels: [PanelRows; BLOCK / PANEL] = std::array::from_fn(|index| {
            let first = (index * PANEL).min(self.row_max.len());
            let len = (self.row_max.len() - first).min(PANEL);
            PanelRows::of_ranks(geometry, self.rows, self.first_rank + first, len)
        });
        let panels = &panels[..self.row_max.len().div_ceil(PANEL)];
        for (index, panel) in panels.iter().enumerate() {
            let ranks = panel.first_rank..panel.first_rank + panel.len;
            let rows = ranks.map(|rank| self.rows.row(rank));
            let lanes = &mut queries[index * head_dim..(index + 1) * head_dim];
            self.q.queries(rows, self.scale_log2, row, lanes);
        }
        of_blocks[..panels.len() * blocks].fill(Stats::EMPTY);
        of_sinks[..panels.len()].fill(Stats::of_sink(self.sink_log2));

        // Later rows see more keys.
        let end = panels.last().map_or(0, PanelRows::most_visible);
        for block in 0..end.div_ceil(BLOCK) {
            let tokens = geometry.keys_of_block(block);
            let k = self.k.tile(tokens.clone(), key_tile, head_dim);
            for (index, panel) in panels.iter().enumerate() {
                if panel.sees_none((tokens.start, tokens.len())) {
                    continue;
                }
                let queries = &queries[index * head_dim..(index + 1) * head_dim];
                let span = (tokens.start, tokens.len());
                let keys = panel.masked_scores(simd, queries, k, span, scores, self.softcap);
                let sinks = self.units.sinks.saturating_sub(tokens.start).min(keys);
                let (in_sinks, others) = scores[..keys].split_at_mut(sinks);
                let stats = &mut of_blocks[index * blocks + block];
                tile::online_softmax::<S, false>(simd, in_sinks, &mut of_sinks[index]);
                tile::online_softmax::<S, false>(simd, others, stats);
            }
        }
        let row_stats = self
            .row_max
            .chunks_mut(PANEL)
            .zip(self.row_sum.chunks_mut(PANEL));
        for (index, (row_max, row_sum)) in row_stats.enumerate() {
            let stats = &mut of_blocks[index * blocks..][..end.div_ceil(BLOCK)];
            whole[index] = to_one_reference(simd, stats, &mut of_sinks[index]);
            row_max.copy_from_slice(&whole[index].max.0[..row_max.len()]);
            row_sum.copy_from_slice(&whole[index].sum.0[..row_sum.len()]);
        }
    }
}

/// Makes all sums relative to the row's maximum. Returns the row's maximum and whole sum.
#[inline(always)]
fn to_one_reference<S: Simd>(simd: S, blocks: &mut [Stats], sinks: &mut Stats) -> Stats {
    let mut whole = Stats::EMPTY;
    for at in (0..PANEL).step_by(S::LANES) {
        let mut max = simd.load(&sinks.max, at);
        for stats in blocks.iter() {
            max = simd.max(simd.load(&stats.max, at), max);
        }
        let reference = tile::finite_or_zero(simd, max);
        let relative = |stats: &mut Stats| {
            let factor = simd.exp2(simd.sub(simd.load(&stats.max, at), reference));
            let sum = simd.mul(simd.load(&stats.sum, at), factor);
            simd.store(&mut stats.sum, at, sum);
            sum
        };
        let mut sum = relative(sinks);
        for some in blocks.chunks_mut(PARTIAL) {
            let mut partial = simd.splat(0.0);
            for stats in some {
                partial = simd.add(partial, relative(stats));
            }
            sum = simd.add(sum, partial);
        }
        simd.store(&mut whole.max, at, max);
        simd.store(&mut whole.sum, at, sum);
    }
    whole
}
