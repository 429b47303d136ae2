//! What a call over an index kept, and how long it took.

use std::time::Duration;

/// What one call did.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Report {
    /// Key/value heads of all sequences, [batch, kv_heads].
    pub heads: Vec<HeadReport>,
    /// Wall time of dense attention to the queries' own tokens and to what is in no cluster.
    pub dense_time: Duration,
    /// Time of look-up, the sum over the threads.
    pub lookup_time: Duration,
    /// Time of attention to kept clusters, the sum over the threads.
    pub attention_time: Duration,
}

/// What one key/value head kept.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct HeadReport {
    /// Share of the clustered keys that attention ran over, mean over the queries; 0 where there are none.
    pub share: f64,
    /// Share of the fixed context's keys that attention ran over, sinks and window included.
    pub fixed_share: f64,
    /// Share of attention on what was kept, as the look-up estimates it: mean over queries and query heads. With
    /// [`Denominator::Clusters`](super::Denominator::Clusters), of attention to the clusters.
    pub coverage: f64,
    /// Share of the clusters that were scored, mean over the queries: 1 with one level.
    pub scored: f64,
    /// For each query block the clusters that it kept, ascending.
    pub kept: Vec<Vec<u32>>,
}

impl Report {
    /// Mean of [`HeadReport::share`] over the heads.
    pub fn mean_share(&self) -> f64 {
        self.mean(|head| head.share)
    }

    /// Mean of [`HeadReport::coverage`] over the heads.
    pub fn mean_coverage(&self) -> f64 {
        self.mean(|head| head.coverage)
    }

    fn mean(&self, of: impl Fn(&HeadReport) -> f64) -> f64 {
        self.heads.iter().map(of).sum::<f64>() / self.heads.len().max(1) as f64
    }
}
