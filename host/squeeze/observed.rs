//! Thresholds from what the observation window's queries look at.

use super::error::{Error, Result};

/// Bins of an octave of the score: a threshold is that fine, 2 %.
const BINS_PER_OCTAVE: f32 = 32.0;

/// Scores below 2^-this are counted as this.
const OCTAVES: f32 = 64.0;

const BINS: usize = (OCTAVES * BINS_PER_OCTAVE) as usize;

/// Mass is counted in whole numbers, so that sums do not depend on their order.
const MASS_ONE: f64 = (1u64 << 40) as f64;

/// How many keys, and how much attention, lie in clusters of each score, for the queries of an observation window:
/// [`Squeeze::observe`](super::Squeeze::observe). Those of several heads, layers or texts can be merged, for one threshold over all.
#[derive(Clone, Debug, PartialEq)]
pub struct Observed {
    fine: Histogram,
    coarse: Histogram,
    /// Attention to what is kept anyway.
    known: u64,
    /// Attention of all rows.
    total: u64,
}

/// By descending bin of the score.
#[derive(Clone, Debug, PartialEq)]
struct Histogram {
    keys: Vec<u64>,
    mass: Vec<u64>,
}

impl Histogram {
    fn new() -> Self {
        Histogram {
            keys: vec![0; BINS],
            mass: vec![0; BINS],
        }
    }

    fn add(&mut self, score: f32, keys: u64, mass: f64) {
        let octaves = -score.log2();
        // A score of 0 lies in the last bin, as NaN would.
        let bin = if octaves < OCTAVES {
            (octaves.max(0.0) * BINS_PER_OCTAVE) as usize
        } else {
            BINS - 1
        };
        let bin = bin.min(BINS - 1);
        self.keys[bin] += keys;
        self.mass[bin] += fixed(mass);
    }

    fn merge(&mut self, other: &Histogram) {
        for (to, from) in [(&mut self.keys, &other.keys), (&mut self.mass, &other.mass)] {
            for (to, from) in to.iter_mut().zip(from) {
                *to += from;
            }
        }
    }

    /// The score above which bins have to be kept until `enough` says so of the keys and mass so far.
    fn threshold(&self, mut enough: impl FnMut(u64, u64) -> bool) -> f32 {
        let (mut keys, mut mass) = (0, 0);
        for bin in 0..BINS {
            if enough(keys, mass) {
                return lower_edge(bin as f32 - 1.0);
            }
            keys += self.keys[bin];
            mass += self.mass[bin];
        }
        f32::MIN_POSITIVE
    }
}

/// The lowest score of a bin.
fn lower_edge(bin: f32) -> f32 {
    (-(bin + 1.0) / BINS_PER_OCTAVE).exp2()
}

fn fixed(mass: f64) -> u64 {
    (mass.max(0.0) * MASS_ONE) as u64
}

impl Observed {
    pub(super) fn new() -> Self {
        Observed {
            fine: Histogram::new(),
            coarse: Histogram::new(),
            known: 0,
            total: 0,
        }
    }

    /// Adds a cluster: its score, its keys times the queries of the block, and the attention that the rows of the block give it.
    pub(super) fn add(&mut self, score: f32, keys: u64, mass: f64) {
        self.fine.add(score, keys, mass);
    }

    /// Adds a cluster of the coarse level.
    pub(super) fn add_coarse(&mut self, score: f32, keys: u64) {
        self.coarse.add(score, keys, 0.0);
    }

    /// Adds some rows, and the attention that they give what is kept anyway.
    pub(super) fn add_rows(&mut self, rows: usize, known: f64) {
        self.total += fixed(rows as f64);
        self.known += fixed(known);
    }

    /// Adds what was observed elsewhere with the same rule.
    pub fn merge(&mut self, other: &Observed) {
        self.fine.merge(&other.fine);
        self.coarse.merge(&other.coarse);
        self.known += other.known;
        self.total += other.total;
    }

    /// The threshold above which this share of the clustered keys lies, in (0, 1): at most so many are kept, up to one bin of 2 % of
    /// the score.
    ///
    /// # Errors
    /// [`Error::NothingObserved`].
    pub fn threshold_for_share(&self, share: f32) -> Result<f32> {
        share_of(&self.fine, share)
    }

    /// The threshold above which this share of the keys lies below coarse clusters, for
    /// [`Centroids::coarse_threshold`](super::Centroids::coarse_threshold).
    ///
    /// # Errors
    /// [`Error::NothingObserved`], as of an index of one level.
    pub fn coarse_threshold_for_share(&self, share: f32) -> Result<f32> {
        share_of(&self.coarse, share)
    }

    /// The highest threshold with which the observed rows cover this much of their attention, in the mean, as the scores estimate it. With
    /// [`Denominator::Clusters`](super::Denominator::Clusters): of their attention to the clusters.
    ///
    /// # Errors
    /// [`Error::NothingObserved`].
    pub fn threshold_for_coverage(&self, coverage: f32) -> Result<f32> {
        if self.total == 0 || self.fine.keys.iter().all(|&keys| keys == 0) {
            return Err(Error::NothingObserved);
        }
        let wanted = f64::from(coverage) * self.total as f64;
        let known = self.known as f64;
        Ok(self.fine.threshold(|_, mass| known + mass as f64 >= wanted))
    }
}

fn share_of(histogram: &Histogram, share: f32) -> Result<f32> {
    let all: u64 = histogram.keys.iter().sum();
    if all == 0 {
        return Err(Error::NothingObserved);
    }
    let wanted = f64::from(share) * all as f64;
    Ok(histogram.threshold(|keys, _| keys as f64 >= wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observed() -> Observed {
        let mut observed = Observed::new();
        observed.add_rows(10, 4.0);
        // 100 keys with half of the attention, 900 with a tenth.
        observed.add(1e-2, 100, 5.0);
        observed.add(1e-5, 900, 1.0);
        observed
    }

    #[test]
    fn thresholds_lie_between_the_scores_that_they_part() {
        let between = |x: f32| x < 1e-2 && x > 0.9e-2;
        assert!(between(observed().threshold_for_share(0.09).unwrap()));
        assert!(between(observed().threshold_for_coverage(0.9).unwrap()));
        let all = observed().threshold_for_coverage(0.95).unwrap();
        assert!(all < 1e-5 && all > 0.9e-5, "{all}");
        // The known part is enough by itself.
        assert!(observed().threshold_for_coverage(0.3).unwrap() >= 1.0);
    }

    #[test]
    fn merging_does_not_depend_on_the_order() {
        let mut other = Observed::new();
        other.add_rows(3, 0.1);
        other.add(0.3, 7, 0.7);
        let (mut a, mut b) = (observed(), other.clone());
        a.merge(&other);
        b.merge(&observed());
        assert_eq!(a, b);
    }

    #[test]
    fn nothing_observed_is_refused() {
        let nothing = Observed::new();
        assert_eq!(
            nothing.threshold_for_share(0.1),
            Err(Error::NothingObserved)
        );
        assert_eq!(
            nothing.threshold_for_coverage(0.9),
            Err(Error::NothingObserved)
        );
        assert_eq!(
            observed().coarse_threshold_for_share(0.1),
            Err(Error::NothingObserved)
        );
    }
}
