//! What to compute, apart from the data: sizes, scale, mask kind and element type.

pub use crate::dtype::{Dtype, MAX_HEAD_DIM, MAX_SCALE};
use crate::error::{Error, Result};
use crate::shape::swap_middle;

/// One attention problem: Q [batch, q_heads, q_len, head_dim] against K and V [batch, kv_heads, k_len, head_dim].
///
/// Query head `h` reads key/value head `h / (q_heads / kv_heads)` (grouped-query attention).
/// Query `i` stands at key position `i + k_len - q_len`: the last query sees the last key
/// (bottom-right causal alignment), so a chunk of a prompt and a whole prompt are the same problem.
///
/// ```
/// use sample_attention::{Dtype, Problem};
/// // The last 2048 of 8192 tokens: 32 query heads share 8 key/value heads.
/// let problem = Problem::causal(8192, 128, Dtype::Bf16).with_heads(32, 8).with_q_len(2048);
/// assert_eq!(problem.softmax_scale, 1.0 / 128f32.sqrt());
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Problem {
    /// Independent sequences.
    pub batch: usize,
    /// Query heads of each sequence.
    pub q_heads: usize,
    /// Key/value heads of each sequence; divides `q_heads`.
    pub kv_heads: usize,
    /// Queries of each head.
    pub q_len: usize,
    /// Keys of each head.
    pub k_len: usize,
    /// Elements of one query, key or value: a multiple of 8, at most 256.
    pub head_dim: usize,
    /// Factor on q·k before the softmax: of any sign, at most [`MAX_SCALE`] in magnitude. 0 is even attention.
    pub softmax_scale: f32,
    /// Whether query `i` sees only keys `j <= i + k_len - q_len`. Without it every query sees every key, and
    /// only dense attention and the caller's own selections are defined.
    pub causal: bool,
    /// A model's own sliding window (`window_size_left`): query `i` sees no key before `i + k_len - q_len - window_left`, whatever
    /// else is selected. `None` has no window.
    pub window_left: Option<usize>,
    /// Scaled scores s become `softcap · tanh(s / softcap)`. `None` leaves them alone.
    pub softcap: Option<f32>,
    /// Element type of Q, K and V.
    pub dtype: Dtype,
}

/// Sampled mass, keys and blocks are counted in 32 bits, with head-room for sums.
const MAX_LEN: usize = 1 << 30;

impl Problem {
    /// Causal self-attention of one head over `len` tokens, with the usual scale 1/√head_dim;
    /// `with_…` methods set the other fields.
    pub fn causal(len: usize, head_dim: usize, dtype: Dtype) -> Self {
        Problem {
            batch: 1,
            q_heads: 1,
            kv_heads: 1,
            q_len: len,
            k_len: len,
            head_dim,
            softmax_scale: 1.0 / (head_dim as f32).sqrt(),
            causal: true,
            window_left: None,
            softcap: None,
            dtype,
        }
    }

    /// The same problem with this many sequences.
    pub fn with_batch(self, batch: usize) -> Self {
        Problem { batch, ..self }
    }

    /// The same problem with this many query and key/value heads.
    pub fn with_heads(self, q_heads: usize, kv_heads: usize) -> Self {
        Problem {
            q_heads,
            kv_heads,
            ..self
        }
    }

    /// The same problem for the last `q_len` tokens: a chunk of a prompt.
    pub fn with_q_len(self, q_len: usize) -> Self {
        Problem { q_len, ..self }
    }

    /// The same problem with this many keys.
    pub fn with_k_len(self, k_len: usize) -> Self {
        Problem { k_len, ..self }
    }

    /// The same problem with another factor on q·k.
    pub fn with_softmax_scale(self, softmax_scale: f32) -> Self {
        Problem {
            softmax_scale,
            ..self
        }
    }

    /// The same problem, causal or not.
    pub fn with_causal(self, causal: bool) -> Self {
        Problem { causal, ..self }
    }

    /// The same problem with another [`Problem::window_left`].
    pub fn with_window_left(self, window_left: impl Into<Option<usize>>) -> Self {
        Problem {
            window_left: window_left.into(),
            ..self
        }
    }

    /// The same problem with another [`Problem::softcap`].
    pub fn with_softcap(self, softcap: impl Into<Option<f32>>) -> Self {
        Problem {
            softcap: softcap.into(),
            ..self
        }
    }

    /// The same problem in another element type.
    pub fn with_dtype(self, dtype: Dtype) -> Self {
        Problem { dtype, ..self }
    }

    /// Query heads that share one key/value head; 0 where there are no key/value heads, which no plan takes.
    pub fn group_size(&self) -> usize {
        self.q_heads.checked_div(self.kv_heads).unwrap_or(0)
    }

    /// Shape of Q and O as [batch, heads, length, head_dim].
    pub fn q_shape(&self) -> [usize; 4] {
        [self.batch, self.q_heads, self.q_len, self.head_dim]
    }

    /// Shape of K and V as [batch, heads, length, head_dim].
    pub fn kv_shape(&self) -> [usize; 4] {
        [self.batch, self.kv_heads, self.k_len, self.head_dim]
    }

    /// Shape of Q and O in memory order [batch, length, heads, head_dim], as [`TensorView::bshd`](crate::TensorView::bshd)
    /// takes it.
    pub fn q_shape_bshd(&self) -> [usize; 4] {
        swap_middle(self.q_shape())
    }

    /// Shape of K and V in memory order [batch, length, heads, head_dim].
    pub fn kv_shape_bshd(&self) -> [usize; 4] {
        swap_middle(self.kv_shape())
    }

    /// Elements of the log-sum-exp output, laid out as [batch, q_heads, q_len]. `usize::MAX` where there are more, in a problem
    /// that no plan takes.
    pub fn lse_len(&self) -> usize {
        self.batch
            .saturating_mul(self.q_heads)
            .saturating_mul(self.q_len)
    }

    /// Sequences times query heads.
    pub(crate) fn heads(&self) -> usize {
        self.batch.saturating_mul(self.q_heads)
    }

    /// Factor on q·k that gives scores in the log2 domain.
    pub(crate) fn scale_log2(&self) -> f64 {
        f64::from(self.softmax_scale) * std::f64::consts::LOG2_E
    }

    pub(crate) fn check_lse(&self, given: usize) -> Result<()> {
        let expected = self.lse_len();
        if given != expected {
            return Err(Error::LseLen { expected, given });
        }
        Ok(())
    }

    /// Whether every size is in its range, as each plan asks. It starts no thread.
    ///
    /// # Errors
    /// What is out of range.
    pub fn validate(&self) -> Result<()> {
        let sizes = [
            ("batch", self.batch),
            ("q_heads", self.q_heads),
            ("kv_heads", self.kv_heads),
            ("q_len", self.q_len),
            ("k_len", self.k_len),
            ("head_dim", self.head_dim),
        ];
        if let Some((name, _)) = sizes.into_iter().find(|(_, size)| *size == 0) {
            return Err(Error::ZeroSize { name });
        }
        if !self.q_heads.is_multiple_of(self.kv_heads) {
            return Err(Error::HeadsNotDivisible {
                q_heads: self.q_heads,
                kv_heads: self.kv_heads,
            });
        }
        if !self.head_dim.is_multiple_of(8) || self.head_dim > MAX_HEAD_DIM {
            return Err(Error::HeadDim {
                head_dim: self.head_dim,
            });
        }
        // Written so that NaN fails too.
        let in_range = self.softmax_scale.abs() <= MAX_SCALE;
        if !in_range {
            return Err(Error::Scale {
                scale: self.softmax_scale,
            });
        }
        if let Some(softcap) = self.softcap
            && !(softcap > 0.0 && softcap.is_finite() && (2.0 / softcap).is_finite())
        {
            return Err(Error::Softcap { softcap });
        }
        for (name, len) in [("q_len", self.q_len), ("k_len", self.k_len)] {
            if len > MAX_LEN {
                return Err(Error::TooLong {
                    name,
                    len,
                    max: MAX_LEN,
                });
            }
        }
        // Both element counts bound every index and byte count of tensors: 16 bytes an element is more than any buffer has.
        // What grows with q_heads · k_len is checked where it is made: the lists of a selection and the workspace.
        for shape in [self.q_shape(), self.kv_shape()] {
            shape
                .iter()
                .try_fold(16usize, |product, &size| product.checked_mul(size))
                .filter(|&bytes| bytes <= isize::MAX as usize)
                .ok_or(Error::SizeOverflow { shape })?;
        }
        Ok(())
    }
}
