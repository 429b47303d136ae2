//! Spherical k-means: keys by direction, deterministic to the bit whatever the number of threads.
//!
//! ```text
//! start: the points are cut into k stretches of equal length, and one point of each, drawn by the seed, is a centroid
//! at most `rounds` times:
//!     each point takes the centroid of the largest product; the first of equals
//!     each empty cluster, in ascending order, takes the point that is farthest from its centroid and not alone there
//!     no point has another cluster than before: done
//!     centroid = sum of the cluster's points in ascending order, in f64, over its length
//! ```
//!
//! Neighbours in a text have like keys, so that an even start loses nothing to k-means++ and costs nothing.

use rayon::prelude::*;

use super::kernels::{Nearest, NearestMemory};
use crate::cpu::{InstructionSet, KEY_GROUP, PANEL};

/// The most clusters: kernels count them in f32.
pub(super) const MAX_CLUSTERS: usize = 1 << 24;

/// Products above this are those of equal directions, for which another cluster would gain nothing.
const SAME_DIRECTION: f32 = 1.0 - 1e-6;

/// What to cluster, and how.
#[derive(Clone, Copy)]
pub(super) struct KMeans<'a> {
    /// Rows of `dim`, each of length 1, or 0.
    pub(super) points: &'a [f32],
    pub(super) dim: usize,
    /// At most as many as there are points.
    pub(super) clusters: usize,
    pub(super) rounds: usize,
    pub(super) seed: u64,
    pub(super) instruction_set: InstructionSet,
    /// Whether the points are shared out over the threads; it does not change the bits.
    pub(super) parallel: bool,
}

impl KMeans<'_> {
    /// The cluster of each point, counted from 0 without gaps: fewer than asked for where fewer directions differ.
    pub(super) fn labels(&self) -> (Vec<u32>, usize) {
        let count = self.points.len() / self.dim;
        let mut centroids = self.start(count);
        let mut labels = vec![u32::MAX; count];
        let mut next = vec![0; count];
        let mut products = vec![0.0; count];
        for _ in 0..self.rounds {
            self.assign(&centroids, &mut next, &mut products);
            self.refill(&mut next, &products);
            if next == labels {
                break;
            }
            std::mem::swap(&mut labels, &mut next);
            self.update(&labels, &mut centroids);
        }
        without_gaps(labels, self.clusters)
    }

    fn start(&self, count: usize) -> Vec<f32> {
        let mut random = SplitMix(self.seed);
        let padded = self.clusters.next_multiple_of(KEY_GROUP);
        let mut centroids = vec![0.0; padded * self.dim];
        for (cluster, centroid) in centroids.chunks_exact_mut(self.dim).enumerate() {
            if cluster == self.clusters {
                break;
            }
            let first = cluster * count / self.clusters;
            let end = (cluster + 1) * count / self.clusters;
            let point = first + (random.bits() % (end - first).max(1) as u64) as usize;
            centroid.copy_from_slice(&self.points[point * self.dim..][..self.dim]);
        }
        centroids
    }

    fn assign(&self, centroids: &[f32], labels: &mut [u32], products: &mut [f32]) {
        type Part<'p> = ((&'p [f32], &'p mut [u32]), &'p mut [f32]);
        let run = |memory: &mut NearestMemory, ((points, labels), products): Part<'_>| {
            self.instruction_set.run(Nearest {
                points,
                dim: self.dim,
                centroids,
                count: self.clusters,
                labels,
                products,
                memory,
            });
        };
        let memory = || NearestMemory::new(self.dim);
        if self.parallel {
            self.points
                .par_chunks(PANEL * self.dim)
                .zip(labels.par_chunks_mut(PANEL))
                .zip(products.par_chunks_mut(PANEL))
                .for_each_init(memory, run);
        } else {
            let mut memory = memory();
            self.points
                .chunks(PANEL * self.dim)
                .zip(labels.chunks_mut(PANEL))
                .zip(products.chunks_mut(PANEL))
                .for_each(|part| run(&mut memory, part));
        }
    }

    fn refill(&self, labels: &mut [u32], products: &[f32]) {
        let mut sizes = vec![0u32; self.clusters];
        for &label in &*labels {
            sizes[label as usize] += 1;
        }
        let mut empty = (0..self.clusters as u32)
            .filter(|&cluster| sizes[cluster as usize] == 0)
            .collect::<Vec<_>>()
            .into_iter()
            .peekable();
        if empty.peek().is_none() {
            return;
        }
        let mut farthest: Vec<u32> = (0..labels.len() as u32).collect();
        farthest.sort_by(|&a, &b| products[a as usize].total_cmp(&products[b as usize]));
        for point in farthest {
            let label = &mut labels[point as usize];
            if products[point as usize] > SAME_DIRECTION || empty.peek().is_none() {
                break;
            }
            if sizes[*label as usize] > 1 {
                sizes[*label as usize] -= 1;
                *label = empty.next().expect("peeked above");
            }
        }
    }

    fn update(&self, labels: &[u32], centroids: &mut [f32]) {
        let (starts, members) = members(labels, self.clusters);
        let update = |(cluster, centroid): (usize, &mut [f32])| {
            let members = &members[starts[cluster] as usize..starts[cluster + 1] as usize];
            let mut sum = [0f64; crate::dtype::MAX_HEAD_DIM];
            let sum = &mut sum[..self.dim];
            for &point in members {
                let point = &self.points[point as usize * self.dim..][..self.dim];
                for (sum, &x) in sum.iter_mut().zip(point) {
                    *sum += f64::from(x);
                }
            }
            let length = sum.iter().map(|x| x * x).sum::<f64>().sqrt();
            // Empty, or opposite directions: the centroid stays.
            if length > 0.0 {
                for (to, sum) in centroid.iter_mut().zip(sum) {
                    *to = (*sum / length) as f32;
                }
            }
        };
        let clusters = self.clusters * self.dim;
        if self.parallel {
            centroids[..clusters]
                .par_chunks_mut(self.dim)
                .with_min_len(16)
                .enumerate()
                .for_each(update);
        } else {
            centroids[..clusters]
                .chunks_mut(self.dim)
                .enumerate()
                .for_each(update);
        }
    }
}

/// The points of each cluster in ascending order, and where each cluster's begin.
pub(super) fn members(labels: &[u32], clusters: usize) -> (Vec<u32>, Vec<u32>) {
    let mut starts = vec![0u32; clusters + 1];
    for &label in labels {
        starts[label as usize + 1] += 1;
    }
    for cluster in 0..clusters {
        starts[cluster + 1] += starts[cluster];
    }
    let mut next = starts.clone();
    let mut members = vec![0; labels.len()];
    for (point, &label) in labels.iter().enumerate() {
        let at = &mut next[label as usize];
        members[*at as usize] = point as u32;
        *at += 1;
    }
    (starts, members)
}

fn without_gaps(mut labels: Vec<u32>, clusters: usize) -> (Vec<u32>, usize) {
    let mut names = vec![u32::MAX; clusters];
    for &label in &labels {
        names[label as usize] = 0;
    }
    let mut used = 0;
    for name in names.iter_mut().filter(|name| **name == 0) {
        *name = used;
        used += 1;
    }
    for label in &mut labels {
        *label = names[*label as usize];
    }
    (labels, used as usize)
}

/// `to` = `row` over its length, in f64; zeros stay.
pub(super) fn normalise(row: &[f32], to: &mut [f32]) {
    let square = row
        .iter()
        .map(|&x| f64::from(x) * f64::from(x))
        .sum::<f64>();
    let factor = if square > 0.0 {
        square.sqrt().recip()
    } else {
        0.0
    };
    for (to, &x) in to.iter_mut().zip(row) {
        *to = (f64::from(x) * factor) as f32;
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014).
struct SplitMix(u64);

impl SplitMix {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    }
}
