//! The true coverage of every row: its dense normaliser, compared with that of the keys it kept.

use super::call::Call;
use super::rows::HeadRows;
use super::scratch::Scratch;
use super::simd::{Kernel, Lanes, PANEL, Simd};
use super::tile::{self, KEY_GROUP, Softcap, Stats};
use super::workers::for_each_task;
use crate::geometry::{BLOCK, Geometry};
use crate::report::Coverage;

/// Coverage of all heads, given the log-sum-exp [batch, q_heads, q_len] of what was kept.
pub(super) fn true_coverage(
    call: Call<'_>,
    lse: &[f32],
    scratches: &mut [Scratch<'_>],
) -> Vec<Coverage> {
    let (problem, geometry) = (&call.problem, call.geometry());
    let q_len = problem.q_len;
    let mut shares = vec![0f64; lse.len()];
    let tasks = shares
        .chunks_mut(q_len)
        .zip(lse.chunks(q_len))
        .enumerate()
        .flat_map(|(head, (shares, lse))| {
            let panels = shares.chunks_mut(BLOCK).zip(lse.chunks(BLOCK)).enumerate();
            panels.map(move |(chunk, (shares, lse))| (head, chunk * BLOCK, shares, lse))
        });
    for_each_task(
        scratches,
        tasks,
        |scratch, (head, first_row, shares, kept_lse)| {
            scratch.instruction_set.run(DenseLse {
                geometry,
                head_dim: problem.head_dim,
                scale_log2: problem.scale_log2(),
                softcap: call.softcap(),
                sink_log2: call.sink_log2(head),
                q: call.queries(head),
                k: call.keys(head),
                first_row,
                kept_lse,
                shares,
                scratch,
            });
        },
    );
    shares
        .chunks_mut(q_len)
        .enumerate()
        .map(|(head, shares)| {
            Coverage::of_rows(
                head / problem.q_heads,
                head % problem.q_heads,
                &mut shares[geometry.seeing_rows()],
            )
        })
        .collect()
}

/// exp(kept - dense), at most 1; NaN where that is not known to [`SHARE_PRECISION`].
fn known_share(kept: f32, dense: f64) -> f64 {
    let kept = f64::from(kept);
    // Half a unit in the last place of an f32.
    let rounding = kept.abs() * f64::from(f32::EPSILON) / 2.0;
    let nothing_kept = kept == f64::NEG_INFINITY && dense.is_finite();
    if nothing_kept || rounding <= SHARE_PRECISION {
        // The roundings of a row that keeps everything may bring it a little above 1, and `min` would lose NaN.
        let share = (kept - dense).exp();
        if share > 1.0 { 1.0 } else { share }
    } else {
        f64::NAN
    }
}

/// How exactly a share is known, relative: the given log-sum-exps are f32, whose roundings alone decide where logits are large.
/// They stay below this up to 16384.
const SHARE_PRECISION: f64 = 1.0 / 1024.0;

/// Rows `first_row..first_row + shares.len()` of one head, at most [`BLOCK`].
struct DenseLse<'a, 's> {
    geometry: Geometry,
    head_dim: usize,
    scale_log2: f64,
    softcap: Option<Softcap>,
    sink_log2: f32,
    q: HeadRows<'a>,
    k: HeadRows<'a>,
    first_row: usize,
    kept_lse: &'a [f32],
    shares: &'a mut [f64],
    scratch: &'a mut Scratch<'s>,
}

impl Kernel for DenseLse<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let geometry = self.geometry;
        let head_dim = self.head_dim;
        let scratch = self.scratch;
        let rows = self.first_row..self.first_row + self.shares.len();
        let panels = rows.len().div_ceil(PANEL);
        let queries = &mut scratch.queries[..panels * head_dim];
        for (panel, lanes) in queries.chunks_exact_mut(head_dim).enumerate() {
            let first = rows.start + panel * PANEL;
            let tokens = first..(first + PANEL).min(rows.end);
            self.q.queries(tokens, self.scale_log2, scratch.row, lanes);
        }
        let mut stats = [Stats::of_sink(self.sink_log2); BLOCK / PANEL];
        let end = geometry.visible_keys(rows.end - 1);
        let start = geometry.first_visible(rows.start);
        for block in start / BLOCK..end.div_ceil(BLOCK) {
            let tokens = geometry.keys_of_block(block);
            let k = self.k.tile(tokens.clone(), scratch.keys, head_dim);
            let scores = &mut scratch.scores[..tokens.len().next_multiple_of(KEY_GROUP)];
            for (panel, stats) in stats[..panels].iter_mut().enumerate() {
                let queries = &queries[panel * head_dim..(panel + 1) * head_dim];
                tile::scores(simd, queries, k, scores);
                let scores = &mut scores[..tokens.len()];
                if let Some(softcap) = self.softcap {
                    softcap.apply(simd, scores);
                }
                let row = |lane: usize| (rows.start + panel * PANEL + lane).min(rows.end - 1);
                let in_tile = |key: usize| key.saturating_sub(tokens.start).min(BLOCK) as f32;
                let visible = std::array::from_fn(|lane| in_tile(geometry.visible_keys(row(lane))));
                tile::mask(simd, scores, &Lanes(visible), 0);
                if geometry.window_left.is_some() {
                    let first =
                        std::array::from_fn(|lane| in_tile(geometry.first_visible(row(lane))));
                    tile::mask_before(simd, scores, &Lanes(first));
                }
                tile::online_softmax::<S, false>(simd, scores, stats);
            }
        }
        let dense = stats.iter().flat_map(tile::lse);
        for ((share, &kept), dense) in self.shares.iter_mut().zip(self.kept_lse).zip(dense) {
            *share = known_share(kept, dense);
        }
    }
}
