//! How far the sparse model's predictions are from the dense one's.

use candle_core::{D, Tensor};
use candle_nn::ops::log_softmax;

use crate::failure::Failure;
use crate::model::Model;

/// Means over the prompt's tokens but the last, in bits.
#[derive(Clone, Copy, Debug, Default)]
pub struct Compared {
    /// −log2 of the probability of the token that follows.
    pub dense_loss: f64,
    pub sparse_loss: f64,
    /// Of the sparse distribution from the dense one.
    pub kl: f64,
    /// Share of tokens whose likeliest successor is the same.
    pub same: f64,
}

/// Logits of this many tokens at a time: of a large vocabulary those of a whole prompt take gigabytes.
const TOKENS: usize = 256;

/// # Errors
/// The model's ops'.
pub fn compare(
    model: &Model,
    dense: &Tensor,
    sparse: &Tensor,
    tokens: &[u32],
) -> Result<Compared, Failure> {
    let count = tokens.len().saturating_sub(1);
    let mut sums = Compared::default();
    for from in (0..count).step_by(TOKENS) {
        let len = TOKENS.min(count - from);
        let log_p = log_softmax(&model.logits(&dense.narrow(0, from, len)?)?, D::Minus1)?;
        let log_q = log_softmax(&model.logits(&sparse.narrow(0, from, len)?)?, D::Minus1)?;
        let next = Tensor::new(&tokens[from + 1..=from + len], model.device())?.unsqueeze(1)?;
        sums.dense_loss -= sum(&log_p.gather(&next, 1)?)?;
        sums.sparse_loss -= sum(&log_q.gather(&next, 1)?)?;
        sums.kl += sum(&(log_p.exp()? * (&log_p - &log_q)?)?)?;
        let (of_p, of_q) = (log_p.argmax(1)?, log_q.argmax(1)?);
        sums.same += sum(&of_p.eq(&of_q)?)?;
    }
    let nats = count.max(1) as f64;
    let bits = nats * std::f64::consts::LN_2;
    Ok(Compared {
        dense_loss: sums.dense_loss / bits,
        sparse_loss: sums.sparse_loss / bits,
        kl: sums.kl / bits,
        same: sums.same / nats,
    })
}

fn sum(tensor: &Tensor) -> candle_core::Result<f64> {
    let tensor = tensor.to_dtype(candle_core::DType::F64)?;
    tensor.sum_all()?.to_scalar()
}
