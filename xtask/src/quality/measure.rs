//! Runs the model dense and by each policy over stretches of text, and compares.

use std::time::Duration;

use sample_attention::HeadPath;

use super::attention::{By, Head, Planned, RowCoverage};
use super::divergence::Predictions;
use super::model::Model;
use super::progress::Bar;
use super::retrieval::{Answered, Case, Place, share_right};

/// Bytes of a text: the model reads `bytes`, and `targets` are the bytes that came after each of them.
pub struct Stretch<'a> {
    pub offset: usize,
    pub bytes: &'a [u8],
    pub targets: &'a [u8],
}

impl<'a> Stretch<'a> {
    /// The `len` bytes at `offset`, and the one after them.
    pub fn of(text: &'a [u8], offset: usize, len: usize) -> Result<Self, String> {
        let end = offset.checked_add(len).and_then(|end| end.checked_add(1));
        let with_next = end.and_then(|end| text.get(offset..end)).ok_or_else(|| {
            format!(
                "{len} bytes at {offset} and the next one reach past the text's {} bytes",
                text.len()
            )
        })?;
        Ok(Stretch {
            offset,
            bytes: &with_next[..len],
            targets: &with_next[1..],
        })
    }
}

/// A stretch with the dense model's predictions for it.
pub struct Reference<'a> {
    pub stretch: Stretch<'a>,
    pub predictions: Predictions,
    /// Bits per byte.
    pub loss: f64,
    /// Time of attention alone, over all layers.
    pub attention_time: Duration,
}

impl<'a> Reference<'a> {
    /// The dense pass.
    pub fn measure(model: &Model, stretch: Stretch<'a>, bar: &Bar) -> Result<Self, String> {
        let watch = |layer| bar.layer(format!("dense, offset {}", stretch.offset), layer);
        let mut dense = Planned::new(By::Dense, RowCoverage::Skipped, &watch);
        let logits = model.forward(stretch.bytes, &mut dense)?;
        let attention_time = dense.attention_time;
        let predictions = Predictions::new(&logits);
        Ok(Reference {
            loss: predictions.loss(stretch.targets),
            predictions,
            attention_time,
            stretch,
        })
    }
}

/// One policy on one stretch.
pub struct Comparison {
    pub offset: usize,
    /// Mean divergence from the dense model's next-byte distributions, in bits.
    pub divergence: f64,
    /// Share of the positions with the dense model's most likely byte.
    pub agreement: f64,
    /// Bits per byte.
    pub loss: f64,
    /// Loss over the dense loss, minus 1.
    pub loss_change: f64,
    /// Time of sampling, reduction and top-k over the time of dense attention in the same process.
    pub selection_cost: f64,
    /// Density and what selecting costs by its arithmetic, beside dense attention.
    pub cost: f64,
    pub heads: Vec<Head>,
}

impl Comparison {
    /// One sparse pass.
    pub fn measure(
        model: &Model,
        by: By<'_>,
        reference: &Reference<'_>,
        row_coverage: RowCoverage,
        bar: &Bar,
    ) -> Result<Self, String> {
        let stretch = &reference.stretch;
        let watch = |layer| bar.layer(format!("{}, offset {}", by.name(), stretch.offset), layer);
        let mut sparse = Planned::new(by, row_coverage, &watch);
        let logits = model.forward(stretch.bytes, &mut sparse)?;
        let predictions = Predictions::new(&logits);
        let loss = predictions.loss(stretch.targets);
        Ok(Comparison {
            offset: stretch.offset,
            divergence: reference.predictions.divergence_of(&predictions),
            agreement: reference.predictions.agreement_with(&predictions),
            loss,
            loss_change: loss / reference.loss - 1.0,
            selection_cost: sparse.selection_time.as_secs_f64()
                / reference.attention_time.as_secs_f64(),
            cost: sparse.cost(),
            heads: sparse.heads,
        })
    }

    /// Mean over the heads of all layers.
    pub fn density(&self) -> f64 {
        self.heads.iter().map(|head| head.density).sum::<f64>() / self.heads.len() as f64
    }

    /// Mean over heads and rows; `None` where it was not measured.
    pub fn row_coverage(&self) -> Option<f64> {
        let means = self
            .heads
            .iter()
            .map(|head| head.row_coverage.as_ref().map(|rows| rows.mean));
        Some(means.sum::<Option<f64>>()? / self.heads.len() as f64)
    }

    /// Mean over heads of the 1st percentile of the rows.
    pub fn row_coverage_percentile_1(&self) -> Option<f64> {
        let lows = self
            .heads
            .iter()
            .map(|head| Some(head.row_coverage.as_ref()?.percentile_1));
        Some(lows.sum::<Option<f64>>()? / self.heads.len() as f64)
    }

    /// Share of the heads that ran dense.
    pub fn dense_heads(&self) -> f64 {
        let dense = self
            .heads
            .iter()
            .filter(|head| head.path != HeadPath::Sparse);
        dense.count() as f64 / self.heads.len() as f64
    }
}

/// Answers to one text's questions, with dense attention or by a policy.
pub fn answered(model: &Model, by: By<'_>, case: &Case, bar: &Bar) -> Result<Answered, String> {
    let name = by.name();
    let (seed, place) = (case.seed, case.place.name());
    let watch = |layer| bar.layer(format!("{name}, questions {seed}, {place}"), layer);
    let mut attention = Planned::new(by, RowCoverage::Skipped, &watch);
    let logits = model.forward(&case.bytes, &mut attention)?;
    Ok(case.judge(&logits))
}

/// One treatment of the heads on all stretches and questions.
pub struct Measurement<'a> {
    pub by: By<'a>,
    pub answers: Vec<Answered>,
    pub stretches: Vec<Comparison>,
}

impl Measurement<'_> {
    /// What attention and selection cost by their arithmetic, beside dense attention.
    pub fn cost(&self) -> f64 {
        self.mean(|stretch| stretch.cost)
    }

    /// Share of the questions at a place that are answered right.
    pub fn share_right(&self, place: Place) -> Option<f64> {
        share_right(&self.answers, place)
    }

    /// Mean over the stretches.
    pub fn mean(&self, of: impl Fn(&Comparison) -> f64) -> f64 {
        self.stretches.iter().map(of).sum::<f64>() / self.stretches.len() as f64
    }

    /// Mean over the stretches, where all of them have it.
    pub fn mean_known(&self, of: impl Fn(&Comparison) -> Option<f64>) -> Option<f64> {
        let sum = self.stretches.iter().map(of).sum::<Option<f64>>()?;
        Some(sum / self.stretches.len() as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stretch_holds_the_byte_after_each_of_its_bytes() {
        let stretch = Stretch::of(b"abcdef", 2, 3).unwrap();
        assert_eq!((stretch.bytes, stretch.targets), (&b"cde"[..], &b"def"[..]));
        assert!(Stretch::of(b"abcdef", 3, 3).is_err());
        assert!(Stretch::of(b"abcdef", usize::MAX, 3).is_err());
    }
}
