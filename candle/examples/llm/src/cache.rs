//! Keys and values of the tokens so far, of one layer: in one piece or in pages.

use candle_core::{DType, Device, Result, Tensor};

/// How the cache of a layer lies in memory, for a given number of tokens.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub capacity: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Tokens of a page; 0 for one piece.
    pub page: usize,
    pub dtype: DType,
}

/// The cache of one layer.
pub struct Cache {
    /// \[slots, kv_heads, head_dim\]; pages are `page` slots each.
    k: Tensor,
    v: Tensor,
    page: usize,
    /// Page that holds tokens i · page ..
    table: Vec<u32>,
    len: usize,
}

/// What attention reads.
pub enum Keys {
    /// k and v [1, tokens, kv_heads, head_dim].
    Whole { k: Tensor, v: Tensor },
    /// k and v [pages, page, kv_heads, head_dim], and the page numbers [1, pages].
    Paged {
        k: Tensor,
        v: Tensor,
        table: Tensor,
        page: usize,
    },
}

impl Cache {
    pub fn new(shape: &Shape, device: &Device) -> Result<Self> {
        let pages = match shape.page {
            0 => 0,
            page => shape.capacity.div_ceil(page),
        };
        let slots = shape.capacity.max(pages * shape.page);
        let zeros = || Tensor::zeros((slots, shape.kv_heads, shape.head_dim), shape.dtype, device);
        Ok(Cache {
            k: zeros()?,
            v: zeros()?,
            page: shape.page,
            // From the last to the first: as little in order as a pool in use.
            table: (0..pages as u32).rev().collect(),
            len: 0,
        })
    }

    pub fn bytes(&self) -> usize {
        2 * self.k.elem_count() * self.k.dtype().size_in_bytes()
    }

    /// Appends [tokens, kv_heads, head_dim].
    pub fn append(&mut self, k: &Tensor, v: &Tensor) -> Result<()> {
        let tokens = k.dim(0)?;
        let mut from = 0;
        while from < tokens {
            let at = self.len + from;
            let (slot, room) = match self.page {
                0 => (at, tokens - from),
                page => (
                    self.table[at / page] as usize * page + at % page,
                    page - at % page,
                ),
            };
            let len = room.min(tokens - from);
            self.k
                .slice_set(&k.narrow(0, from, len)?.contiguous()?, 0, slot)?;
            self.v
                .slice_set(&v.narrow(0, from, len)?.contiguous()?, 0, slot)?;
            from += len;
        }
        self.len += tokens;
        Ok(())
    }

    /// Everything so far, without a copy.
    pub fn keys(&self) -> Result<Keys> {
        if self.page == 0 {
            let of = |t: &Tensor| t.narrow(0, 0, self.len)?.unsqueeze(0);
            return Ok(Keys::Whole {
                k: of(&self.k)?,
                v: of(&self.v)?,
            });
        }
        let pages = self.len.div_ceil(self.page);
        let (slots, kv_heads, head_dim) = self.k.dims3()?;
        let shape = (slots / self.page, self.page, kv_heads, head_dim);
        let table = Tensor::from_slice(&self.table[..pages], (1, pages), self.k.device())?;
        Ok(Keys::Paged {
            k: self.k.reshape(shape)?,
            v: self.v.reshape(shape)?,
            table,
            page: self.page,
        })
    }

    pub fn len(&self) -> usize {
        self.len
    }
}
