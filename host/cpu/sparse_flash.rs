//! Block-sparse FlashAttention on the CPU: O and log-sum-exp over a selection, dense as the selection of everything.
//!
//! ```text
//! for each (sequence, query head, query block):                  one task
//!     Qᵀ of its rows, scaled, in panels of 32
//!     for each listed key block, then each 128 loose keys:       ascending
//!         K and V as f32 rows (in place where they are)
//!         for each panel:
//!             scores -> causal mask (own block only) -> online softmax -> Oᵀ += Vᵀ·weights
//!     O = Oᵀ / sum, lse = (max + log2 sum)·ln 2
//! ```
//!
//! A query block's result depends on its own lists alone, in ascending order, so it has the same bits whatever the number of
//! threads or the chunk of the prompt that it is computed in.

use super::rows::{HeadRows, OutputRows};
use super::scratch::Scratch;
use super::simd::{Kernel, Lanes, PANEL, Simd};
use super::tile::{self, KEY_GROUP, Rows, Stats};
use super::workers::for_each_task;
use crate::geometry::{BLOCK, Geometry};
use crate::problem::Problem;
use crate::selection::{HeadSelection, SelectionRef};
use crate::tensor::Inputs;

/// Panels of one query block.
const PANELS: usize = BLOCK / PANEL;

/// What the heads attend to.
#[derive(Clone, Copy)]
pub(crate) enum Mask<'a> {
    Dense,
    Selection(SelectionRef<'a>),
}

/// Attention of all heads; `ended` is called after each query block.
pub(super) fn sparse_flash(
    problem: &Problem,
    inputs: &Inputs<'_>,
    mask: Mask<'_>,
    output: &OutputRows<'_>,
    scratches: &mut [Scratch<'_>],
    ended: impl Fn() + Sync,
) {
    let geometry = Geometry::new(problem);
    let heads = (0..problem.batch).flat_map(|b| (0..problem.q_heads).map(move |h| (b, h)));
    // Within a head the later query blocks see more keys, so they come first.
    let tasks = heads.flat_map(|head| geometry.query_blocks().rev().map(move |qb| (head, qb)));
    for_each_task(scratches, tasks, |scratch, ((batch, head), query_block)| {
        let kv_head = head / problem.group_size();
        scratch.instruction_set.run(QueryBlock {
            geometry,
            head_dim: problem.head_dim,
            scale_log2: problem.softmax_scale * std::f32::consts::LOG2_E,
            batch,
            head,
            query_block,
            q: HeadRows::new(&inputs.q, batch, head),
            k: HeadRows::new(&inputs.k, batch, kv_head),
            v: HeadRows::new(&inputs.v, batch, kv_head),
            mask: match mask {
                Mask::Dense => None,
                Mask::Selection(selection) => Some(selection.head(batch * problem.q_heads + head))
                    .filter(|mask| !mask.is_dense()),
            },
            output,
            scratch,
        });
        ended();
    });
    write_unseeing_rows(problem, geometry, output, scratches[0].row);
}

/// Rows that stand before the first key: O = 0, lse = -∞.
fn write_unseeing_rows(
    problem: &Problem,
    geometry: Geometry,
    output: &OutputRows<'_>,
    zeros: &mut [f32],
) {
    zeros.fill(0.0);
    for batch in 0..problem.batch {
        for head in 0..problem.q_heads {
            for row in (0..problem.q_len).take_while(|&row| geometry.visible_keys(row) == 0) {
                // SAFETY: no query block holds this row, and the workers have ended.
                unsafe { output.write((batch, head, row), zeros, f32::NEG_INFINITY) };
            }
        }
    }
}

struct QueryBlock<'a, 's> {
    geometry: Geometry,
    head_dim: usize,
    scale_log2: f32,
    batch: usize,
    head: usize,
    query_block: usize,
    q: HeadRows<'a>,
    k: HeadRows<'a>,
    v: HeadRows<'a>,
    /// `None` is dense.
    mask: Option<HeadSelection<'a>>,
    output: &'a OutputRows<'a>,
    scratch: &'a mut Scratch<'s>,
}

impl Kernel for QueryBlock<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let geometry = self.geometry;
        let head_dim = self.head_dim;
        let rows = geometry.rows_of_block(self.query_block);
        let panels = rows.len().div_ceil(PANEL);
        let Scratch {
            queries,
            output,
            scores,
            keys: key_tile,
            values: value_tile,
            row,
            loose,
            ..
        } = self.scratch;
        let queries = &mut queries[..panels * head_dim];
        let output = &mut output[..panels * head_dim];
        for (panel, lanes) in queries.chunks_exact_mut(head_dim).enumerate() {
            let first = rows.start + panel * PANEL;
            let last = (first + PANEL).min(rows.end);
            self.q.queries(first..last, self.scale_log2, row, lanes);
        }
        output.fill(Lanes::ZERO);
        let mut stats = [Stats::EMPTY; PANELS];

        let end = if geometry.causal {
            self.query_block + 1
        } else {
            geometry.blocks()
        };
        for block in 0..end {
            if self
                .mask
                .is_some_and(|mask| !mask.keeps_block(self.query_block, block))
            {
                continue;
            }
            let tokens = geometry.keys_of_block(block);
            let diagonal = geometry.causal && block == self.query_block;
            if !diagonal {
                let k = self.k.tile(tokens.clone(), key_tile, head_dim);
                let v = self.v.tile(tokens.clone(), value_tile, head_dim);
                let tile = Tile {
                    simd,
                    k,
                    v,
                    keys: tokens.len(),
                };
                tile.attend_panels(queries, scores, &mut stats[..panels], output);
                continue;
            }
            let k = self.k.gather(tokens.clone(), key_tile, head_dim);
            self.v.gather(tokens.clone(), value_tile, head_dim);
            let poisoned = take_poisoned_rows(value_tile, head_dim, tokens.len());
            let v = Rows {
                data: value_tile,
                stride: head_dim,
            };
            for (panel, stats) in stats[..panels].iter_mut().enumerate() {
                let first = rows.start + panel * PANEL;
                let visible = VisibleKeys::of_panel(geometry, first, rows.end, tokens.start);
                let lanes = panel * head_dim..(panel + 1) * head_dim;
                let output = &mut output[lanes.clone()];
                let tile = Tile {
                    simd,
                    k,
                    v,
                    keys: visible.most,
                };
                tile.attend(&queries[lanes], scores, stats, output, Some(&visible));
                if poisoned != 0 {
                    add_poisoned_rows(
                        self.v,
                        tokens.start,
                        poisoned,
                        scores,
                        &visible,
                        row,
                        output,
                    );
                }
            }
        }

        let mut loose_len = 0;
        if let Some(mask) = &self.mask {
            for (slot, key) in loose.iter_mut().zip(mask.loose_keys(self.query_block)) {
                *slot = key;
                loose_len += 1;
            }
        }
        for tokens in loose[..loose_len].chunks(BLOCK) {
            let gathered = tokens.iter().map(|&key| key as usize);
            let k = self.k.gather(gathered.clone(), key_tile, head_dim);
            let v = self.v.gather(gathered, value_tile, head_dim);
            let tile = Tile {
                simd,
                k,
                v,
                keys: tokens.len(),
            };
            tile.attend_panels(queries, scores, &mut stats[..panels], output);
        }

        for (panel, stats) in stats[..panels].iter().enumerate() {
            let output = &output[panel * head_dim..(panel + 1) * head_dim];
            let lse = tile::log2_sum_exp(stats);
            let first = rows.start + panel * PANEL;
            for (lane, token) in (first..rows.end.min(first + PANEL)).enumerate() {
                let sum = stats.sum.0[lane];
                // A row whose selection is empty has no sum to divide by.
                let inverse = if sum == 0.0 { 0.0 } else { 1.0 / sum };
                for (x, lanes) in row.iter_mut().zip(output) {
                    *x = lanes.0[lane] * inverse;
                }
                let lse = lse.0[lane] * std::f32::consts::LN_2;
                // SAFETY: each query block is one task, and its rows are its own.
                unsafe { self.output.write((self.batch, self.head, token), row, lse) };
            }
        }
    }
}

/// One tile of keys and values, to be attended to by panels of queries.
struct Tile<'a, S> {
    simd: S,
    k: Rows<'a>,
    v: Rows<'a>,
    /// Keys of the tile that at least one query sees.
    keys: usize,
}

impl<S: Simd> Tile<'_, S> {
    /// Attends with every panel of a query block, all of whose queries see all of the tile's keys.
    #[inline(always)]
    fn attend_panels(
        &self,
        queries: &[Lanes],
        scores: &mut [Lanes],
        stats: &mut [Stats],
        output: &mut [Lanes],
    ) {
        let head_dim = queries.len() / stats.len();
        let panels = queries
            .chunks_exact(head_dim)
            .zip(output.chunks_exact_mut(head_dim));
        for ((queries, output), stats) in panels.zip(stats) {
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
        causal: Option<&VisibleKeys>,
    ) {
        let simd = self.simd;
        let padded = self.keys.next_multiple_of(KEY_GROUP);
        tile::scores(simd, queries, self.k, &mut scores[..padded]);
        let scores = &mut scores[..self.keys];
        if let Some(visible) = causal {
            tile::mask(simd, scores, &visible.lanes, visible.fewest);
        }
        let rescale = tile::online_softmax::<S, true>(simd, scores, stats);
        if rescale.0 != [1.0; PANEL] {
            tile::scale(simd, output, &rescale);
        }
        tile::accumulate(simd, scores, self.v, output);
    }
}

/// How many of a tile's keys each row of a panel sees. Lanes without a row see what the last row sees.
struct VisibleKeys {
    lanes: Lanes,
    fewest: usize,
    most: usize,
}

impl VisibleKeys {
    fn of_panel(geometry: Geometry, first: usize, end: usize, tile_start: usize) -> Self {
        let count = |row: usize| geometry.visible_keys(row) - tile_start;
        let last = (first + PANEL).min(end) - 1;
        VisibleKeys {
            lanes: Lanes(std::array::from_fn(|lane| {
                count((first + lane).min(last)) as f32
            })),
            fewest: count(first),
            most: count(last),
        }
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

/// Adds the rows that [`take_poisoned_rows`] took out to the queries that do see them.
fn add_poisoned_rows(
    v: HeadRows<'_>,
    tile_start: usize,
    poisoned: u128,
    weights: &[Lanes],
    visible: &VisibleKeys,
    row: &mut [f32],
    output: &mut [Lanes],
) {
    for key in (0..visible.most).filter(|&key| poisoned >> key & 1 == 1) {
        v.read(tile_start + key, row);
        for lane in (0..PANEL).filter(|&lane| (key as f32) < visible.lanes.0[lane]) {
            for (output, x) in output.iter_mut().zip(row.iter()) {
                output.0[lane] += weights[key].0[lane] * x;
            }
        }
    }
}
