//! Some rows of one key/value head against one range of its keys.
//!
//! A register holds elements of one key or value, converted from the type that it has in memory; whole tiles are converted nowhere.
//! Scores and weights are per row, with keys in the lanes.
//!
//! Weights are 2^(score - maximum) · 2⁻¹²: sums over the 2048 keys of a range then stay within f32's range whatever the values.

use std::ops::Range;

use crate::cpu::simd::{Kernel, Lanes, Loadable, Simd};
use crate::cpu::tile::Softcap;
use crate::varlen::RowIndex;

/// The most rows of a task: their queries and partial results stay in the caches while keys and values stream past.
pub(super) const ROWS: usize = 64;

/// Keys whose scores are worked out before their values are read.
pub(super) const TILE: usize = 128;

/// Log2 of the weight of a row's maximum.
pub(super) const WEIGHT_LOG2: f64 = -12.0;

/// Keys of a sum that is added up by itself, as in `tile`.
const KEYS_PER_SUM: usize = 32;

/// The widest register. Rows of queries and partial results are padded to it.
const WIDEST: usize = 16;

/// Elements of a padded row.
pub(super) fn padded(head_dim: usize) -> usize {
    head_dim.next_multiple_of(WIDEST)
}

/// x, or 0 where x is -∞: a reference point for differences that must not become ∞ - ∞.
pub(super) fn finite_or_zero(x: f32) -> f32 {
    if x == f32::NEG_INFINITY { 0.0 } else { x }
}

/// The rows of one head.
#[derive(Clone, Copy)]
pub(super) struct KvRows<'a, T> {
    pub(super) data: &'a [T],
    pub(super) index: RowIndex<'a>,
}

impl<'a, T> KvRows<'a, T> {
    #[inline(always)]
    fn row(self, row: usize, len: usize) -> &'a [T] {
        &self.data[self.index.row(row)..][..len]
    }

    /// Asks for a row.
    #[inline(always)]
    fn prefetch<S: Simd>(self, simd: S, row: usize, len: usize) {
        const LINE_BYTES: usize = 64;
        let row = self.row(row, len);
        for at in (0..len).step_by(LINE_BYTES / size_of::<T>()) {
            simd.prefetch(&row[at..]);
        }
    }
}

/// Softmax statistics and O of some rows over one range of keys.
pub(super) struct Partial<'a> {
    /// Maximum of the scores (log2) of each row.
    max: &'a mut [f32],
    /// Sum of the weights of each row.
    sum: &'a mut [f32],
    /// Σ weight·value of each row, rows padded.
    o: &'a mut [f32],
}

impl<'a> Partial<'a> {
    pub(super) fn len(rows: usize, head_dim: usize) -> usize {
        rows * (2 + padded(head_dim))
    }

    /// Of nothing yet but a sink for each row, by its score (log2): −∞ for none. In memory for at least as many rows.
    pub(super) fn new(
        memory: &'a mut [f32],
        head_dim: usize,
        sinks: impl ExactSizeIterator<Item = f32>,
    ) -> Self {
        let rows = sinks.len();
        let (max, rest) = memory.split_at_mut(rows);
        let (sum, o) = rest.split_at_mut(rows);
        let o = &mut o[..rows * padded(head_dim)];
        for ((max, sum), sink) in max.iter_mut().zip(sum.iter_mut()).zip(sinks) {
            let has_sink = sink != f32::NEG_INFINITY;
            *max = sink;
            *sum = if has_sink {
                WEIGHT_LOG2.exp2() as f32
            } else {
                0.0
            };
        }
        o.fill(0.0);
        Partial { max, sum, o }
    }

    pub(super) fn max(memory: &[f32], row: usize) -> f32 {
        memory[row]
    }

    pub(super) fn sum(memory: &[f32], rows: usize, row: usize) -> f32 {
        memory[rows + row]
    }

    pub(super) fn row(memory: &[f32], rows: usize, row: usize, head_dim: usize) -> &[f32] {
        &memory[2 * rows + row * padded(head_dim)..][..head_dim]
    }
}

/// One task.
pub(super) struct RangeOfKeys<'a, T> {
    pub(super) head_dim: usize,
    /// Keys and values of the head.
    pub(super) keys: KvRows<'a, T>,
    pub(super) values: KvRows<'a, T>,
    /// The range.
    pub(super) tokens: Range<usize>,
    /// Keys of the head that each row sees: a prefix, of ascending length.
    pub(super) visible: &'a [usize],
    /// First key of the head that each row sees, ascending too.
    pub(super) first: &'a [usize],
    pub(super) softcap: Option<Softcap>,
    /// Queries, in rows that are padded with zeros, scaled for scores in the log2 domain.
    pub(super) queries: &'a [f32],
    /// [`TILE`] elements a row.
    pub(super) weights: &'a mut [f32],
    pub(super) partial: Partial<'a>,
}

impl<T: Loadable> Kernel for RangeOfKeys<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let most = self.visible.last().copied().unwrap_or(0);
        let end = self.tokens.end.min(most);
        let first = self.first.first().copied().unwrap_or(0);
        for start in (self.tokens.start..end).step_by(TILE) {
            if start + TILE <= first {
                continue;
            }
            let tile = start..(start + TILE).min(end);
            self.scores(simd, tile.clone());
            self.add_tile(simd, tile);
        }
    }
}

impl<T: Loadable> RangeOfKeys<'_, T> {
    fn rows(&self) -> usize {
        self.visible.len()
    }

    /// Keys of a tile that a row sees, by their places in the tile.
    #[inline(always)]
    fn seen(&self, tile: &Range<usize>, row: usize) -> Range<usize> {
        let place = |key: usize| key.clamp(tile.start, tile.end) - tile.start;
        place(self.first[row])..place(self.visible[row])
    }

    /// Scores of all rows with the keys of a tile, whose values are on their way to the cache meanwhile.
    #[inline(always)]
    fn scores<S: Simd>(&mut self, simd: S, tile: Range<usize>) {
        if S::LANES == WIDEST {
            self.scores_in_groups::<S, 8>(simd, tile);
        } else {
            self.scores_in_groups::<S, 4>(simd, tile);
        }
    }

    #[inline(always)]
    fn scores_in_groups<S: Simd, const KEYS: usize>(&mut self, simd: S, tile: Range<usize>) {
        let whole = tile.len() / KEYS * KEYS;
        for key in (0..whole).step_by(KEYS) {
            for token in tile.start + key..tile.start + key + KEYS {
                self.values.prefetch(simd, token, self.head_dim);
            }
            self.scores_of_keys::<S, KEYS>(simd, tile.start, key);
        }
        for key in whole..tile.len() {
            self.scores_of_keys::<S, 1>(simd, tile.start, key);
        }
    }

    #[inline(always)]
    fn scores_of_keys<S: Simd, const KEYS: usize>(&mut self, simd: S, start: usize, key: usize) {
        let whole = self.rows() / 2 * 2;
        for row in (0..whole).step_by(2) {
            self.products::<S, KEYS, 2>(simd, start, key, row);
        }
        if whole < self.rows() {
            self.products::<S, KEYS, 1>(simd, start, key, whole);
        }
    }

    /// Products of `KEYS` keys of a tile with one or two rows.
    #[inline(always)]
    fn products<S: Simd, const KEYS: usize, const ROWS: usize>(
        &mut self,
        simd: S,
        start: usize,
        key: usize,
        row: usize,
    ) {
        const { assert!(ROWS == 1 || ROWS == 2) };
        let stride = padded(self.head_dim);
        let keys: [&[T]; KEYS] =
            std::array::from_fn(|i| self.keys.row(start + key + i, self.head_dim));
        let queries: [&[f32]; ROWS] =
            std::array::from_fn(|i| &self.queries[(row + i) * stride..][..stride]);
        let mut sums = [[simd.splat(0.0); ROWS]; KEYS];
        let whole = self.head_dim / S::LANES * S::LANES;
        for at in (0..whole).step_by(S::LANES) {
            let first = f32::load(simd, &queries[0][at..]);
            let second = f32::load(simd, &queries[ROWS - 1][at..]);
            for (sums, key) in sums.iter_mut().zip(&keys) {
                let key = T::load(simd, &key[at..]);
                sums[0] = simd.mul_add(key, first, sums[0]);
                if ROWS == 2 {
                    sums[1] = simd.mul_add(key, second, sums[1]);
                }
            }
        }
        if whole < self.head_dim {
            for (sums, key) in sums.iter_mut().zip(&keys) {
                let key = load_tail(simd, &key[whole..]);
                for (sum, query) in sums.iter_mut().zip(&queries) {
                    *sum = simd.mul_add(key, f32::load(simd, &query[whole..]), *sum);
                }
            }
        }
        for (i, sums) in sums.iter().enumerate() {
            for (j, sum) in sums.iter().enumerate() {
                self.weights[(row + j) * TILE + key + i] = simd.sum_of_lanes(*sum);
            }
        }
    }

    /// Softmax of a tile's scores, and the values that go with it.
    #[inline(always)]
    fn add_tile<S: Simd>(&mut self, simd: S, tile: Range<usize>) {
        let rows = self.rows();
        let mut factors = [1.0; ROWS];
        let seen_by_all = self.visible[0] >= tile.end && self.first[rows - 1] <= tile.start;
        for (row, factor) in factors[..rows].iter_mut().enumerate() {
            let Range { start, end: seen } = self.seen(&tile, row);
            if start < seen {
                let weights = &mut self.weights[row * TILE..][..TILE];
                if let Some(softcap) = self.softcap {
                    softcap.apply(simd, bytemuck::cast_slice_mut(weights));
                }
                weights[..start].fill(f32::NEG_INFINITY);
                let stats = (&mut self.partial.max[row], &mut self.partial.sum[row]);
                *factor = online_softmax(simd, weights, seen, stats);
            }
        }
        let of_rows = factors;
        for part in (0..tile.len()).step_by(KEYS_PER_SUM) {
            let keys = part..(part + KEYS_PER_SUM).min(tile.len());
            if part > 0 {
                factors = [1.0; ROWS];
            }
            let mut row = 0;
            // Where some rows do not see all keys, each row goes by itself over those that it sees: a value that it does not see may
            // be anything, and a weight of 0 would not keep NaN out.
            if seen_by_all {
                if S::LANES == WIDEST {
                    while row + 4 <= rows {
                        self.add::<S, 4, 4>(simd, tile.start, keys.clone(), row, &factors);
                        row += 4;
                    }
                    while row + 2 <= rows {
                        self.add::<S, 2, 8>(simd, tile.start, keys.clone(), row, &factors);
                        row += 2;
                    }
                }
                while row + 2 <= rows {
                    self.add::<S, 2, 4>(simd, tile.start, keys.clone(), row, &factors);
                    row += 2;
                }
            }
            for row in row..rows {
                let seen = self.seen(&tile, row);
                // What was added up before is rescaled with the first keys that the row sees.
                let is_first = keys.contains(&seen.start);
                let keys = keys.start.max(seen.start)..keys.end.min(seen.end);
                if !keys.is_empty() {
                    let factors = if is_first { &of_rows } else { &[1.0; ROWS] };
                    self.add::<S, 1, 8>(simd, tile.start, keys, row, factors);
                }
            }
        }
    }

    /// O of `ROWS` rows times their factors, plus the values of some keys of a tile times their weights; `REGISTERS` registers of a
    /// row at a time.
    #[inline(always)]
    fn add<S: Simd, const ROWS: usize, const REGISTERS: usize>(
        &mut self,
        simd: S,
        start: usize,
        keys: Range<usize>,
        row: usize,
        factors: &[f32],
    ) {
        let mut at = 0;
        while at + REGISTERS * S::LANES <= self.head_dim {
            self.add_columns::<S, ROWS, REGISTERS, false>(
                simd,
                start,
                keys.clone(),
                row,
                factors,
                at,
            );
            at += REGISTERS * S::LANES;
        }
        while at + 4 * S::LANES <= self.head_dim {
            self.add_columns::<S, ROWS, 4, false>(simd, start, keys.clone(), row, factors, at);
            at += 4 * S::LANES;
        }
        while at + S::LANES <= self.head_dim {
            self.add_columns::<S, ROWS, 1, false>(simd, start, keys.clone(), row, factors, at);
            at += S::LANES;
        }
        if at < self.head_dim {
            self.add_columns::<S, ROWS, 1, true>(simd, start, keys, row, factors, at);
        }
    }

    /// Columns from `at` on: so many registers, or with `TAIL` the last ones, which do not fill a register.
    #[inline(always)]
    fn add_columns<S: Simd, const ROWS: usize, const REGISTERS: usize, const TAIL: bool>(
        &mut self,
        simd: S,
        start: usize,
        keys: Range<usize>,
        row: usize,
        factors: &[f32],
        at: usize,
    ) {
        let columns = if TAIL {
            self.head_dim - at
        } else {
            REGISTERS * S::LANES
        };
        let weights: [&[f32]; ROWS] =
            std::array::from_fn(|i| &self.weights[(row + i) * TILE..][keys.clone()]);
        let mut sums = [[simd.splat(0.0); REGISTERS]; ROWS];
        for (index, key) in keys.enumerate() {
            // The keys of the next tile are on their way to the cache while the first columns of this one's values are read.
            let ahead = start + TILE + key;
            if row == 0 && at == 0 && ahead < self.tokens.end {
                self.keys.prefetch(simd, ahead, self.head_dim);
            }
            let value = &self.values.data[self.values.index.row(start + key) + at..][..columns];
            // Loops and no closures: a closure of vectors is not compiled for the instruction set.
            let mut registers = [simd.splat(0.0); REGISTERS];
            for (index, register) in registers.iter_mut().enumerate() {
                *register = if TAIL {
                    load_tail(simd, value)
                } else {
                    T::load(simd, &value[index * S::LANES..])
                };
            }
            for (sums, weights) in sums.iter_mut().zip(&weights) {
                let weight = simd.splat(weights[index]);
                for (sum, value) in sums.iter_mut().zip(&registers) {
                    *sum = simd.mul_add(*value, weight, *sum);
                }
            }
        }
        let stride = padded(self.head_dim);
        for (i, sums) in sums.iter().enumerate() {
            let factor = simd.splat(factors[row + i]);
            let o = &mut self.partial.o[(row + i) * stride + at..];
            for (register, sum) in sums.iter().enumerate() {
                let o = &mut o[register * S::LANES..];
                let old = simd.load_f32(o);
                simd.store_f32(o, simd.mul_add(old, factor, *sum));
            }
        }
    }
}

/// The last elements of a row, fewer than a register holds; zeros in the other lanes.
#[inline(always)]
fn load_tail<S: Simd, T: Loadable>(simd: S, tail: &[T]) -> S::F32 {
    let mut padded = [T::default(); WIDEST];
    padded[..tail.len()].copy_from_slice(tail);
    T::load(simd, &padded)
}

/// Folds a row's scores with the first `seen` keys of a tile into its maximum and sum, makes weights of them, and returns what O has
/// to be multiplied by. NaN and infinities do what they do in `tile::online_softmax`.
#[inline(always)]
fn online_softmax<S: Simd>(
    simd: S,
    weights: &mut [f32],
    seen: usize,
    (max, sum): (&mut f32, &mut f32),
) -> f32 {
    let weights = &mut weights[..seen.next_multiple_of(S::LANES)];
    weights[seen..].fill(f32::NEG_INFINITY);
    let mut largest = simd.splat(*max);
    for scores in weights.chunks_exact(S::LANES) {
        largest = simd.max(simd.load_f32(scores), largest);
    }
    let mut lanes = Lanes::NEG_INFINITY;
    simd.store(&mut lanes, 0, largest);
    let new_max = lanes.0.into_iter().fold(f32::NEG_INFINITY, f32::max);
    let reference = finite_or_zero(new_max);
    let factor = simd.exp2(simd.splat(*max - reference));
    let slack = simd.splat(WEIGHT_LOG2 as f32);
    let reference = simd.splat(reference);
    let mut total = simd.splat(0.0);
    for scores in weights.chunks_exact_mut(S::LANES) {
        // Two sums: the difference is exact for the maximum, however large it is.
        let difference = simd.sub(simd.load_f32(scores), reference);
        let weight = simd.exp2(simd.add(difference, slack));
        total = simd.add(total, weight);
        simd.store_f32(scores, weight);
    }
    simd.store(&mut lanes, 0, factor);
    let factor = lanes.0[0];
    *sum = *sum * factor + simd.sum_of_lanes(total);
    *max = new_max;
    factor
}
