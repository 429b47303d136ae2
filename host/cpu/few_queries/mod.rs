//! Dense attention of few queries to many keys: generation, speculative checks, a question after a cached document.
//!
//! Such a call does little with each key and value, and reading them from memory is most of what it takes. So every query of a
//! key/value head is worked on while a key is in registers, and a head's keys are cut into ranges, which keep all threads busy however
//! few heads there are.
//!
//! ```text
//! for each (sequence, key/value head, up to 64 of the rows that read it), each range of 2048 keys:    one task
//!     for each 128 keys:
//!         scores -> online softmax -> O of the range += weights · V          `range`
//! for each row:                                                              after all ranges of its head
//!     maximum = the largest of its ranges
//!     O = Σ O of a range · 2^(its maximum - maximum) / Σ sum of a range · 2^(its maximum - maximum)        ascending, in f64
//! ```
//!
//! Ranges begin at multiples of 2048 keys, and a row's arithmetic does not depend on the rows beside it. So a row has the same bits
//! whatever the number of threads and sequences, and whichever few queries it is computed with. They are not those of `sparse_flash`,
//! which sums up in another order. What rows without a finite softmax become is said there.

mod range;

use std::ops::Range;

use super::rows::{HeadRows, OutputRows};
use super::scratch::Scratch;
use super::simd::Loadable;
use super::workers::for_each_task;
use crate::geometry::Geometry;
use crate::problem::{MAX_HEAD_DIM, Problem};
use crate::tensor::{Inputs, Slice, TensorView};
use range::{Partial, ROWS, RangeOfKeys, Strided, TILE, WEIGHT_LOG2};

/// The most queries of a head: `sparse_flash` computes 32 rows in the time of one, and is as fast from about here on.
pub(super) const MAX_QUERIES: usize = 16;

/// Keys of a task. The bits depend on it.
const RANGE: usize = 2048;

/// Partial results of so many heads at a time fit in as many bytes, if there is more than one.
const WAVE_BYTES: usize = 4 << 20;

/// How a problem is cut into tasks.
#[derive(Clone, Copy)]
pub(super) struct Cut {
    group_size: usize,
    /// Rows of all query heads of a key/value head, packed query by query.
    packed_rows: usize,
    /// Units of a key/value head; each reads all of its keys for some of its rows.
    units_per_head: usize,
    units: usize,
    ranges: usize,
    head_dim: usize,
}

/// Some rows of a key/value head.
struct Unit {
    batch: usize,
    kv_head: usize,
    /// Packed rows.
    rows: Range<usize>,
}

impl Cut {
    /// Of a problem's first queries where there are more than [`MAX_QUERIES`], so that the workspace grows with the number of queries.
    pub(super) fn new(problem: &Problem) -> Self {
        let packed_rows = problem
            .group_size()
            .saturating_mul(problem.q_len.min(MAX_QUERIES));
        let units_per_head = packed_rows.div_ceil(ROWS);
        Cut {
            group_size: problem.group_size(),
            packed_rows,
            units_per_head,
            units: (problem.batch * problem.kv_heads).saturating_mul(units_per_head),
            ranges: problem.k_len.div_ceil(RANGE),
            head_dim: problem.head_dim,
        }
    }

    /// Whether this is how to attend to everything.
    pub(super) fn suits(problem: &Problem) -> bool {
        problem.q_len <= MAX_QUERIES
    }

    /// Ranges that the keys of a head are cut into.
    pub(super) fn ranges(&self) -> usize {
        self.ranges
    }

    pub(super) fn tasks(&self) -> usize {
        self.units * self.ranges
    }

    /// Elements of the partial results of one range.
    fn partial_len(&self) -> usize {
        Partial::len(self.packed_rows.min(ROWS), self.head_dim)
    }

    /// Elements of the partial results of as many units as are worked on together. Never fewer for more keys or queries.
    pub(super) fn partials_len(&self) -> usize {
        let unit = self.ranges.saturating_mul(self.partial_len());
        let wave = unit.max(WAVE_BYTES / size_of::<f32>());
        wave.min(unit.saturating_mul(self.units))
    }

    fn unit(&self, index: usize, kv_heads: usize) -> Unit {
        let (head, part) = (index / self.units_per_head, index % self.units_per_head);
        Unit {
            batch: head / kv_heads,
            kv_head: head % kv_heads,
            rows: part * ROWS..((part + 1) * ROWS).min(self.packed_rows),
        }
    }

    /// Query head and query of a packed row.
    fn place(&self, unit: &Unit, row: usize) -> (usize, usize) {
        let head = unit.kv_head * self.group_size + row % self.group_size;
        (head, row / self.group_size)
    }
}

/// Dense attention of all heads; `ended` is called after each task.
pub(super) fn few_queries(
    problem: &Problem,
    inputs: &Inputs<'_>,
    output: &OutputRows<'_>,
    (scratches, partials): (&mut [Scratch<'_>], &mut [f32]),
    ended: impl Fn() + Sync,
) {
    let cut = Cut::new(problem);
    let call = Call {
        problem,
        geometry: Geometry::new(problem),
        cut,
        inputs,
    };
    let unit_len = cut.ranges * cut.partial_len();
    let wave = partials.len() / unit_len;
    for first in (0..cut.units).step_by(wave) {
        let units = first..(first + wave).min(cut.units);
        // The heads of a range one after the other: where they lie interleaved in memory, they share its pages.
        let tasks = (0..cut.ranges)
            .flat_map(|range| units.clone().map(move |unit| (unit, range)))
            .zip(partials.chunks_exact_mut(cut.partial_len()));
        for_each_task(scratches, tasks, |scratch, ((unit, range), partial)| {
            let unit = cut.unit(unit, problem.kv_heads);
            call.attend(scratch, &unit, range, partial);
            ended();
        });
        let partials = &*partials;
        for_each_task(scratches, units.clone(), |scratch, unit| {
            let ranges = partials
                .chunks_exact(cut.partial_len())
                .take(units.len() * cut.ranges)
                .skip(unit - units.start)
                .step_by(units.len());
            let unit = cut.unit(unit, problem.kv_heads);
            call.merge(&unit, ranges, scratch.row, output);
        });
    }
}

struct Call<'a> {
    problem: &'a Problem,
    geometry: Geometry,
    cut: Cut,
    inputs: &'a Inputs<'a>,
}

impl Call<'_> {
    /// One task.
    fn attend(&self, scratch: &mut Scratch<'_>, unit: &Unit, range: usize, partial: &mut [f32]) {
        match (self.inputs.k.data(), self.inputs.v.data()) {
            (Slice::F32(k), Slice::F32(v)) => self.attend_to(scratch, unit, range, partial, k, v),
            (Slice::F16(k), Slice::F16(v)) => self.attend_to(scratch, unit, range, partial, k, v),
            (Slice::Bf16(k), Slice::Bf16(v)) => {
                self.attend_to(scratch, unit, range, partial, k, v);
            }
            _ => unreachable!("the plan has checked that k and v have the problem's element type"),
        }
    }

    fn attend_to<T: Loadable>(
        &self,
        scratch: &mut Scratch<'_>,
        unit: &Unit,
        range: usize,
        partial: &mut [f32],
        k: &[T],
        v: &[T],
    ) {
        let Problem { head_dim, .. } = *self.problem;
        let rows = unit.rows.len();
        let mut visible = [0; ROWS];
        let queries: &mut [f32] = bytemuck::cast_slice_mut(scratch.queries);
        let stride = range::padded(head_dim);
        for (row, query) in queries.chunks_exact_mut(stride).take(rows).enumerate() {
            let (head, token) = self.cut.place(unit, unit.rows.start + row);
            visible[row] = self.geometry.visible_keys(token);
            HeadRows::new(&self.inputs.q, unit.batch, head).read(token, scratch.row);
            query.fill(0.0);
            for (scaled, &x) in query.iter_mut().zip(scratch.row.iter()) {
                *scaled = (f64::from(x) * self.problem.scale_log2()) as f32;
            }
        }
        let of_head = |data, view: &TensorView<'_>| strided(data, view, unit.batch, unit.kv_head);
        let weights: &mut [f32] = bytemuck::cast_slice_mut(scratch.output);
        scratch.instruction_set.run(RangeOfKeys {
            head_dim,
            keys: of_head(k, &self.inputs.k),
            values: of_head(v, &self.inputs.v),
            tokens: range * RANGE..((range + 1) * RANGE).min(self.problem.k_len),
            visible: &visible[..rows],
            queries: &queries[..rows * stride],
            weights: &mut weights[..rows * TILE],
            partial: Partial::new(partial, rows, head_dim),
        });
    }

    /// O and log-sum-exp of a unit's rows from the partial results of its ranges.
    fn merge<'p>(
        &self,
        unit: &Unit,
        ranges: impl Iterator<Item = &'p [f32]> + Clone,
        row: &mut [f32],
        output: &OutputRows<'_>,
    ) {
        let rows = unit.rows.len();
        let mut sums = [0f64; MAX_HEAD_DIM];
        let sums = &mut sums[..self.problem.head_dim];
        for place in 0..rows {
            let (head, token) = self.cut.place(unit, unit.rows.start + place);
            let max = ranges
                .clone()
                .map(|partial| Partial::max(partial, place))
                .fold(f32::NEG_INFINITY, f32::max);
            let reference = f64::from(range::finite_or_zero(max));
            let mut sum = 0.0;
            sums.fill(0.0);
            for partial in ranges.clone() {
                let factor = (f64::from(Partial::max(partial, place)) - reference).exp2();
                sum += factor * f64::from(Partial::sum(partial, rows, place));
                let of_range = Partial::row(partial, rows, place, self.problem.head_dim);
                for (sum, &x) in sums.iter_mut().zip(of_range) {
                    *sum += factor * f64::from(x);
                }
            }
            if max.is_finite() && sum.is_finite() {
                for (x, total) in row.iter_mut().zip(&*sums) {
                    let mean = total / sum;
                    // A mean of finite values is no larger than they are, whatever rounding makes of it.
                    let most = f64::from(f32::MAX);
                    *x = if mean.is_finite() {
                        mean.clamp(-most, most)
                    } else {
                        mean
                    } as f32;
                }
            } else {
                let sees_keys = self.geometry.visible_keys(token) > 0;
                row.fill(if sees_keys { f32::NAN } else { 0.0 });
            }
            let lse = (f64::from(max) + sum.log2() - WEIGHT_LOG2) * std::f64::consts::LN_2;
            // SAFETY: each row is in one unit, and each unit in one task.
            unsafe { output.write((unit.batch, head, token), row, lse as f32) };
        }
    }
}

fn strided<'a, T>(
    data: &'a [T],
    view: &TensorView<'_>,
    batch: usize,
    head: usize,
) -> Strided<'a, T> {
    let layout = view.layout();
    Strided {
        data: &data[layout.row(batch, head, 0)..],
        stride: layout.strides[2],
    }
}
