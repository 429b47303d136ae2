//! One span of positions of one key/value head, cut into clusters and put in order.

use super::error::{Error, Result};
use super::kmeans::{KMeans, MAX_CLUSTERS, members, normalise};
use super::options::IndexOptions;
use super::rows::{Origin, read};
use crate::cpu::InstructionSet;
use crate::tensor::TensorView;

/// Where the keys of a span come from.
pub(super) struct Span<'a> {
    /// The index so far, if there is one, and the new text.
    pub(super) sources: &'a [TensorView<'a>],
    pub(super) head: usize,
    /// Position of the first key.
    pub(super) first: usize,
    pub(super) origins: &'a [Origin],
}

/// A span's keys in the order of its clusters.
pub(super) struct Ordered {
    /// Keys of the span, counted from its first, cluster by cluster; those of a cluster ascend.
    pub(super) order: Vec<u32>,
    /// Keys of each cluster.
    pub(super) sizes: Vec<u32>,
    /// Clusters of each coarse cluster; empty where there is one level.
    pub(super) children: Vec<u32>,
}

/// How a span is clustered.
#[derive(Clone, Copy)]
pub(super) struct Method {
    pub(super) options: IndexOptions,
    pub(super) instruction_set: InstructionSet,
    /// Whether one span is shared out over the threads.
    pub(super) parallel: bool,
}

impl Method {
    /// Clusters of so many keys, for a ratio.
    fn clusters(keys: usize, ratio: f32) -> usize {
        let clusters = (keys as f64 * f64::from(ratio)).ceil() as usize;
        clusters.clamp(1, keys.min(MAX_CLUSTERS))
    }

    /// Bytes that the clustering of one span of `keys` works in.
    pub(super) fn workspace_bytes(options: &IndexOptions, keys: usize, dim: usize) -> usize {
        let clusters = Method::clusters(keys.max(1), options.cluster_ratio);
        // Keys as they are and normalised, centroids, means and their directions; labels, products and orders of the keys.
        let floats = 2usize
            .saturating_mul(keys)
            .saturating_add(3 * (clusters + 8))
            .saturating_mul(dim);
        floats
            .saturating_add(8 * keys + 8 * clusters)
            .saturating_mul(4)
    }

    pub(super) fn cluster(&self, span: &Span<'_>) -> Result<Ordered> {
        let dim = span.sources[0].shape()[3];
        let keys = self.read(span, dim)?;
        let count = span.origins.len();
        let mut directions = vec![0.0; keys.len()];
        for (key, direction) in keys.chunks_exact(dim).zip(directions.chunks_exact_mut(dim)) {
            normalise(key, direction);
        }
        let ratio = self.options.cluster_ratio;
        let fine = KMeans {
            points: &directions,
            dim,
            clusters: Method::clusters(count, ratio),
            rounds: self.options.rounds,
            seed: self.options.seed ^ span.first as u64,
            instruction_set: self.instruction_set,
            parallel: self.parallel,
        };
        let (labels, clusters) = fine.labels();
        let (starts, keys_of) = members(&labels, clusters);
        let run = |cluster: usize| &keys_of[starts[cluster] as usize..starts[cluster + 1] as usize];
        // Clusters are ordered by where they lie.
        let places: Vec<f64> = (0..clusters)
            .map(|cluster| mean(run(cluster).iter().map(|&key| f64::from(key))))
            .collect();
        let place = |cluster: usize| places[cluster];
        let Some(coarse_ratio) = self.options.coarse_ratio else {
            let mut order: Vec<usize> = (0..clusters).collect();
            order.sort_by(|&a, &b| place(a).total_cmp(&place(b)));
            return Ok(Ordered {
                order: order.iter().flat_map(|&c| run(c)).copied().collect(),
                sizes: order.iter().map(|&c| run(c).len() as u32).collect(),
                children: Vec::new(),
            });
        };
        let mut directions = vec![0.0; clusters * dim];
        let mut centroid = vec![0.0; dim];
        for (cluster, direction) in directions.chunks_exact_mut(dim).enumerate() {
            for (d, x) in centroid.iter_mut().enumerate() {
                let along = run(cluster).iter().map(|&key| keys[key as usize * dim + d]);
                *x = mean(along.map(f64::from)) as f32;
            }
            normalise(&centroid, direction);
        }
        let coarse = KMeans {
            points: &directions,
            clusters: Method::clusters(count, coarse_ratio).min(clusters),
            ..fine
        };
        let (parents, coarse_clusters) = coarse.labels();
        let (starts, children_of) = members(&parents, coarse_clusters);
        let mut families: Vec<Vec<u32>> = starts
            .windows(2)
            .map(|run| children_of[run[0] as usize..run[1] as usize].to_vec())
            .collect();
        for family in &mut families {
            family.sort_by(|&a, &b| place(a as usize).total_cmp(&place(b as usize)));
        }
        families.sort_by_cached_key(|family| {
            // Positions are not negative, so that the bits of their means are ordered as they are.
            mean(family.iter().map(|&c| place(c as usize))).to_bits()
        });
        let order = || families.iter().flatten().map(|&c| c as usize);
        Ok(Ordered {
            order: order().flat_map(run).copied().collect(),
            sizes: order().map(|c| run(c).len() as u32).collect(),
            children: families.iter().map(|family| family.len() as u32).collect(),
        })
    }

    /// The span's keys as f32.
    fn read(&self, span: &Span<'_>, dim: usize) -> Result<Vec<f32>> {
        let mut keys = vec![0.0; span.origins.len() * dim];
        let rows = keys.chunks_exact_mut(dim).zip(span.origins).enumerate();
        for (index, (row, &(source, token))) in rows {
            read(&span.sources[source], (0, span.head, token as usize), row);
            if row.iter().any(|x| !x.is_finite()) {
                return Err(Error::NonFinite {
                    tensor: "k",
                    head: span.head,
                    position: span.first + index,
                });
            }
        }
        Ok(keys)
    }
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len() as f64;
    values.sum::<f64>() / count
}
