//! The model's heads one layer at a time, after dense layers: the error of each head's output through the output projection.

use sample_attention::calibrate::{HeadErrors, Measured};
use sample_attention::{HeadPlan, HeadPolicy, Inputs, Outputs, Problem, TensorViewMut};

use crate::quality::attention::{By, Planned, RowCoverage};
use crate::quality::layers::{Rotary, project};
use crate::quality::model::{Attention, Model, Qkv};
use crate::quality::weights::Matrix;

/// A model, the texts that it is calibrated on, and where it is in them.
pub struct ModelErrors<'a> {
    model: &'a Model,
    texts: &'a [Vec<u8>],
    at: Option<At>,
}

/// One layer of one text.
struct At {
    text: usize,
    layer: usize,
    rotary: Rotary,
    /// The residual stream before the layer.
    x: Vec<f32>,
    qkv: Qkv,
    /// Dense attention's output.
    dense: Vec<f32>,
    /// Each head's columns of the output projection.
    projections: Vec<Matrix>,
}

impl<'a> ModelErrors<'a> {
    pub fn new(model: &'a Model, texts: &'a [Vec<u8>]) -> Self {
        ModelErrors {
            model,
            texts,
            at: None,
        }
    }

    fn enter(
        &self,
        (text, layer): (usize, usize),
        rotary: Rotary,
        x: Vec<f32>,
    ) -> Result<At, String> {
        let watch = |_| -> Box<dyn sample_attention::Progress> { Box::new(()) };
        let mut attention = Planned::new(By::Dense, RowCoverage::Skipped, &watch);
        let qkv = self.model.qkv(layer, &rotary, &x);
        let mut dense = vec![0f32; qkv.q.len()];
        self.model.attend(layer, &qkv, &mut dense, &mut attention)?;
        let config = self.model.config();
        let whole = self.model.output_projection(layer);
        let of_head = |head: usize| {
            let rows = whole.data.chunks_exact(whole.inputs);
            let own = head * config.head_dim..(head + 1) * config.head_dim;
            Matrix {
                outputs: whole.outputs,
                inputs: config.head_dim,
                data: rows
                    .flat_map(|row| row[own.clone()].iter().copied())
                    .collect(),
            }
        };
        Ok(At {
            text,
            layer,
            rotary,
            x,
            qkv,
            dense,
            projections: (0..config.q_heads).map(of_head).collect(),
        })
    }

    /// The layer of the text, from the layer beneath where that is at hand.
    fn go_to(&mut self, text: usize, layer: usize) -> Result<At, String> {
        let mut at = match self.at.take() {
            Some(at) if at.text == text && at.layer <= layer => at,
            _ => {
                let rotary = self.model.rotary(self.texts[text].len());
                self.enter((text, 0), rotary, self.model.embed(&self.texts[text]))?
            }
        };
        while at.layer < layer {
            let At {
                layer: beneath,
                rotary,
                mut x,
                dense,
                ..
            } = at;
            self.model.after_attention(beneath, &dense, &mut x);
            at = self.enter((text, beneath + 1), rotary, x)?;
        }
        Ok(at)
    }
}

/// Attention of one layer by one policy for all its heads, and what each keeps.
struct AllBy<'a> {
    policy: &'a HeadPolicy,
    densities: Vec<f64>,
}

impl Attention for AllBy<'_> {
    fn attend(
        &mut self,
        layer: usize,
        problem: Problem,
        inputs: &Inputs<'_>,
        o: TensorViewMut<'_>,
    ) -> Result<(), String> {
        let policies = vec![*self.policy; problem.q_heads];
        let report = HeadPlan::new(problem, &policies).and_then(|plan| {
            let mut workspace = vec![0; plan.workspace_bytes()];
            plan.run(inputs, Outputs::new(o), &mut workspace)
        });
        let report = report.map_err(|error| format!("layer {layer}: {error}"))?;
        self.densities = report.heads.iter().map(|head| head.density).collect();
        Ok(())
    }
}

impl HeadErrors for ModelErrors<'_> {
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

    fn layer_errors(
        &mut self,
        text: usize,
        layer: usize,
        policy: &HeadPolicy,
    ) -> Result<Vec<Measured>, String> {
        let at = self.go_to(text, layer)?;
        let mut by = AllBy {
            policy,
            densities: Vec::new(),
        };
        let mut o = vec![0f32; at.dense.len()];
        self.model.attend(layer, &at.qkv, &mut o, &mut by)?;
        let positions = self.texts[text].len();
        let sampling = policy.sampling_cost(&self.model.problem(positions));
        let (dim, heads) = (self.model.config().head_dim, at.projections.len());
        let stream = mean_square(&at.x);
        let errors = at.projections.iter().enumerate().map(|(head, projection)| {
            let rows = o
                .chunks_exact(heads * dim)
                .zip(at.dense.chunks_exact(heads * dim));
            let own = head * dim..(head + 1) * dim;
            let off: Vec<f32> = rows
                .flat_map(|(o, dense)| o[own.clone()].iter().zip(&dense[own.clone()]))
                .map(|(o, dense)| o - dense)
                .collect();
            let mut added = vec![0.0; positions * projection.outputs];
            project(&off, projection, &mut added);
            Measured::new(mean_square(&added) / stream, by.densities[head] + sampling)
        });
        let errors = errors.collect();
        self.at = Some(at);
        Ok(errors)
    }
}

fn mean_square(x: &[f32]) -> f64 {
    x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / x.len() as f64
}
