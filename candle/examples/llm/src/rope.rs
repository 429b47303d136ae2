//! Rotary position embedding, in the half-split form.

use candle_core::{DType, Device, Tensor};

use crate::config::{Config, RopeScaling};
use crate::failure::Failure;

/// Cosines and sines of positions 0 ..
pub struct Rope {
    /// \[positions, head_dim / 2\].
    cos: Tensor,
    sin: Tensor,
}

impl Rope {
    /// # Errors
    /// A kind of scaling that is not known.
    pub fn new(
        config: &Config,
        positions: usize,
        dtype: DType,
        device: &Device,
    ) -> Result<Self, Failure> {
        let frequencies = frequencies(config)?;
        let half = frequencies.len();
        let mut cos = Vec::with_capacity(positions * half);
        let mut sin = Vec::with_capacity(positions * half);
        for position in 0..positions {
            for frequency in &frequencies {
                // In f64: at position 100,000 an f32 angle has lost its fourth digit.
                let angle = position as f64 * frequency;
                cos.push(angle.cos() as f32);
                sin.push(angle.sin() as f32);
            }
        }
        let tensor =
            |values: Vec<f32>| Tensor::from_vec(values, (positions, half), device)?.to_dtype(dtype);
        Ok(Rope {
            cos: tensor(cos)?,
            sin: tensor(sin)?,
        })
    }

    /// Turns [1, tokens, heads, head_dim] whose first token stands at `position`.
    pub fn apply(&self, x: &Tensor, position: usize) -> candle_core::Result<Tensor> {
        let tokens = x.dim(1)?;
        let cos = self.cos.narrow(0, position, tokens)?;
        let sin = self.sin.narrow(0, position, tokens)?;
        candle_nn::rotary_emb::rope_thd(x, &cos, &sin)
    }
}

/// Radians a position, of each pair of elements.
fn frequencies(config: &Config) -> Result<Vec<f64>, Failure> {
    let head_dim = config.head_dim();
    let theta = config.rope_theta();
    let plain = (0..head_dim / 2).map(|pair| theta.powf(-2.0 * pair as f64 / head_dim as f64));
    let Some(scaling) = &config.rope_scaling else {
        return Ok(plain.collect());
    };
    match scaling.rope_type.as_deref() {
        None | Some("default") => Ok(plain.collect()),
        Some("linear") => {
            let factor = needed(scaling.factor, "factor")?;
            Ok(plain.map(|frequency| frequency / factor).collect())
        }
        Some("llama3") => plain.map(|frequency| llama3(frequency, scaling)).collect(),
        Some(other) => Err(Failure::new(format_args!(
            "config.json: rope_type {other:?} is not supported; these are: default, linear, llama3"
        ))),
    }
}

/// Llama 3: waves that are short beside the context of the training stay, long ones are stretched, those between are mixed.
fn llama3(frequency: f64, scaling: &RopeScaling) -> Result<f64, Failure> {
    let factor = needed(scaling.factor, "factor")?;
    let low = needed(scaling.low_freq_factor, "low_freq_factor")?;
    let high = needed(scaling.high_freq_factor, "high_freq_factor")?;
    let context = needed(
        scaling.original_max_position_embeddings,
        "original_max_position_embeddings",
    )?;
    // How many whole waves the context holds.
    let waves = context * frequency / std::f64::consts::TAU;
    let kept = ((waves - low) / (high - low)).clamp(0.0, 1.0);
    Ok(kept * frequency + (1.0 - kept) * frequency / factor)
}

fn needed(value: Option<f64>, name: &str) -> Result<f64, Failure> {
    value
        .filter(|value| value.is_finite() && *value > 0.0)
        .ok_or_else(|| {
            Failure::new(format_args!(
                "config.json: rope_scaling needs {name}, a number above 0"
            ))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers of Llama 3.1's config, by the formula of its reference code.
    #[test]
    fn llama3_keeps_short_waves_and_stretches_long_ones() {
        let scaling = RopeScaling {
            rope_type: Some("llama3".to_owned()),
            rope_theta: None,
            factor: Some(8.0),
            low_freq_factor: Some(1.0),
            high_freq_factor: Some(4.0),
            original_max_position_embeddings: Some(8192.0),
        };
        let of_wavelength =
            |wavelength: f64| llama3(std::f64::consts::TAU / wavelength, &scaling).unwrap();
        let plain = |wavelength: f64| std::f64::consts::TAU / wavelength;
        assert_eq!(of_wavelength(2000.0), plain(2000.0));
        assert_eq!(of_wavelength(9000.0), plain(9000.0) / 8.0);
        let smooth = (8192.0 / 4096.0 - 1.0) / 3.0;
        let mixed = (1.0 - smooth) * plain(4096.0) / 8.0 + smooth * plain(4096.0);
        assert!((of_wavelength(4096.0) / mixed - 1.0).abs() < 1e-12);
    }
}
