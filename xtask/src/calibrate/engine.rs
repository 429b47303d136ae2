//! The model as an engine of the calibration: runs by any profile, from the first layer that differs from the last profile kept.

use sample_attention::HeadPolicy;
use sample_attention::calibrate::{Engine, Run};

use crate::quality::attention::{By, Planned, RowCoverage};
use crate::quality::layers::Rotary;
use crate::quality::model::Model;
use crate::quality::weights::VOCABULARY;

/// A model and the texts that it is calibrated on.
pub struct ModelEngine<'a> {
    model: &'a Model,
    texts: &'a [Vec<u8>],
    adopted: Vec<Vec<HeadPolicy>>,
    /// Of each text, for the profile that was adopted when it was made.
    bases: Vec<Option<Base>>,
}

/// What every layer of one text is given by a profile. 16 MiB a layer for 8,192 positions of 512 numbers.
struct Base {
    heads: Vec<Vec<HeadPolicy>>,
    /// The residual stream before each layer.
    inputs: Vec<Vec<f32>>,
    /// Mean over the heads of each layer.
    costs: Vec<f64>,
}

impl<'a> ModelEngine<'a> {
    pub fn new(model: &'a Model, texts: &'a [Vec<u8>]) -> Self {
        ModelEngine {
            model,
            texts,
            adopted: Vec::new(),
            bases: texts.iter().map(|_| None).collect(),
        }
    }

    /// Takes `x` through a layer, and gives the layer's cost.
    fn layer(
        &self,
        heads: &[Vec<HeadPolicy>],
        layer: usize,
        rotary: &Rotary,
        x: &mut [f32],
    ) -> Result<f64, String> {
        let watch = |_| -> Box<dyn sample_attention::Progress> { Box::new(()) };
        let mut attention = Planned::new(By::Profile(heads), RowCoverage::Skipped, &watch);
        self.model.layer(layer, rotary, x, &mut attention)?;
        Ok(attention.cost())
    }

    /// Brings a text's base to the adopted profile.
    fn bring_up(&mut self, text: usize, rotary: &Rotary) -> Result<(), String> {
        let layers = self.model.config().layers;
        let mut base = self.bases[text].take().unwrap_or_else(|| Base {
            heads: Vec::new(),
            inputs: vec![self.model.embed(&self.texts[text])],
            costs: Vec::new(),
        });
        let same = first_difference(&base.heads, &self.adopted).min(base.costs.len());
        base.costs.truncate(same);
        base.inputs.truncate(same + 1);
        base.heads.clone_from(&self.adopted);
        while base.costs.len() + 1 < layers {
            let layer = base.costs.len();
            let mut x = base.inputs[layer].clone();
            base.costs
                .push(self.layer(&base.heads, layer, rotary, &mut x)?);
            base.inputs.push(x);
        }
        self.bases[text] = Some(base);
        Ok(())
    }
}

/// The first layer in which two profiles differ.
fn first_difference(a: &[Vec<HeadPolicy>], b: &[Vec<HeadPolicy>]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

impl Engine for ModelEngine<'_> {
    type Error = String;

    fn layers(&self) -> usize {
        self.model.config().layers
    }

    fn q_heads(&self) -> usize {
        self.model.config().q_heads
    }

    fn texts(&self) -> usize {
        self.texts.len()
    }

    fn run(&mut self, heads: &[Vec<HeadPolicy>], text: usize) -> Result<Run, String> {
        let layers = self.layers();
        if self.adopted.len() != layers {
            self.adopted = heads.to_vec();
        }
        let rotary = self.model.rotary(self.texts[text].len());
        self.bring_up(text, &rotary)?;
        let base = self.bases[text].as_ref().ok_or("the base was just made")?;
        // The base ends before the last layer, which runs in any case.
        let first = first_difference(&base.heads, heads).min(layers - 1);
        let mut cost: f64 = base.costs[..first].iter().sum();
        let mut x = base.inputs[first].clone();
        for layer in first..layers {
            cost += self.layer(heads, layer, &rotary, &mut x)?;
        }
        let mut logits = self.model.logits(&x);
        logits.chunks_exact_mut(VOCABULARY).for_each(log_softmax);
        Ok(Run::new(logits, VOCABULARY, cost / layers as f64))
    }

    fn adopt(&mut self, heads: &[Vec<HeadPolicy>]) {
        self.adopted = heads.to_vec();
    }
}

/// Logits to natural logarithms of probabilities.
fn log_softmax(row: &mut [f32]) {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = row.iter().map(|&x| f64::from(x - max).exp()).sum();
    let log_sum = f64::from(max) + sum.ln();
    row.iter_mut()
        .for_each(|x| *x = (f64::from(*x) - log_sum) as f32);
}
