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

use std::ops::Range;

use super::accumulator::{Accumulator, Sums};
use super::call::Call;
use super::query_block::{QueryBlock, Walk};
use super::rows::OutputRows;
use super::scratch::Scratch;
use super::simd::{Kernel, PANEL, Simd};
use crate::selection::SelectionRef;

/// What the heads attend to.
#[derive(Clone, Copy)]
pub(crate) enum Mask<'a> {
    Dense,
    Selection(SelectionRef<'a>),
}

/// The tasks of a call: query blocks of all heads.
pub(super) fn tasks<'a>(
    call: Call<'a>,
    mask: Mask<'a>,
    output: OutputRows<'a>,
) -> impl Iterator<Item = QueryBlock<'a>> + Send + 'a {
    let Call { problem, .. } = call;
    let geometry = call.geometry();
    // Within a head the later query blocks see more keys, so they come first.
    (0..problem.heads()).flat_map(move |head| {
        let (batch, q_head) = call.place(head);
        geometry.query_blocks().rev().map(move |index| QueryBlock {
            geometry,
            head_dim: problem.head_dim,
            scale_log2: problem.scale_log2(),
            softcap: call.softcap(),
            sink_log2: call.sink_log2(head),
            batch,
            head: q_head,
            index,
            q: call.queries(head),
            k: call.keys(head),
            v: call.values(head),
            mask: match mask {
                Mask::Dense => None,
                Mask::Selection(selection) => {
                    Some(selection.head(head)).filter(|mask| !mask.is_dense())
                }
            },
            output,
        })
    })
}

/// Attends with the queries of one block.
pub(super) fn attend(block: QueryBlock<'_>, scratch: &mut Scratch<'_>) {
    scratch.instruction_set.run(Attend { block, scratch });
}

/// Writes O = 0 and the log-sum-exp of the sink alone for the rows of a call that stand before the first key.
///
/// # Safety
/// No other thread writes to the output at the same time.
pub(super) unsafe fn write_fully_masked_rows(
    call: &Call<'_>,
    output: OutputRows<'_>,
    zeros: &mut [f32],
) {
    let geometry = call.geometry();
    let masked = (0..geometry.q_len)
        .take_while(|&row| geometry.visible_keys(row) == 0)
        .count();
    // SAFETY: the caller's.
    unsafe { write_zeros(output, 0..masked, zeros, |head| call.sink(head)) };
}

/// Writes O = 0 and the log-sum-exp of each head's sink, −∞ where it has none, for some rows of all heads.
///
/// # Safety
/// No other thread writes to these rows at the same time.
pub(super) unsafe fn write_zeros(
    output: OutputRows<'_>,
    rows: Range<usize>,
    zeros: &mut [f32],
    sink: impl Fn(usize) -> f32,
) {
    let [batches, heads, ..] = output.shape();
    zeros.fill(0.0);
    for batch in 0..batches {
        for head in 0..heads {
            for row in rows.clone() {
                // SAFETY: the caller's.
                unsafe { output.write((batch, head, row), zeros, sink(head)) };
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
        let sink_log2 = block.sink_log2;
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
        let mut accumulator = Accumulator::new(head_dim, sums.reborrow(), sink_log2);
        walk.attend(&mut accumulator);
        let beyond = walk.write(&accumulator, !0);
        if beyond != 0 {
            walk.weight_scale = SMALL_WEIGHT;
            let mut accumulator = Accumulator::new(head_dim, sums, sink_log2);
            walk.attend(&mut accumulator);
            walk.write(&accumulator, beyond);
        }
    }
}

/// What weights are multiplied by where sums of values leave f32's range before they are divided: 2³⁰ keys of the largest value stay
/// within it.
const SMALL_WEIGHT: f32 = 1.0 / (1u64 << 32) as f32;
