//! Block-sparse FlashAttention on the CPU: O and log-sum-exp over a selection, dense as the selection of everything.
//!
//! ```text
//! for each (sequence, query head, query block):                  one task
//!     Qᵀ of its rows, scaled, in panels of 32
//!     for each listed key block, then each 128 loose keys:       ascending
//!         K and V as f32 rows (in place where they are)
//!         for each panel:
//!             scores -> causal mask (diagonal block only) -> online softmax -> Oᵀ += Vᵀ·weights
//!     O = Oᵀ / sum, lse = (max + log2 sum)·ln 2
//!     once more with small weights, for rows whose Oᵀ left f32's range although O does not
//! ```
//!
//! Rows that see no key: O = 0, lse = -∞. Rows that see keys, but all with scores of -∞: O = NaN, lse = -∞. One score of NaN or +∞
//! makes both NaN.
//!
//! A query block's result depends on its own lists alone, in ascending order, so it has the same bits whatever the number of
//! threads or the chunk of the prompt that it is computed in. Dense attention of few queries goes another way (`few_queries`), whose
//! sums are rounded otherwise.

use super::accumulator::{Accumulator, Sums};
use super::query_block::{QueryBlock, Walk};
use super::rows::{HeadRows, OutputRows};
use super::scratch::Scratch;
use super::simd::{Kernel, PANEL, Simd};
use super::workers::for_each_task;
use crate::geometry::Geometry;
use crate::problem::Problem;
use crate::selection::SelectionRef;
use crate::tensor::Inputs;

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
        let block = QueryBlock {
            geometry,
            head_dim: problem.head_dim,
            scale_log2: problem.scale_log2(),
            batch,
            head,
            index: query_block,
            q: HeadRows::new(&inputs.q, batch, head),
            k: HeadRows::new(&inputs.k, batch, kv_head),
            v: HeadRows::new(&inputs.v, batch, kv_head),
            mask: match mask {
                Mask::Dense => None,
                Mask::Selection(selection) => Some(selection.head(batch * problem.q_heads + head))
                    .filter(|mask| !mask.is_dense()),
            },
            output,
        };
        scratch.instruction_set.run(Attend { block, scratch });
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

struct Attend<'a, 's> {
    block: QueryBlock<'a>,
    scratch: &'a mut Scratch<'s>,
}

impl Kernel for Attend<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let block = self.block;
        let head_dim = block.head_dim;
        let rows = block.geometry.rows_of_block(block.index);
        let panels = rows.len().div_ceil(PANEL);
        let Scratch {
            queries,
            output,
            total,
            carry,
            scores,
            keys,
            values,
            row,
            loose,
            ..
        } = self.scratch;
        let queries = &mut queries[..panels * head_dim];
        for (panel, lanes) in queries.chunks_exact_mut(head_dim).enumerate() {
            let first = rows.start + panel * PANEL;
            let last = (first + PANEL).min(rows.end);
            block.q.queries(first..last, block.scale_log2, row, lanes);
        }
        let mut walk = Walk {
            simd,
            block,
            rows,
            queries,
            scores,
            keys,
            values,
            row,
            loose,
            weight_scale: 1.0,
        };
        let mut sums = Sums {
            recent: &mut output[..panels * head_dim],
            total: &mut total[..panels * head_dim],
            carry: &mut carry[..panels * head_dim],
        };
        let mut accumulator = Accumulator::new(head_dim, sums.reborrow());
        walk.attend(&mut accumulator);
        let beyond = walk.write(&accumulator, !0);
        if beyond != 0 {
            walk.weight_scale = SMALL_WEIGHT;
            let mut accumulator = Accumulator::new(head_dim, sums);
            walk.attend(&mut accumulator);
            walk.write(&accumulator, beyond);
        }
    }
}

/// What weights are multiplied by where sums of values leave f32's range before they are divided: 2³⁰ keys of the largest value stay
/// within it.
const SMALL_WEIGHT: f32 = 1.0 / (1u64 << 32) as f32;
