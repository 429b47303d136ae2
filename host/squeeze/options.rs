//! How an index is built.

use super::error::{Error, Result};

/// What the variances of a cluster's keys are kept as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Variance {
    /// One profile over the dimensions for each key/value head, times one number a cluster: `σ²[c, d] ≈ profile[d] · spread[c]`. The
    /// second-order score then needs no second product over clusters.
    Profile,
    /// One number for each cluster and dimension.
    PerDimension,
}

/// How the keys of a fixed context are clustered.
///
/// ```
/// use sample_attention::squeeze::IndexOptions;
/// let options = IndexOptions::default().with_span(1024).with_coarse_ratio(None);
/// assert_eq!(options.cluster_ratio, 0.05);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct IndexOptions {
    /// Clusters for each clustered key, in (0, 1]; 0.05 by default, as published.
    pub cluster_ratio: f32,
    /// Clusters of the second, coarser level for each clustered key; 0.01 by default, as published. `None` has one level.
    pub coarse_ratio: Option<f32>,
    /// First positions, which are attended to by every query and stay outside; 16 by default.
    pub sinks: usize,
    /// Last positions, which are attended to by every query and stay outside: their queries are those that thresholds are calibrated
    /// on (the observation window). 128 by default; the paper has 100.
    pub window: usize,
    /// Positions that are clustered together; 8,192 by default. Time grows with it, and a span that is full never changes, so that an
    /// index can grow with its text. `usize::MAX` clusters the whole context at once, as published.
    pub span: usize,
    /// The most rounds of k-means; it ends earlier once no key changes its cluster. 3 by default: 30 found nothing better.
    pub rounds: usize,
    /// Seed of the start.
    pub seed: u64,
    /// What is kept of the keys' variances.
    pub variance: Variance,
}

impl Default for IndexOptions {
    fn default() -> Self {
        IndexOptions {
            cluster_ratio: 0.05,
            coarse_ratio: Some(0.01),
            sinks: 16,
            window: 128,
            span: 8192,
            rounds: 3,
            seed: 0,
            variance: Variance::Profile,
        }
    }
}

impl IndexOptions {
    /// As published (Hooper et al. 2024): the whole context at once, up to 300 rounds, no sinks, an observation window of 100. The
    /// start is this library's own, since k-means++ as they call it depends on the run.
    pub fn published() -> Self {
        IndexOptions {
            sinks: 0,
            window: 100,
            span: usize::MAX,
            rounds: 300,
            ..IndexOptions::default()
        }
    }

    /// The same with another [`IndexOptions::cluster_ratio`].
    pub fn with_cluster_ratio(self, cluster_ratio: f32) -> Self {
        IndexOptions {
            cluster_ratio,
            ..self
        }
    }

    /// The same with another [`IndexOptions::coarse_ratio`].
    pub fn with_coarse_ratio(self, coarse_ratio: Option<f32>) -> Self {
        IndexOptions {
            coarse_ratio,
            ..self
        }
    }

    /// The same with other [`IndexOptions::sinks`] and [`IndexOptions::window`].
    pub fn with_outside(self, sinks: usize, window: usize) -> Self {
        IndexOptions {
            sinks,
            window,
            ..self
        }
    }

    /// The same with another [`IndexOptions::span`].
    pub fn with_span(self, span: usize) -> Self {
        IndexOptions { span, ..self }
    }

    /// The same with other [`IndexOptions::rounds`].
    pub fn with_rounds(self, rounds: usize) -> Self {
        IndexOptions { rounds, ..self }
    }

    /// The same with another [`IndexOptions::seed`].
    pub fn with_seed(self, seed: u64) -> Self {
        IndexOptions { seed, ..self }
    }

    /// The same with another [`IndexOptions::variance`].
    pub fn with_variance(self, variance: Variance) -> Self {
        IndexOptions { variance, ..self }
    }

    /// Whether every field is in its range.
    ///
    /// # Errors
    /// [`Error::Option`].
    pub fn validate(&self) -> Result<()> {
        let ratio = |field, ratio: f32| {
            // Written so that NaN fails too.
            let in_range = ratio > 0.0 && ratio <= 1.0;
            if in_range {
                return Ok(());
            }
            Err(Error::Option {
                field,
                given: ratio.into(),
                range: "above 0 and at most 1",
            })
        };
        ratio("cluster_ratio", self.cluster_ratio)?;
        if let Some(coarse) = self.coarse_ratio {
            ratio("coarse_ratio", coarse)?;
            if coarse > self.cluster_ratio {
                return Err(Error::Option {
                    field: "coarse_ratio",
                    given: coarse.into(),
                    range: "at most cluster_ratio: the coarse level has fewer clusters",
                });
            }
        }
        for (field, given) in [
            ("window", self.window),
            ("span", self.span),
            ("rounds", self.rounds),
        ] {
            if given == 0 {
                return Err(Error::Option {
                    field,
                    given: 0.0,
                    range: "at least 1",
                });
            }
        }
        Ok(())
    }
}

impl Variance {
    /// Its name in files.
    #[cfg(feature = "index-files")]
    pub(super) fn name(self) -> &'static str {
        match self {
            Variance::Profile => "profile",
            Variance::PerDimension => "per dimension",
        }
    }
}
