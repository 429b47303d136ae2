//! The arithmetic of one tile: up to 128 keys against a panel of 32 queries.
//!
//! Everything is held transposed: `queries[d]`, `scores[key]` and `output[d]` are [`Lanes`], one f32 a query. Keys and values
//! are then the broadcast operands of both products and are read as they lie, row by row, so that nothing is packed but Qᵀ,
//! and a row's maximum, sum and rescale are plain vector operations.
//!
//! Scores are in the log2 domain: the softmax scale times log2(e) is already in the queries.

use super::simd::{Lanes, PANEL, Simd};

/// Rows of f32 that lie `stride` apart.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) stride: usize,
}

impl<'a> Rows<'a> {
    #[inline(always)]
    fn get(self, row: usize, len: usize) -> &'a [f32] {
        &self.data[row * self.stride..][..len]
    }
}

/// Keys (or output columns) of one register tile: 8 × 2 registers of accumulators where there are 32 registers, 4 × 2 where
/// there are 16.
const fn register_rows<S: Simd>() -> usize {
    if S::LANES == 16 { 8 } else { 4 }
}

/// Keys are worked on in groups of this many; a tile's key rows are padded to it.
pub(crate) const KEY_GROUP: usize = 8;

/// Running softmax statistics of a panel: maximum of the scores so far (log2) and sum of 2^(score - maximum).
#[derive(Clone, Copy, bytemuck::Zeroable, bytemuck::Pod)]
#[repr(C)]
pub(crate) struct Stats {
    pub(crate) max: Lanes,
    pub(crate) sum: Lanes,
}

impl Stats {
    pub(super) const EMPTY: Stats = Stats {
        max: Lanes::NEG_INFINITY,
        sum: Lanes::ZERO,
    };

    /// Of a sink alone, whose score (log2) is the same in all rows; −∞ for none.
    #[inline(always)]
    pub(super) fn of_sink(sink_log2: f32) -> Self {
        if sink_log2 == f32::NEG_INFINITY {
            return Stats::EMPTY;
        }
        Stats {
            max: Lanes([sink_log2; PANEL]),
            sum: Lanes([1.0; PANEL]),
        }
    }
}

/// cap · tanh(score / cap), of scores in the log2 domain.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Softcap {
    /// In the log2 domain.
    cap_log2: f32,
    /// e^(2·s / cap) = 2^(score · this), since score = s · log2(e).
    exponent: f32,
}

impl Softcap {
    /// Of a cap of scores in the natural domain.
    pub(super) fn new(cap: f32) -> Self {
        Softcap {
            cap_log2: (f64::from(cap) * std::f64::consts::LOG2_E) as f32,
            exponent: 2.0 / cap,
        }
    }

    #[inline(always)]
    pub(super) fn apply<S: Simd>(self, simd: S, scores: &mut [Lanes]) {
        // tanh is 1 in f32 from 9.02 on; 2^127 is the largest power that `exp2` has.
        let most = simd.splat(64.0);
        for score in scores {
            let mut power = Lanes::ZERO;
            for at in (0..PANEL).step_by(S::LANES) {
                let x = simd.mul(simd.load(score, at), simd.splat(self.exponent));
                let x = simd.select_lt(most, x, most, x);
                simd.store(&mut power, at, simd.exp2(x));
            }
            for (score, power) in score.0.iter_mut().zip(power.0) {
                let y = *score / self.cap_log2;
                let squared = y * y;
                // 1 - 2 / (e^2y + 1) loses the bits of small y; this fraction has them.
                let numerator = 135_135.0 + squared * (17_325.0 + squared * (378.0 + squared));
                let denominator =
                    135_135.0 + squared * (62_370.0 + squared * (3_150.0 + squared * 28.0));
                let near = y * numerator / denominator;
                let far = 1.0 - 2.0 / (power + 1.0);
                *score = self.cap_log2 * if squared < 1.0 { near } else { far };
            }
        }
    }
}

/// `scores[key] = keys[key] · queries` for all keys of `scores`, whose number is a multiple of [`KEY_GROUP`].
#[inline(always)]
pub(crate) fn scores<S: Simd>(simd: S, queries: &[Lanes], keys: Rows<'_>, scores: &mut [Lanes]) {
    if register_rows::<S>() == 8 {
        scores_in_groups::<S, 8>(simd, queries, keys, scores);
    } else {
        scores_in_groups::<S, 4>(simd, queries, keys, scores);
    }
}

#[inline(always)]
fn scores_in_groups<S: Simd, const ROWS: usize>(
    simd: S,
    queries: &[Lanes],
    keys: Rows<'_>,
    scores: &mut [Lanes],
) {
    for at in (0..PANEL).step_by(2 * S::LANES) {
        for (group, scores) in scores.chunks_exact_mut(ROWS).enumerate() {
            let keys: [&[f32]; ROWS] =
                std::array::from_fn(|row| keys.get(group * ROWS + row, queries.len()));
            let mut sums = [[simd.splat(0.0); 2]; ROWS];
            for (d, query) in queries.iter().enumerate() {
                let query = [simd.load(query, at), simd.load(query, at + S::LANES)];
                for (sums, key) in sums.iter_mut().zip(keys) {
                    let key = simd.splat(key[d]);
                    sums[0] = simd.mul_add(key, query[0], sums[0]);
                    sums[1] = simd.mul_add(key, query[1], sums[1]);
                }
            }
            for (score, sums) in scores.iter_mut().zip(sums) {
                simd.store(score, at, sums[0]);
                simd.store(score, at + S::LANES, sums[1]);
            }
        }
    }
}

/// Keys of a sum that is added up by itself: one that went on through the tile, and from tile to tile, would lose bits.
const KEYS_PER_SUM: usize = 32;

/// `output[d] = output[d] · factor + Σ values[key][d] · weights[key]`; `output` has a multiple of [`KEY_GROUP`] rows. Without keys
/// `output` is left alone.
#[inline(always)]
pub(super) fn accumulate<S: Simd>(
    simd: S,
    weights: &[Lanes],
    values: Rows<'_>,
    output: &mut [Lanes],
    factor: &Lanes,
) {
    if register_rows::<S>() == 8 {
        accumulate_in_groups::<S, 8>(simd, weights, values, output, factor);
    } else {
        accumulate_in_groups::<S, 4>(simd, weights, values, output, factor);
    }
}

#[inline(always)]
fn accumulate_in_groups<S: Simd, const ROWS: usize>(
    simd: S,
    weights: &[Lanes],
    values: Rows<'_>,
    output: &mut [Lanes],
    factor: &Lanes,
) {
    for at in (0..PANEL).step_by(2 * S::LANES) {
        for (group, output) in output.chunks_exact_mut(ROWS).enumerate() {
            let mut factor = [simd.load(factor, at), simd.load(factor, at + S::LANES)];
            for (part, weights) in weights.chunks(KEYS_PER_SUM).enumerate() {
                let mut sums = [[simd.splat(0.0); 2]; ROWS];
                for (key, weight) in weights.iter().enumerate() {
                    let weight = [simd.load(weight, at), simd.load(weight, at + S::LANES)];
                    let key = part * KEYS_PER_SUM + key;
                    let value = &values.data[key * values.stride + group * ROWS..][..ROWS];
                    for (sums, value) in sums.iter_mut().zip(value) {
                        let value = simd.splat(*value);
                        sums[0] = simd.mul_add(value, weight[0], sums[0]);
                        sums[1] = simd.mul_add(value, weight[1], sums[1]);
                    }
                }
                for (output, sums) in output.iter_mut().zip(sums) {
                    for (at, (sum, factor)) in [at, at + S::LANES]
                        .into_iter()
                        .zip(sums.into_iter().zip(factor))
                    {
                        let old = simd.load(output, at);
                        simd.store(output, at, simd.mul_add(old, factor, sum));
                    }
                }
                factor = [simd.splat(1.0); 2];
            }
        }
    }
}

/// Puts -∞ where lane `q` does not see key `j`, which is where `j >= visible[q]`. Keys before `first` are seen by all.
#[inline(always)]
pub(super) fn mask<S: Simd>(simd: S, scores: &mut [Lanes], visible: &Lanes, first: usize) {
    let hidden = simd.splat(f32::NEG_INFINITY);
    for (key, score) in scores.iter_mut().enumerate().skip(first) {
        let key = simd.splat(key as f32);
        for at in (0..PANEL).step_by(S::LANES) {
            let kept = simd.select_lt(key, simd.load(visible, at), simd.load(score, at), hidden);
            simd.store(score, at, kept);
        }
    }
}

/// Scores of -∞ before each row's first key of the tile.
#[inline(always)]
pub(super) fn mask_before<S: Simd>(simd: S, scores: &mut [Lanes], first: &Lanes) {
    let hidden = simd.splat(f32::NEG_INFINITY);
    for (key, score) in scores.iter_mut().enumerate() {
        let key = simd.splat(key as f32);
        for at in (0..PANEL).step_by(S::LANES) {
            let kept = simd.select_lt(key, simd.load(first, at), hidden, simd.load(score, at));
            simd.store(score, at, kept);
        }
    }
}

/// Folds the scores of one tile into `stats` and returns 2^(old maximum - new maximum), by which everything summed
/// before has to be scaled. With `KEEP`, the scores become weights 2^(score - new maximum).
///
/// NaN scores leave the maximum alone and make sum and weight NaN. Rows that have seen nothing keep the maximum -∞.
#[inline(always)]
pub(super) fn online_softmax<S: Simd, const KEEP: bool>(
    simd: S,
    scores: &mut [Lanes],
    stats: &mut Stats,
) -> Lanes {
    let mut rescale = Lanes::ZERO;
    for at in (0..PANEL).step_by(S::LANES) {
        let old_max = simd.load(&stats.max, at);
        let mut max = old_max;
        for score in scores.iter() {
            max = simd.max(simd.load(score, at), max);
        }
        let reference = finite_or_zero(simd, max);
        let factor = simd.exp2(simd.sub(old_max, reference));
        // Of a few keys, and of the tile alone: thousands of small weights, added one by one to a large sum, would lose bits.
        let mut sum = simd.splat(0.0);
        for scores in scores.chunks_mut(KEYS_PER_SUM) {
            let mut part = simd.splat(0.0);
            for score in scores {
                let weight = simd.exp2(simd.sub(simd.load(score, at), reference));
                part = simd.add(part, weight);
                if KEEP {
                    simd.store(score, at, weight);
                }
            }
            sum = simd.add(sum, part);
        }
        simd.store(&mut stats.max, at, max);
        let sum = simd.mul_add(simd.load(&stats.sum, at), factor, sum);
        simd.store(&mut stats.sum, at, sum);
        simd.store(&mut rescale, at, factor);
    }
    rescale
}

/// x, or 0 where x is -∞: a reference point for differences that must not become ∞ - ∞.
#[inline(always)]
pub(super) fn finite_or_zero<S: Simd>(simd: S, x: S::F32) -> S::F32 {
    simd.select_lt(x, simd.splat(-f32::MAX), simd.splat(0.0), x)
}

/// Multiplies each row of `output` by `factor`, lane by lane.
#[inline(always)]
pub(super) fn scale<S: Simd>(simd: S, output: &mut [Lanes], factor: &Lanes) {
    for at in (0..PANEL).step_by(S::LANES) {
        let factor = simd.load(factor, at);
        for row in output.iter_mut() {
            simd.store(row, at, simd.mul(simd.load(row, at), factor));
        }
    }
}

/// 1 / sum of each row whose softmax is finite, a little less than that ([`MASS_SLACK`]); 0 for lanes without a row, and for rows whose scores are NaN, +∞ or all -∞.
/// A finite row's sum is at least 1, its maximum's own weight.
pub(super) fn inverse_sums(stats: &Stats) -> Lanes {
    Lanes(std::array::from_fn(|lane| {
        let (max, sum) = (stats.max.0[lane], stats.sum.0[lane]);
        if max.is_finite() && sum.is_finite() {
            MASS_SLACK / sum
        } else {
            0.0
        }
    }))
}

/// A row's shares are rounded, and so is the sum that they are divided by. Less than 1 by more than that may add up to, so that the
/// shares of a row do not sum to more than 1.
const MASS_SLACK: f32 = 1.0 - 1.0 / (1 << 20) as f32;

/// Rows whose softmax is finite.
pub(super) fn finite_rows(stats: &[Stats]) -> usize {
    let lanes = stats.iter().flat_map(|stats| inverse_sums(stats).0);
    lanes.filter(|&inverse| inverse > 0.0).count()
}

/// Natural log of each row's softmax normaliser, -∞ where nothing was seen.
pub(super) fn lse(stats: &Stats) -> [f64; PANEL] {
    std::array::from_fn(|lane| {
        let lse_log2 = f64::from(stats.max.0[lane]) + f64::from(stats.sum.0[lane]).log2();
        lse_log2 * std::f64::consts::LN_2
    })
}

#[cfg(test)]
mod tests;
