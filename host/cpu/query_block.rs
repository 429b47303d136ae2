//! One query block's walk over what it attends to.

use std::ops::Range;

use super::accumulator::Accumulator;
use super::rows::{HeadRows, OutputRows};
use super::simd::{Lanes, PANEL, Simd};
use super::tile::{self, KEY_GROUP, Rows, Softcap, Stats};
use crate::geometry::{BLOCK, Geometry};
use crate::selection::HeadSelection;

/// A query block of one head, and where its inputs and outputs are.
#[derive(Clone, Copy)]
pub(super) struct QueryBlock<'a> {
    pub(super) geometry: Geometry,
    pub(super) head_dim: usize,
    pub(super) scale_log2: f64,
    pub(super) softcap: Option<Softcap>,
    /// The head's sink (log2); −∞ where it has none.
    pub(super) sink_log2: f32,
    pub(super) batch: usize,
    pub(super) head: usize,
    pub(super) index: usize,
    pub(super) q: HeadRows<'a>,
    pub(super) k: HeadRows<'a>,
    pub(super) v: HeadRows<'a>,
    /// `None` is dense.
    pub(super) mask: Option<HeadSelection<'a>>,
    pub(super) output: OutputRows<'a>,
}

/// A query block with its queries and what its walk works in.
pub(super) struct Walk<'a, S> {
    pub(super) simd: S,
    pub(super) block: QueryBlock<'a>,
    pub(super) rows: Range<usize>,
    /// Qᵀ, one panel after the other.
    pub(super) queries: &'a [Lanes],
    pub(super) scores: &'a mut [Lanes],
    pub(super) keys: &'a mut [f32],
    pub(super) values: &'a mut [f32],
    pub(super) row: &'a mut [f32],
    pub(super) loose: &'a mut [u32],
    /// A power of two that all weights are multiplied by on their way to O, but not to the statistics.
    pub(super) weight_scale: f32,
}

impl<S: Simd> Walk<'_, S> {
    /// Attends to the listed key blocks, and then to the keys that none of them covers.
    #[inline(always)]
    pub(super) fn attend(&mut self, accumulator: &mut Accumulator<'_>) {
        let QueryBlock {
            geometry,
            head_dim,
            index,
            k,
            v,
            mask,
            softcap,
            ..
        } = self.block;
        let (simd, weight_scale) = (self.simd, self.weight_scale);
        let end = if geometry.causal {
            index + 1
        } else {
            geometry.blocks()
        };
        // Keys from the first one on are in some row's window, from the second one on in all rows'.
        let [first_seen, first_of_all] =
            [self.rows.start, self.rows.end - 1].map(|row| geometry.first_visible(row));
        for block in first_seen / BLOCK..end {
            if mask.is_some_and(|mask| !mask.keeps_block(index, block)) {
                continue;
            }
            let tokens = geometry.keys_of_block(block);
            if geometry.causal && block == index || tokens.start < first_of_all {
                let start = tokens.start;
                let visible = move |row| {
                    let hidden = geometry.first_visible(row).saturating_sub(start).min(BLOCK);
                    hidden..(geometry.visible_keys(row) - start).min(BLOCK)
                };
                self.attend_partly(tokens, visible, accumulator);
            } else {
                let k = k.tile(tokens.clone(), self.keys, head_dim);
                let v = v.tile(tokens.clone(), self.values, head_dim);
                let tile = Tile {
                    simd,
                    k,
                    v,
                    keys: tokens.len(),
                    weight_scale,
                    softcap,
                };
                tile.attend_panels(self.queries, self.scores, accumulator);
            }
            accumulator.end_tile(simd);
        }
        let mut loose_len = 0;
        if let Some(mask) = &mask {
            let seen = mask.loose_keys(index);
            let seen = seen.skip_while(|&key| (key as usize) < first_seen);
            for (slot, key) in self.loose.iter_mut().zip(seen) {
                *slot = key;
                loose_len += 1;
            }
        }
        for start in (0..loose_len).step_by(BLOCK) {
            let len = BLOCK.min(loose_len - start);
            if (self.loose[start] as usize) < first_of_all {
                let mut tokens = [0; BLOCK];
                tokens[..len].copy_from_slice(&self.loose[start..start + len]);
                let tokens = &tokens[..len];
                let visible = |row| {
                    let first = geometry.first_visible(row);
                    tokens.partition_point(|&key| (key as usize) < first)..len
                };
                let gathered = tokens.iter().map(|&key| key as usize);
                self.attend_partly(gathered, visible, accumulator);
            } else {
                let gathered = self.loose[start..start + len].iter();
                let gathered = gathered.map(|&key| key as usize);
                let k = k.gather(gathered.clone(), self.keys, head_dim);
                let v = v.gather(gathered, self.values, head_dim);
                let tile = Tile {
                    simd,
                    k,
                    v,
                    keys: len,
                    weight_scale,
                    softcap,
                };
                tile.attend_panels(self.queries, self.scores, accumulator);
            }
            accumulator.end_tile(simd);
        }
        accumulator.finish(simd);
    }

    /// Attends to a tile of which each row sees some keys, side by side: `visible` gives their places in the tile. Both ends of it
    /// ascend with the rows.
    #[inline(always)]
    fn attend_partly(
        &mut self,
        tokens: impl ExactSizeIterator<Item = usize> + Clone,
        visible: impl Fn(usize) -> Range<usize>,
        accumulator: &mut Accumulator<'_>,
    ) {
        let QueryBlock {
            head_dim,
            k,
            v,
            softcap,
            ..
        } = self.block;
        let len = tokens.len();
        let k = k.gather(tokens.clone(), self.keys, head_dim);
        v.gather(tokens.clone(), self.values, head_dim);
        let poisoned = take_poisoned_rows(self.values, head_dim, len);
        for (panel, queries) in self.queries.chunks_exact(head_dim).enumerate() {
            let first = self.rows.start + panel * PANEL;
            let visible = VisibleKeys::of_panel(&visible, first, self.rows.end);
            let (stats, output) = accumulator.panel(panel);
            let tile = Tile {
                simd: self.simd,
                k,
                v: Rows {
                    data: self.values,
                    stride: head_dim,
                },
                keys: visible.most,
                weight_scale: self.weight_scale,
                softcap,
            };
            tile.attend(queries, self.scores, stats, output, Some(&visible));
            if poisoned != 0 {
                let keys = tokens.clone().enumerate().take(visible.most);
                let poisoned = keys.filter(|&(key, _)| poisoned >> key & 1 == 1);
                add_poisoned_rows(v, poisoned, self.scores, &visible, self.row, output);
            }
        }
    }

    /// Writes O and log-sum-exp of the rows that `which` holds, by their place in the block. Returns which of them have an O that is
    /// not finite although their softmax is: where the values are finite, their sum has left f32's range.
    #[inline(always)]
    pub(super) fn write(&mut self, accumulator: &Accumulator<'_>, which: u128) -> u128 {
        let QueryBlock {
            batch,
            head,
            output,
            head_dim,
            ..
        } = self.block;
        let mut beyond = 0;
        for (panel, first) in self.rows.clone().step_by(PANEL).enumerate() {
            let (stats, sums) = accumulator.finished(panel);
            let lse = tile::lse(stats);
            let has_mass = tile::inverse_sums(stats).0.map(|inverse| inverse > 0.0);
            for (lane, token) in (first..self.rows.end.min(first + PANEL)).enumerate() {
                let place = 1 << (token - self.rows.start);
                if which & place == 0 {
                    continue;
                }
                let sum = stats.sum.0[lane];
                let unscale = 1.0 / self.weight_scale;
                let row = &mut self.row[..head_dim];
                if has_mass[lane] {
                    for (x, lanes) in row.iter_mut().zip(sums) {
                        let mean = lanes.0[lane] / sum * unscale;
                        // A mean of finite values is no larger than they are, whatever rounding makes of it.
                        let finite = lanes.0[lane].is_finite();
                        *x = if finite {
                            mean.clamp(-f32::MAX, f32::MAX)
                        } else {
                            mean
                        };
                    }
                    if row.iter().any(|x| !x.is_finite()) {
                        beyond |= place;
                    }
                } else {
                    row.fill(if accumulator.is_empty() {
                        0.0
                    } else {
                        f32::NAN
                    });
                }
                // SAFETY: each query block is one task, and its rows are its own.
                unsafe { output.write((batch, head, token), row, lse[lane] as f32) };
            }
        }
        beyond
    }
}

/// One tile of keys and values, to be attended to by panels of queries.
struct Tile<'a, S> {
    simd: S,
    k: Rows<'a>,
    v: Rows<'a>,
    /// Keys of the tile that at least one query sees.
    keys: usize,
    weight_scale: f32,
    softcap: Option<Softcap>,
}

impl<S: Simd> Tile<'_, S> {
    /// Attends with every panel of a query block, all of whose queries see all of the tile's keys.
    #[inline(always)]
    fn attend_panels(
        &self,
        queries: &[Lanes],
        scores: &mut [Lanes],
        accumulator: &mut Accumulator<'_>,
    ) {
        for (panel, queries) in queries.chunks_exact(accumulator.head_dim()).enumerate() {
            let (stats, output) = accumulator.panel(panel);
            self.attend(queries, scores, stats, output, None);
        }
    }

    /// Afterwards `scores` holds the weights of the tile's keys.
    #[inline(always)]
    fn attend(
        &self,
        queries: &[Lanes],
        scores: &mut [Lanes],
        stats: &mut Stats,
        output: &mut [Lanes],
        partly: Option<&VisibleKeys>,
    ) {
        let simd = self.simd;
        let padded = self.keys.next_multiple_of(KEY_GROUP);
        tile::scores(simd, queries, self.k, &mut scores[..padded]);
        let scores = &mut scores[..self.keys];
        if let Some(softcap) = self.softcap {
            softcap.apply(simd, scores);
        }
        if let Some(visible) = partly {
            tile::mask(simd, scores, &visible.lanes, visible.fewest);
            if visible.hides_first {
                tile::mask_before(simd, scores, &visible.first);
            }
        }
        let rescale = tile::online_softmax::<S, true>(simd, scores, stats);
        if self.weight_scale != 1.0 {
            tile::scale(simd, scores, &Lanes([self.weight_scale; PANEL]));
        }
        tile::accumulate(simd, scores, self.v, output, &rescale);
    }
}

/// Which of a tile's keys each row of a panel sees, as places in the tile. Lanes without a row see what the last row sees.
struct VisibleKeys {
    /// Where each row's keys begin and end.
    first: Lanes,
    lanes: Lanes,
    /// Whether some row does not see the tile's first key.
    hides_first: bool,
    /// The least and the largest end.
    fewest: usize,
    most: usize,
}

impl VisibleKeys {
    fn of_panel(visible: impl Fn(usize) -> Range<usize>, first: usize, end: usize) -> Self {
        let last = (first + PANEL).min(end) - 1;
        let row = |lane: usize| visible((first + lane).min(last));
        VisibleKeys {
            first: Lanes(std::array::from_fn(|lane| row(lane).start as f32)),
            lanes: Lanes(std::array::from_fn(|lane| row(lane).end as f32)),
            hides_first: visible(last).start > 0,
            fewest: visible(first).end,
            most: visible(last).end,
        }
    }

    fn sees(&self, lane: usize, key: usize) -> bool {
        (self.first.0[lane]..self.lanes.0[lane]).contains(&(key as f32))
    }
}

/// Zeroes the value rows that hold NaN or infinity and returns them as a bit set: in a tile that some queries see only a
/// part of, a weight of 0 would not keep them out of the sum.
fn take_poisoned_rows(values: &mut [f32], head_dim: usize, keys: usize) -> u128 {
    let mut poisoned = 0;
    for (key, row) in values.chunks_exact_mut(head_dim).take(keys).enumerate() {
        // The sum of finite x·0 is 0, of anything else NaN.
        if row.iter().map(|x| x * 0.0).sum::<f32>() != 0.0 {
            poisoned |= 1 << key;
            row.fill(0.0);
        }
    }
    poisoned
}

/// Adds the rows that [`take_poisoned_rows`] took out, by their places in the tile and their tokens, to the queries that see them.
fn add_poisoned_rows(
    v: HeadRows<'_>,
    poisoned: impl Iterator<Item = (usize, usize)>,
    weights: &[Lanes],
    visible: &VisibleKeys,
    row: &mut [f32],
    output: &mut [Lanes],
) {
    for (key, token) in poisoned {
        v.read(token, row);
        for lane in (0..PANEL).filter(|&lane| visible.sees(lane, key)) {
            for (output, x) in output.iter_mut().zip(row.iter()) {
                output.0[lane] += weights[key].0[lane] * x;
            }
        }
    }
}
