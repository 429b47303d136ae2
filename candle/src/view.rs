//! candle's layouts as the library's: shape and strides of [batch, heads, tokens, head_dim].

use candle_core::{Layout, Result, bail};

/// Where a tensor's elements lie in its storage.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View {
    /// \[batch, heads, tokens, head_dim\].
    pub(crate) shape: [usize; 4],
    /// In elements, of the same.
    pub(crate) strides: [usize; 4],
    /// The first element.
    pub(crate) start: usize,
}

impl View {
    /// Of a tensor [batch, tokens, heads, head_dim]; pages are a batch of their tokens.
    pub(crate) fn batched(name: &str, layout: &Layout) -> Result<Self> {
        let (&[batch, tokens, heads, head_dim], &[of_batch, of_token, of_head, of_element]) =
            (layout.dims(), layout.stride())
        else {
            bail!(
                "{name} has shape {:?}: it must be [batch, tokens, heads, head_dim]",
                layout.dims()
            )
        };
        Self::checked(
            name,
            View {
                shape: [batch, heads, tokens, head_dim],
                strides: [of_batch, of_head, of_token, of_element],
                start: layout.start_offset(),
            },
        )
    }

    /// Of a packed tensor [tokens, heads, head_dim]: one sequence after the other.
    pub(crate) fn packed(name: &str, layout: &Layout) -> Result<Self> {
        let (&[tokens, heads, head_dim], &[of_token, of_head, of_element]) =
            (layout.dims(), layout.stride())
        else {
            bail!(
                "{name} has shape {:?}: packed sequences must be [tokens, heads, head_dim]",
                layout.dims()
            )
        };
        Self::checked(
            name,
            View {
                shape: [1, heads, tokens, head_dim],
                strides: [0, of_head, of_token, of_element],
                start: layout.start_offset(),
            },
        )
    }

    fn checked(name: &str, view: View) -> Result<Self> {
        if view.strides[3] != 1 && view.shape[3] > 1 {
            bail!(
                "the last dimension of {name} must be contiguous, and its stride is {}: call contiguous() on it",
                view.strides[3]
            )
        }
        Ok(view)
    }

    pub(crate) fn len(&self) -> usize {
        self.shape[2]
    }

    pub(crate) fn heads(&self) -> usize {
        self.shape[1]
    }

    pub(crate) fn head_dim(&self) -> usize {
        self.shape[3]
    }
}

/// Whether values are as keys, and both fit the queries; the batch is the caller's to compare.
pub(crate) fn check_kv(q: &View, k: &View, v: &View) -> Result<()> {
    if k.shape != v.shape {
        bail!(
            "k and v differ in shape: {:?} and {:?} (batch, heads, tokens, head_dim)",
            k.shape,
            v.shape
        )
    }
    if q.head_dim() != k.head_dim() {
        bail!(
            "q and k differ in head_dim: {} and {}",
            q.head_dim(),
            k.head_dim()
        )
    }
    Ok(())
}
