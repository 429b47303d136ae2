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

use super::call::Call;
use super::rows::OutputRows;
use super::scratch::Scratch;
use super::simd::Loadable;
use super::workers::{for_each_task, take};
use crate::geometry::Geometry;
use crate::problem::{MAX_HEAD_DIM, Problem};
use crate::tensor::Slice;
use crate::varlen::RowIndex;
use range::{KvRows, Partial, ROWS, RangeOfKeys, TILE, WEIGHT_LOG2};

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

/// A call whose queries are few, and where its results go.
pub(super) struct FewQueries<'a> {
    call: Call<'a>,
    geometry: Geometry,
    cut: Cut,
    output: OutputRows<'a>,
}

/// Some units of a call, whose ranges are worked on together.
struct Segment<'a, 'b> {
    call: &'b FewQueries<'a>,
    units: Range<usize>,
    /// Partial results of one range.
    partial_len: usize,
}

impl Segment<'_, '_> {
    /// Elements of all partial results.
    fn len(&self) -> usize {
        self.units.len() * self.call.cut.ranges * self.partial_len
    }
}

/// Dense attention of all heads of some calls; `ended` is called after each task. There must be room for the partial results of one
/// unit of each call.
pub(super) fn few_queries(
    calls: &[FewQueries<'_>],
    (scratches, partials): (&mut [Scratch<'_>], &mut [f32]),
    ended: impl Fn() + Sync,
) {
    let mut rest = calls
        .iter()
        .map(|call| (call, 0..call.cut.units))
        .peekable();
    loop {
        let segments = segments(&mut rest, partials.len());
        if segments.is_empty() {
            break;
        }
        let mut room = &mut *partials;
        let tasks = segments.iter().flat_map(|segment| {
            let units = segment.units.clone();
            // The heads of a range one after the other: where they lie interleaved in memory, they share its pages.
            (0..segment.call.cut.ranges)
                .flat_map(move |range| units.clone().map(move |unit| (segment.call, unit, range)))
                .zip(take(&mut room, segment.len()).chunks_exact_mut(segment.partial_len))
        });
        for_each_task(
            scratches,
            tasks,
            |scratch, ((call, unit, range), partial)| {
                call.attend(scratch, &call.unit(unit), range, partial);
                ended();
            },
        );
        let mut results = &*partials;
        let merges = segments.iter().flat_map(|segment| {
            let of_segment;
            (of_segment, results) = results.split_at(segment.len());
            let units = segment.units.clone();
            units
                .enumerate()
                .map(move |(at, unit)| (segment, unit, at, of_segment))
        });
        for_each_task(
            scratches,
            merges,
            |scratch, (segment, unit, at, results)| {
                let ranges = results
                    .chunks_exact(segment.partial_len)
                    .skip(at)
                    .step_by(segment.units.len());
                segment
                    .call
                    .merge(&segment.call.unit(unit), ranges, scratch.row);
            },
        );
    }
}

/// As many units of the calls that are left as have room for their partial results.
fn segments<'a, 'b>(
    rest: &mut std::iter::Peekable<impl Iterator<Item = (&'b FewQueries<'a>, Range<usize>)>>,
    mut room: usize,
) -> Vec<Segment<'a, 'b>> {
    let mut segments = Vec::new();
    while let Some((call, units)) = rest.peek_mut() {
        let partial_len = call.cut.partial_len();
        let fitting = room / (call.cut.ranges * partial_len);
        let end = units.end.min(units.start + fitting);
        let segment = Segment {
            call,
            units: std::mem::replace(&mut units.start, end)..end,
            partial_len,
        };
        let is_whole = end == units.end;
        if segment.units.is_empty() {
            break;
        }
        room -= segment.len();
        segments.push(segment);
        if !is_whole {
            break;
        }
        rest.next();
    }
    segments
}

impl<'a> FewQueries<'a> {
    pub(super) fn new(call: Call<'a>, output: OutputRows<'a>) -> Self {
        FewQueries {
            call,
            geometry: call.geometry(),
            cut: Cut::new(&call.problem),
            output,
        }
    }

    /// Ranges that the keys of a head are cut into.
    pub(super) fn ranges(&self) -> usize {
        self.cut.ranges
    }

    fn unit(&self, index: usize) -> Unit {
        self.cut.unit(index, self.call.problem.kv_heads)
    }

    /// A query head of a unit, counted over all sequences.
    fn head(&self, unit: &Unit, q_head: usize) -> usize {
        unit.batch * self.call.problem.q_heads + q_head
    }

    /// One task.
    fn attend(&self, scratch: &mut Scratch<'_>, unit: &Unit, range: usize, partial: &mut [f32]) {
        let head = self.head(unit, unit.kv_head * self.cut.group_size);
        let (k, v) = (self.call.keys(head), self.call.values(head));
        let rows = (k.index(), v.index());
        match (k.data(), v.data()) {
            (Slice::F32(k), Slice::F32(v)) => {
                self.attend_to(scratch, unit, range, partial, (k, v), rows);
            }
            (Slice::F16(k), Slice::F16(v)) => {
                self.attend_to(scratch, unit, range, partial, (k, v), rows);
            }
            (Slice::Bf16(k), Slice::Bf16(v)) => {
                self.attend_to(scratch, unit, range, partial, (k, v), rows);
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
        (k, v): (&[T], &[T]),
        (k_rows, v_rows): (RowIndex<'_>, RowIndex<'_>),
    ) {
        let Problem {
            head_dim, k_len, ..
        } = self.call.problem;
        let scale_log2 = self.call.problem.scale_log2();
        let rows = unit.rows.len();
        let (mut visible, mut first) = ([0; ROWS], [0; ROWS]);
        let mut sinks = [f32::NEG_INFINITY; ROWS];
        let queries: &mut [f32] = bytemuck::cast_slice_mut(scratch.queries);
        let stride = range::padded(head_dim);
        for (row, query) in queries.chunks_exact_mut(stride).take(rows).enumerate() {
            let (head, token) = self.cut.place(unit, unit.rows.start + row);
            visible[row] = self.geometry.visible_keys(token);
            first[row] = self.geometry.first_visible(token);
            if range == 0 {
                sinks[row] = self.call.sink_log2(self.head(unit, head));
            }
            self.call
                .queries(self.head(unit, head))
                .read(token, scratch.row);
            query.fill(0.0);
            for (scaled, &x) in query.iter_mut().zip(scratch.row.iter()) {
                *scaled = (f64::from(x) * scale_log2) as f32;
            }
        }
        let weights: &mut [f32] = bytemuck::cast_slice_mut(scratch.output);
        scratch.instruction_set.run(RangeOfKeys {
            head_dim,
            keys: KvRows {
                data: k,
                index: k_rows,
            },
            values: KvRows {
                data: v,
                index: v_rows,
            },
            tokens: range * RANGE..((range + 1) * RANGE).min(k_len),
            visible: &visible[..rows],
            first: &first[..rows],
            softcap: self.call.softcap(),
            queries: &queries[..rows * stride],
            weights: &mut weights[..rows * TILE],
            partial: Partial::new(partial, head_dim, sinks[..rows].iter().copied()),
        });
    }

    /// O and log-sum-exp of a unit's rows from the partial results of its ranges.
    fn merge<'p>(
        &self,
        unit: &Unit,
        ranges: impl Iterator<Item = &'p [f32]> + Clone,
        row: &mut [f32],
    ) {
        let (rows, head_dim) = (unit.rows.len(), self.call.problem.head_dim);
        let mut sums = [0f64; MAX_HEAD_DIM];
        let sums = &mut sums[..head_dim];
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
                let of_range = Partial::row(partial, rows, place, head_dim);
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
            unsafe {
                self.output
                    .write((unit.batch, head, token), row, lse as f32)
            };
        }
    }
}
