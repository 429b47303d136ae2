//! What a plan knows of a ragged batch before it sees the lengths.

use super::seqlens::SeqLens;
use crate::error::{Error, Result};
use crate::problem::{Dtype, Problem};

/// Upper bounds of a ragged batch: a plan for them serves any lengths within them, and a captured graph of it replays with others.
///
/// ```
/// use sample_attention::{Dtype, SeqLens, VarlenBounds};
/// let cu_seqlens_q = [0u32, 300, 301];
/// let cu_seqlens_k = [0u32, 300, 812];
/// let bounds = VarlenBounds::causal(2, 512, 128, Dtype::Bf16).with_heads(32, 8);
/// let exact = bounds.within(SeqLens::cumulative(&cu_seqlens_q), SeqLens::cumulative(&cu_seqlens_k))?;
/// assert_eq!((exact.total_q, exact.max_seqlen_q, exact.max_seqlen_k), (301, 300, 512));
/// # Ok::<(), sample_attention::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct VarlenBounds {
    /// Sequences.
    pub sequences: usize,
    /// Query heads; a multiple of `kv_heads`.
    pub q_heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Elements of one query, key or value.
    pub head_dim: usize,
    /// Queries of all sequences together.
    pub total_q: usize,
    /// Queries of the longest sequence.
    pub max_seqlen_q: usize,
    /// Keys of the longest sequence.
    pub max_seqlen_k: usize,
    /// Element type of Q, K and V.
    pub dtype: Dtype,
    /// Factor on q·k before the softmax, as in [`Problem`].
    pub softmax_scale: f32,
    /// A model's own sliding window, as in [`Problem`].
    pub window_left: Option<usize>,
    /// As in [`Problem`].
    pub softcap: Option<f32>,
    /// Whether query `i` of a sequence sees only the sequence's keys `j <= i + k_len - q_len`.
    pub causal: bool,
}

impl VarlenBounds {
    /// Causal self-attention of one head over sequences of up to `max_seqlen` tokens each, with the usual scale 1/√head_dim; `with_…`
    /// methods set the other fields.
    pub fn causal(sequences: usize, max_seqlen: usize, head_dim: usize, dtype: Dtype) -> Self {
        let problem = Problem::causal(max_seqlen, head_dim, dtype);
        VarlenBounds {
            sequences,
            q_heads: 1,
            kv_heads: 1,
            head_dim,
            total_q: sequences.saturating_mul(max_seqlen),
            max_seqlen_q: max_seqlen,
            max_seqlen_k: max_seqlen,
            dtype,
            softmax_scale: problem.softmax_scale,
            window_left: None,
            softcap: None,
            causal: true,
        }
    }

    /// The same bounds for this many query and key/value heads.
    pub fn with_heads(self, q_heads: usize, kv_heads: usize) -> Self {
        VarlenBounds {
            q_heads,
            kv_heads,
            ..self
        }
    }

    /// The same bounds for sequences of up to this many queries; as many as all have together at most.
    pub fn with_max_seqlen_q(self, max_seqlen_q: usize) -> Self {
        VarlenBounds {
            max_seqlen_q,
            total_q: self.sequences.saturating_mul(max_seqlen_q),
            ..self
        }
    }

    /// The same bounds for sequences of up to this many keys.
    pub fn with_max_seqlen_k(self, max_seqlen_k: usize) -> Self {
        VarlenBounds {
            max_seqlen_k,
            ..self
        }
    }

    /// The same bounds with at most this many queries of all sequences together.
    pub fn with_total_q(self, total_q: usize) -> Self {
        VarlenBounds { total_q, ..self }
    }

    /// The same bounds with another factor on q·k.
    pub fn with_softmax_scale(self, softmax_scale: f32) -> Self {
        VarlenBounds {
            softmax_scale,
            ..self
        }
    }

    /// The same bounds, causal or not.
    pub fn with_causal(self, causal: bool) -> Self {
        VarlenBounds { causal, ..self }
    }

    /// The same bounds with another [`VarlenBounds::window_left`].
    pub fn with_window_left(self, window_left: impl Into<Option<usize>>) -> Self {
        VarlenBounds {
            window_left: window_left.into(),
            ..self
        }
    }

    /// The same bounds with another [`VarlenBounds::softcap`].
    pub fn with_softcap(self, softcap: impl Into<Option<f32>>) -> Self {
        VarlenBounds {
            softcap: softcap.into(),
            ..self
        }
    }

    /// The same heads and element type, and the least bounds that these lengths are within.
    ///
    /// # Errors
    /// Lengths that are not lengths: see [`SeqLens`].
    pub fn within(self, seqlens_q: SeqLens<'_>, seqlens_k: SeqLens<'_>) -> Result<Self> {
        let sequences = seqlens_q.sequences();
        let q = seqlens_q.ranges("seqlens_q", sequences)?;
        let k = seqlens_k.ranges("seqlens_k", sequences)?;
        let longest = |ranges: &[std::ops::Range<usize>]| ranges.iter().map(|r| r.len()).max();
        Ok(VarlenBounds {
            sequences,
            total_q: q.last().map_or(0, |last| last.end),
            max_seqlen_q: longest(&q).unwrap_or(0),
            max_seqlen_k: longest(&k).unwrap_or(0),
            ..self
        })
    }

    /// The problem of one sequence with these lengths.
    pub(crate) fn sequence(&self, q_len: usize, k_len: usize) -> Problem {
        Problem {
            q_heads: self.q_heads,
            kv_heads: self.kv_heads,
            q_len,
            softmax_scale: self.softmax_scale,
            causal: self.causal,
            window_left: self.window_left,
            softcap: self.softcap,
            ..Problem::causal(k_len, self.head_dim, self.dtype)
        }
    }

    /// All sequences as long as there could be any.
    pub(crate) fn padded(&self) -> Problem {
        self.sequence(self.max_seqlen_q, self.max_seqlen_k)
            .with_batch(self.sequences)
    }

    /// Whether every size is in its range, as each plan asks. Lengths may be 0: such sequences have nothing to do.
    ///
    /// # Errors
    /// What is out of range.
    pub fn validate(&self) -> Result<()> {
        let sequence = self.sequence(self.max_seqlen_q.max(1), self.max_seqlen_k.max(1));
        sequence.with_batch(self.sequences).validate()?;
        let max = self.sequences * self.max_seqlen_q;
        if self.total_q > max {
            return Err(Error::TooLong {
                name: "total_q",
                len: self.total_q,
                max,
            });
        }
        Ok(())
    }
}
