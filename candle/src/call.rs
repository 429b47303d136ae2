//! What a call asks for, apart from the device.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{Layout, Result, Storage, Tensor, bail};

use crate::policies::Visible;
use crate::view::{View, check_kv};

/// What a call computes, beyond q, k and v.
#[derive(Clone, Debug)]
pub(crate) struct Attention {
    pub(crate) softmax_scale: f32,
    pub(crate) visible: Visible,
    /// Where sequences are packed; `None` for a batch of equal lengths.
    pub(crate) packed: Option<Packed>,
}

/// The lengths of packed sequences.
#[derive(Clone, Debug)]
pub(crate) struct Packed {
    /// \[sequences + 1\]: cumulative queries.
    pub(crate) seqlens_q: Tensor,
    /// \[sequences + 1\]: cumulative keys, of pages too.
    pub(crate) seqlens_k: Tensor,
    pub(crate) max_seqlen_q: usize,
    pub(crate) max_seqlen_k: usize,
    pub(crate) pages: Option<Pages>,
}

/// Where the keys of each sequence lie.
#[derive(Clone, Debug)]
pub(crate) struct Pages {
    /// \[sequences, most pages of one\].
    pub(crate) block_table: Tensor,
    pub(crate) page_tokens: usize,
}

impl Packed {
    /// Sequences whose keys and values are packed too.
    pub(crate) fn new(
        seqlens_q: &Tensor,
        seqlens_k: &Tensor,
        max_seqlen_q: usize,
        max_seqlen_k: usize,
    ) -> Self {
        Packed {
            seqlens_q: seqlens_q.clone(),
            seqlens_k: seqlens_k.clone(),
            max_seqlen_q,
            max_seqlen_k,
            pages: None,
        }
    }

    /// The same sequences, with keys and values in pages.
    pub(crate) fn in_pages(self, block_table: &Tensor, page_tokens: usize) -> Self {
        let pages = Pages {
            block_table: block_table.clone(),
            page_tokens,
        };
        Packed {
            pages: Some(pages),
            ..self
        }
    }
}

/// Views of q, k and v.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Views {
    pub(crate) q: View,
    pub(crate) k: View,
    pub(crate) v: View,
}

impl Attention {
    /// # Errors
    /// Tensors that do not fit each other.
    pub(crate) fn views(&self, q: &Layout, k: &Layout, v: &Layout) -> Result<Views> {
        let pages = self.packed.as_ref().map(|packed| packed.pages.as_ref());
        let views = match pages {
            None => Views {
                q: View::batched("q", q)?,
                k: View::batched("k", k)?,
                v: View::batched("v", v)?,
            },
            Some(None) => Views {
                q: View::packed("q", q)?,
                k: View::packed("k", k)?,
                v: View::packed("v", v)?,
            },
            Some(Some(pages)) => {
                let views = Views {
                    q: View::packed("q", q)?,
                    k: View::batched("k", k)?,
                    v: View::batched("v", v)?,
                };
                if views.k.len() != pages.page_tokens {
                    bail!(
                        "page_block_size is {}, but k has pages of {} tokens (shape {:?})",
                        pages.page_tokens,
                        views.k.len(),
                        k.dims()
                    )
                }
                views
            }
        };
        check_kv(&views.q, &views.k, &views.v)?;
        if pages.is_none() && views.q.shape[0] != views.k.shape[0] {
            bail!(
                "q has a batch of {}, k and v one of {}",
                views.q.shape[0],
                views.k.shape[0]
            )
        }
        Ok(views)
    }
}

/// Where an op leaves its second result, since a custom op returns one.
#[derive(Clone, Default)]
pub(crate) struct LseSlot(Arc<Mutex<Option<Storage>>>);

impl LseSlot {
    pub(crate) fn put(&self, lse: Storage) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(lse);
    }

    pub(crate) fn take(&self) -> Option<Storage> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
