//! Sampling with the instructions that every GPU has: `mma.sync` and `cp.async`.
//!
//! ```text
//! a CTA: a panel of 128 sampled rows, 32 a warp, against the keys of one split that the last of them sees
//!
//! the rows as fragments in registers, with the sign of softmax_scale
//! total[row] = nothing
//! for the keys of the sinks, in split 0, in tiles of 64; then for each key block, in two tiles of 64:      (a visit each)
//!     part[row] = nothing
//!     for each tile of the visit:
//!         scores = rows · keysᵀ, −∞ where not visible or not of the visit
//!         part[row] ⊕= (maximum, Σ 2^((score − maximum) · scale)) of the lane's own columns
//!     combine part[row] over the four lanes of a row, write its statistic if they are wanted
//!     total[row] ⊕= part[row]
//! row_lse[row] = (maximum, log2 sum) of total[row], if it is wanted
//! ```
//!
//! Scores never reach memory. Sinks are a visit of their own, so key blocks leave them out; their few keys are multiplied
//! twice. A warp skips tiles that none of its rows sees, but takes part in every copy and barrier.
//!
//! # Synchronisation
//! That of [`Panel`]: one barrier a tile. Statistics are combined inside a warp by shuffles. Each output has one writer.
//!
//! # Shape contract
//! [`launch_shape`]; head_dim as the entry says.

use super::{RowMass, RowOutput, SamplingParams, sinks};
use crate::abi::TileSlice;
use crate::gpu;
use crate::launch::{LaunchShape, PANEL, PANEL_THREADS, TILE, WARP_ROWS};
use crate::params::BLOCK;
use crate::tile::panel::{self, Panel, Scores};
use crate::tile::{Bf16, F16, Float16, WARP, exponent, scale};

/// The launch of a sampling kernel.
pub const fn launch_shape(slice: &TileSlice, head_dim: u32) -> LaunchShape {
    LaunchShape::linear(
        slice.panel_ctas(PANEL),
        PANEL_THREADS,
        panel::shared_bytes(head_dim),
    )
}

/// Maximum of the scores and sum of 2^((score − maximum) · scale) over some keys of a row; (−∞, 0) over none.
#[derive(Clone, Copy)]
struct Stats {
    maximum: f32,
    sum: f32,
}

impl Stats {
    const EMPTY: Self = Stats {
        maximum: f32::NEG_INFINITY,
        sum: 0.0,
    };

    /// The sum relative to a maximum that is not below its own.
    #[inline(always)]
    fn sum_relative_to(self, maximum: f32, scale: f32) -> f32 {
        let change = exponent::change(self.maximum, maximum, scale, 0.0);
        self.sum * gpu::ex2_approx_ftz_f32(change)
    }

    /// Both over the keys of `self` and of `other`.
    #[inline(always)]
    fn merge(self, other: Self, scale: f32) -> Self {
        let maximum = gpu::max_f32(self.maximum, other.maximum);
        let sum = self.sum_relative_to(maximum, scale) + other.sum_relative_to(maximum, scale);
        Stats { maximum, sum }
    }

    /// Over the keys of the four lanes that share a row.
    #[inline(always)]
    fn across_row(self, scale: f32) -> Self {
        let mut maximum = self.maximum;
        maximum = gpu::max_f32(maximum, gpu::shfl_sync_bfly(WARP, maximum, 1));
        maximum = gpu::max_f32(maximum, gpu::shfl_sync_bfly(WARP, maximum, 2));
        let mut sum = self.sum_relative_to(maximum, scale);
        sum += gpu::shfl_sync_bfly(WARP, sum, 1);
        sum += gpu::shfl_sync_bfly(WARP, sum, 2);
        Stats { maximum, sum }
    }

    #[inline(always)]
    fn mass(self) -> RowMass {
        RowMass {
            reference: self.maximum,
            sum: self.sum,
        }
    }
}

/// The rows of one lane: by half of 16 rows, and pair of accumulator elements.
type LaneRows<T> = [[T; 2]; 2];

/// The keys of one tile, and what it belongs to.
struct Visit {
    /// First key of the tile.
    start: u32,
    /// The visit holds the keys `from..to`.
    from: u32,
    to: u32,
    /// Whether this is its last tile.
    ends: bool,
}

impl Visit {
    /// Of the sinks' steps, and those of the key blocks from `first_key` on.
    #[inline(always)]
    fn of_step(step: u32, sink_steps: u32, sinks: u32, first_key: u32) -> Self {
        if step < sink_steps {
            Visit {
                start: step * TILE,
                from: 0,
                to: sinks,
                ends: step + 1 == sink_steps,
            }
        } else {
            Visit {
                start: first_key + (step - sink_steps) * TILE,
                from: sinks,
                to: u32::MAX,
                ends: (step - sink_steps) % 2 == 1,
            }
        }
    }
}

#[inline(always)]
fn sample<T: Float16, const CHUNKS: usize>(p: &SamplingParams) {
    let Some(rows) = p.slice.panel(gpu::ctaid_x(), PANEL) else {
        return;
    };
    let sequence = &rows.sequence;
    let query = |rank: u32| {
        let row = sequence.q_start + rows.query(rank);
        p.q.token::<u16>(sequence.batch, rows.q_head, row)
    };
    let panel = Panel::<T, CHUNKS>::load(gpu::dynamic_shared(), query).times_sign_of(p.scale_log2);
    let scale = scale::magnitude(p.scale_log2);

    let last_rank = rows.last_rank;
    let warp_rank = panel::warp() * WARP_ROWS;
    let has_rows = warp_rank <= last_rank;
    let warp_first_visible = rows.visible(warp_rank);
    let warp_last_visible = rows.visible(warp_rank + WARP_ROWS - 1);
    let rank = |half: usize, pair: usize| warp_rank + panel::row_in_warp(half as u32, pair as u32);
    let lane_visible: LaneRows<u32> = of_rows(|half, pair| rows.visible(rank(half, pair)));
    let mut outputs: LaneRows<RowOutput> =
        of_rows(|half, pair| RowOutput::new(rows.row(rank(half, pair).min(last_rank))));

    let end = rows.visible(last_rank);
    let sinks = sinks(p);
    let sink_steps = if rows.split == 0 {
        sinks.min(end).div_ceil(TILE)
    } else {
        0
    };
    let first_key = rows.first_block * BLOCK;
    let steps = sink_steps + (rows.end_block - rows.first_block) * (BLOCK / TILE);
    let visit_of = |step: u32| Visit::of_step(step, sink_steps, sinks, first_key);
    let with_stats = !p.stats.is_null();
    let writes = gpu::laneid().is_multiple_of(4);

    let mut total: LaneRows<Stats> = [[Stats::EMPTY; 2]; 2];
    let mut part: LaneRows<Stats> = [[Stats::EMPTY; 2]; 2];
    panel.stream(
        steps,
        |step, row| {
            let key = visit_of(step).start + row;
            // Rows after the last key repeat it: no row sees them.
            p.k.token(sequence, rows.kv_head, key.min(sequence.k_len - 1))
        },
        |_, _| (),
        |step| {
            let visit = visit_of(step);
            // A visit's last tile is wanted even where it is out of sight, to end the visit.
            let ends_seen = visit.ends
                && (step < sink_steps || visit.start / BLOCK * BLOCK < warp_last_visible);
            has_rows && (visit.start < warp_last_visible || ends_seen)
        },
        |step, _, mut scores| {
            let visit = visit_of(step);
            let all_count =
                visit.start >= visit.from && visit.start + TILE <= visit.to.min(warp_first_visible);
            if !all_count {
                mask(&mut scores, &visit, &lane_visible);
            }
            accumulate(&mut part, &mut scores, scale);
            if visit.ends {
                for half in 0..2 {
                    for pair in 0..2 {
                        let stats = part[half][pair].across_row(scale);
                        if with_stats && writes && rank(half, pair) <= last_rank {
                            let output = &mut outputs[half][pair];
                            if step < sink_steps {
                                output.write_sinks(p, stats.mass());
                            } else {
                                let block = visit.start / BLOCK;
                                let written = rows.first_block..block;
                                let with_sinks = sink_steps > 0;
                                output.write_block(p, block, stats.mass(), written, with_sinks);
                            }
                        }
                        total[half][pair] = total[half][pair].merge(stats, scale);
                        part[half][pair] = Stats::EMPTY;
                    }
                }
            }
        },
    );
    for (half, total) in total.iter().enumerate() {
        for (pair, total) in total.iter().enumerate() {
            if writes && rank(half, pair) <= last_rank {
                outputs[half][pair].finish(p, rows.split, total.mass());
            }
        }
    }
}

/// A value for each of a lane's rows.
#[inline(always)]
fn of_rows<T>(value: impl Fn(usize, usize) -> T) -> LaneRows<T> {
    [0, 1].map(|half| [0, 1].map(|pair| value(half, pair)))
}

/// −∞ where the key is not of the visit or the row does not see it, whatever the score was.
#[inline(always)]
fn mask(scores: &mut Scores, visit: &Visit, visible: &LaneRows<u32>) {
    // Columns count from the lane's first: a constant against a register keeps nothing else alive.
    let origin = visit.start as i32 + panel::first_column() as i32;
    let first = visit.from as i32 - origin;
    for (half, rows) in scores.elements.iter_mut().enumerate() {
        for (tile, columns) in rows.iter_mut().enumerate() {
            for (i, score) in columns.iter_mut().enumerate() {
                let end = visible[half][i / 2].min(visit.to) as i32 - origin;
                let column = (8 * tile + i % 2) as i32;
                if column >= end || column < first {
                    *score = f32::NEG_INFINITY;
                }
            }
        }
    }
}

/// Adds the lane's scores of its rows, which are left shifted. The whole warp calls it.
#[inline(always)]
fn accumulate(parts: &mut LaneRows<Stats>, scores: &mut Scores, scale: f32) {
    let mut offset = [[0.0; 2]; 2];
    let mut change = [[0.0; 2]; 2];
    let mut maxima = [[0.0; 2]; 2];
    let mut far = false;
    for half in 0..2 {
        for pair in 0..2 {
            let old = parts[half][pair].maximum;
            let mut maximum = old;
            for columns in &scores.elements[half] {
                let of_two = gpu::max_f32(columns[2 * pair], columns[2 * pair + 1]);
                maximum = gpu::max_f32(maximum, of_two);
            }
            maxima[half][pair] = maximum;
            offset[half][pair] = exponent::near_offset(maximum, scale, 0.0);
            // −∞ where nothing was seen before.
            change[half][pair] = offset[half][pair] - exponent::near_offset(old, scale, 0.0);
            far |= exponent::is_far(offset[half][pair]);
        }
    }
    if gpu::vote_sync_any(WARP, far) {
        for half in 0..2 {
            for pair in 0..2 {
                let maximum = maxima[half][pair];
                let near_offset = offset[half][pair];
                let shift = exponent::shift(maximum, near_offset);
                offset[half][pair] = exponent::offset(near_offset, 0.0);
                if exponent::is_far(near_offset) {
                    let old = parts[half][pair].maximum;
                    change[half][pair] = exponent::change(old, maximum, scale, 0.0);
                }
                for columns in &mut scores.elements[half] {
                    columns[2 * pair] -= shift;
                    columns[2 * pair + 1] -= shift;
                }
            }
        }
    }
    for half in 0..2 {
        for pair in 0..2 {
            // Of the tile alone: thousands of small weights, added one by one to a large sum, would lose bits.
            let mut sum = 0.0;
            for columns in &scores.elements[half] {
                let weight = |score| {
                    gpu::ex2_approx_ftz_f32(gpu::fma_rn_f32(score, scale, offset[half][pair]))
                };
                sum += weight(columns[2 * pair]);
                sum += weight(columns[2 * pair + 1]);
            }
            let kept = gpu::ex2_approx_ftz_f32(change[half][pair]);
            let part = &mut parts[half][pair];
            *part = Stats {
                maximum: maxima[half][pair],
                sum: gpu::fma_rn_f32(part.sum, kept, sum),
            };
        }
    }
}

crate::entry! {
    /// Sampling of `bf16`, head_dim 64.
    BF16_D64, sampling_bf16_d64 = sample::<Bf16, 8>, SamplingParams
}
crate::entry! {
    /// Sampling of `bf16`, head_dim 128.
    BF16_D128, sampling_bf16_d128 = sample::<Bf16, 16>, SamplingParams
}
crate::entry! {
    /// Sampling of `f16`, head_dim 64.
    F16_D64, sampling_f16_d64 = sample::<F16, 8>, SamplingParams
}
crate::entry! {
    /// Sampling of `f16`, head_dim 128.
    F16_D128, sampling_f16_d128 = sample::<F16, 16>, SamplingParams
}
