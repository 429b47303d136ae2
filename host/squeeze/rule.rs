//! Which clusters a query looks at.

use super::error::{Error, Result};
use super::index::Index;
use super::options::Variance;

/// How much a key of a cluster is expected to matter to a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Score {
    /// exp(q·μ) of the cluster's mean key μ, as published. It leaves out what keys that differ add: the mean of exp is above exp of
    /// the mean.
    Mean,
    /// exp(q·μ + ½ Σ_d q_d² σ_d²): the mean of exp over normally distributed keys, to second order for any others.
    SecondOrder,
    /// The same with one variance for all dimensions: exp(q·μ + ½ |q|² · mean σ²).
    Isotropic,
}

/// What a cluster's weight is divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Denominator {
    /// Everything that the query sees: clusters as estimated; sinks, window and its own tokens exactly. What is compared with the
    /// threshold is then the probability that attention gives a key.
    Everything,
    /// The clusters alone, as published.
    Clusters,
}

/// Which clusters are kept. Scores are those of one key of the cluster, the largest over the query heads that share a key/value head.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Keep {
    /// Nothing yet: a rule that has to be calibrated first.
    Uncalibrated,
    /// Those whose score is above this, which is positive.
    Threshold(f32),
    /// The fewest keys, by descending score, that reach this share of the clustered keys, in (0, 1].
    Share(f32),
    /// The fewest keys, by descending score, with which every query head of the group is expected to cover this much of its attention,
    /// in (0, 1].
    Coverage(f32),
}

/// A rule of look-up over an [`Index`].
///
/// ```
/// use sample_attention::squeeze::{Centroids, Keep, Score};
/// let decode = Centroids::default().with_keep(Keep::Threshold(1e-4));
/// assert_eq!((decode.score, decode.block), (Score::SecondOrder, 1));
/// let prefill = Centroids::default().with_block(64).with_keep(Keep::Coverage(0.98));
/// # let _ = prefill;
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Centroids {
    /// Second order by default.
    pub score: Score,
    /// Everything by default.
    pub denominator: Denominator,
    /// [`Keep::Coverage`] of 0.98 by default, which needs no calibration.
    pub keep: Keep,
    /// Consecutive queries that share one list, by their mean score; 1 by default: each query for itself, as in decoding.
    pub block: usize,
    /// Two levels: only what lies below coarse clusters whose score is above this is looked at; positive. A tenth of the threshold
    /// of [`Keep::Threshold`] loses next to nothing. `None`, the default, looks at every cluster.
    pub coarse_threshold: Option<f32>,
}

impl Default for Centroids {
    fn default() -> Self {
        Centroids {
            score: Score::SecondOrder,
            denominator: Denominator::Everything,
            keep: Keep::Coverage(0.98),
            block: 1,
            coarse_threshold: None,
        }
    }
}

impl Centroids {
    /// As published (Hooper et al. 2024, section 4): S_i = exp(q·C_i) / Σ_j N_j exp(q·C_j) over the clusters alone, kept where it is
    /// above one threshold for all layers and heads, which has to be calibrated: [`Observed`](super::Observed) of all layers, merged.
    pub fn published() -> Self {
        Centroids {
            score: Score::Mean,
            denominator: Denominator::Clusters,
            keep: Keep::Uncalibrated,
            ..Centroids::default()
        }
    }

    /// The same rule with another [`Centroids::score`].
    pub fn with_score(self, score: Score) -> Self {
        Centroids { score, ..self }
    }

    /// The same rule with another [`Centroids::denominator`].
    pub fn with_denominator(self, denominator: Denominator) -> Self {
        Centroids {
            denominator,
            ..self
        }
    }

    /// The same rule with another [`Centroids::keep`].
    pub fn with_keep(self, keep: Keep) -> Self {
        Centroids { keep, ..self }
    }

    /// The same rule with another [`Centroids::block`].
    pub fn with_block(self, block: usize) -> Self {
        Centroids { block, ..self }
    }

    /// The same rule with another [`Centroids::coarse_threshold`].
    pub fn with_coarse_threshold(self, coarse_threshold: Option<f32>) -> Self {
        Centroids {
            coarse_threshold,
            ..self
        }
    }

    /// Whether every field is in its range and `index` has what the rule needs. [`Keep::Uncalibrated`] is in its range.
    pub(super) fn check(&self, index: &Index) -> Result<()> {
        // Written so that NaN fails too.
        let check = |field, given: f32, in_range: bool, range| {
            if in_range {
                return Ok(());
            }
            Err(Error::Rule {
                field,
                given: given.into(),
                range,
            })
        };
        let positive = |field, x: f32| check(field, x, x > 0.0, "above 0");
        let share = |field, x: f32| check(field, x, x > 0.0 && x <= 1.0, "above 0 and at most 1");
        match self.keep {
            Keep::Uncalibrated => {}
            Keep::Threshold(threshold) => positive("threshold", threshold)?,
            Keep::Share(of_keys) => share("share", of_keys)?,
            Keep::Coverage(coverage) => share("coverage", coverage)?,
        }
        check("block", self.block as f32, self.block > 0, "at least 1")?;
        if let Some(threshold) = self.coarse_threshold {
            positive("coarse_threshold", threshold)?;
            if index.options().coarse_ratio.is_none() {
                return Err(Error::Missing {
                    what: "coarse level",
                    remedy: "IndexOptions::coarse_ratio",
                });
            }
        }
        Ok(())
    }

    /// Whether the second product, with variances for each dimension, is made.
    pub(super) fn uses_variances(&self, index: &Index) -> bool {
        self.score == Score::SecondOrder && index.options().variance == Variance::PerDimension
    }
}
