//! The arithmetic of clusters, on every instruction set: the nearest centroid of a key, and the scores of clusters for queries.
//!
//! Both are products of some rows, transposed into a panel of 32 lanes, with rows that are read as they lie (`cpu::tile`).

use std::ops::Range;

use super::level::Level;
use crate::cpu::{KEY_GROUP, Kernel, Lanes, PANEL, Rows, Simd, scores};

/// Centroids whose products are worked out before they are compared.
const TILE: usize = 64;

/// What [`Nearest`] works in.
pub(super) struct NearestMemory {
    /// Points, transposed.
    panel: Vec<Lanes>,
    tile: Vec<Lanes>,
}

impl NearestMemory {
    pub(super) fn new(dim: usize) -> Self {
        NearestMemory {
            panel: vec![Lanes::ZERO; dim],
            tile: vec![Lanes::ZERO; TILE],
        }
    }
}

/// The largest magnitude of a score (log2). What leaves f32's range counts as this much: such a cluster may matter.
const LARGEST: f32 = 1e30;

/// Finds the row of `centroids` with the largest product with each of up to 32 points; the first of equals.
pub(super) struct Nearest<'a> {
    /// Rows of `dim`.
    pub(super) points: &'a [f32],
    pub(super) dim: usize,
    /// `count` rows of `dim`, and as many of any finite content as fill up a [`KEY_GROUP`].
    pub(super) centroids: &'a [f32],
    pub(super) count: usize,
    /// Of each point.
    pub(super) labels: &'a mut [u32],
    /// Product of each point with its centroid.
    pub(super) products: &'a mut [f32],
    pub(super) memory: &'a mut NearestMemory,
}

impl Kernel for Nearest<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let NearestMemory { panel, tile } = self.memory;
        for (lane, point) in self.points.chunks_exact(self.dim).enumerate() {
            for (lanes, &x) in panel.iter_mut().zip(point) {
                lanes.0[lane] = x;
            }
        }
        let mut best = Lanes::NEG_INFINITY;
        let mut labels = Lanes::ZERO;
        for start in (0..self.count).step_by(TILE) {
            let count = TILE.min(self.count - start);
            let rows = Rows {
                data: &self.centroids[start * self.dim..],
                stride: self.dim,
            };
            let tile = &mut tile[..count.next_multiple_of(KEY_GROUP)];
            scores(simd, panel, rows, tile);
            for at in (0..PANEL).step_by(S::LANES) {
                let mut most = simd.load(&best, at);
                let mut label = simd.load(&labels, at);
                for (index, products) in tile[..count].iter().enumerate() {
                    let products = simd.load(products, at);
                    // An f32 holds every number below 2^24; `kmeans` has no more centroids.
                    let index = simd.splat((start + index) as f32);
                    label = simd.select_lt(most, products, index, label);
                    most = simd.select_lt(most, products, products, most);
                }
                simd.store(&mut best, at, most);
                simd.store(&mut labels, at, label);
            }
        }
        for (to, &label) in self.labels.iter_mut().zip(&labels.0) {
            *to = label as u32;
        }
        self.products
            .copy_from_slice(&best.0[..self.products.len()]);
    }
}

/// Up to 32 queries, transposed: one lane each. Lanes without a query hold zeros.
pub(super) struct Panel {
    /// Elements of the queries, scaled for scores in the log2 domain.
    pub(super) queries: Vec<Lanes>,
    /// Their squares times ½ ln 2; used with variances for each dimension.
    pub(super) squares: Vec<Lanes>,
    /// ½ ln 2 · Σ q² · profile: what a cluster's spread is multiplied by.
    pub(super) bend: Lanes,
}

/// Scores of some clusters of a level, for the queries of a panel: log2 of the weight that a key of the cluster is expected to have,
/// within ±[`LARGEST`].
pub(super) struct ScoreClusters<'a> {
    pub(super) panel: &'a Panel,
    pub(super) level: &'a Level,
    pub(super) clusters: Range<usize>,
    pub(super) use_variances: bool,
    /// One for each cluster, and room to fill up a [`KEY_GROUP`].
    pub(super) scores: &'a mut [Lanes],
}

impl Kernel for ScoreClusters<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let dim = self.panel.queries.len();
        let count = self.clusters.len();
        let (lowest, highest) = (simd.splat(-LARGEST), simd.splat(LARGEST));
        let mut bends = [Lanes::ZERO; TILE];
        for start in (0..count).step_by(TILE) {
            let first = self.clusters.start + start;
            let here = TILE.min(count - start);
            let padded = here.next_multiple_of(KEY_GROUP);
            let tile = &mut self.scores[start..start + padded];
            let means = rows(&self.level.means, first, dim);
            scores(simd, &self.panel.queries, means, tile);
            if self.use_variances {
                let bends = &mut bends[..padded];
                let variances = rows(&self.level.variances, first, dim);
                scores(simd, &self.panel.squares, variances, bends);
            }
            let spreads = &self.level.spread[first..first + here];
            for at in (0..PANEL).step_by(S::LANES) {
                let bend = simd.load(&self.panel.bend, at);
                for (index, (score, &spread)) in tile.iter_mut().zip(spreads).enumerate() {
                    let product = simd.load(score, at);
                    let value = if self.use_variances {
                        simd.add(product, simd.load(&bends[index], at))
                    } else {
                        simd.mul_add(bend, simd.splat(spread), product)
                    };
                    // NaN is not below anything, so it becomes the highest.
                    let value = simd.select_lt(value, highest, value, highest);
                    simd.store(score, at, simd.max(lowest, value));
                }
            }
        }
    }
}

fn rows(data: &[f32], first: usize, dim: usize) -> Rows<'_> {
    Rows {
        data: &data[first * dim..],
        stride: dim,
    }
}

/// Σ counts · 2^score of some clusters, for each lane.
pub(super) struct SumWeights<'a> {
    pub(super) scores: &'a [Lanes],
    /// log2 of the keys of each cluster.
    pub(super) log2_counts: &'a [f32],
    /// Maximum (log2) and sum relative to it, added to.
    pub(super) max: &'a mut Lanes,
    pub(super) sum: &'a mut Lanes,
}

impl Kernel for SumWeights<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for at in (0..PANEL).step_by(S::LANES) {
            let before = simd.load(self.max, at);
            let mut max = before;
            for (score, &count) in self.scores.iter().zip(self.log2_counts) {
                max = simd.max(simd.add(simd.load(score, at), simd.splat(count)), max);
            }
            // −∞ stays where nothing was seen, and 2^(−∞ − 0) is 0.
            let reference = simd.select_lt(max, simd.splat(-f32::MAX), simd.splat(0.0), max);
            let mut sum = simd.mul(
                simd.load(self.sum, at),
                simd.exp2(simd.sub(before, reference)),
            );
            for (score, &count) in self.scores.iter().zip(self.log2_counts) {
                let score = simd.add(simd.load(score, at), simd.splat(count));
                sum = simd.add(sum, simd.exp2(simd.sub(score, reference)));
            }
            simd.store(self.max, at, max);
            simd.store(self.sum, at, sum);
        }
    }
}

/// Makes shares 2^(score − total) of scores.
pub(super) struct Shares<'a> {
    pub(super) scores: &'a mut [Lanes],
    pub(super) total: &'a Lanes,
}

impl Kernel for Shares<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for at in (0..PANEL).step_by(S::LANES) {
            let total = simd.load(self.total, at);
            for score in &mut *self.scores {
                // Rounding may leave the total a little below a score that is all of it.
                let share = simd.sub(simd.load(score, at), total);
                let share = simd.select_lt(share, simd.splat(0.0), share, simd.splat(0.0));
                simd.store(score, at, simd.exp2(share));
            }
        }
    }
}
