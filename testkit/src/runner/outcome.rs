//! What a run gave.

use super::Found;
use crate::oracle::Mask;
use crate::tensor::Tensor;

/// What a run gave.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// O as [batch, q_heads, q_len, head_dim]; widening to f32 keeps every bit of a 16-bit output.
    pub o: Tensor,
    /// LSE as [batch, q_heads, q_len].
    pub lse: Vec<f32>,
    /// The mask that was attended to.
    pub mask: Mask,
    /// What the backend tells of its selection.
    pub found: Found,
}

impl Outcome {
    /// Everything that has to be the same when nothing but speed was changed, as bits.
    pub fn bits(&self) -> Vec<u32> {
        self.o
            .values
            .iter()
            .chain(&self.lse)
            .map(|x| x.to_bits())
            .collect()
    }
}
