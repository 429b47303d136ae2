//! Keys or values of a call, wherever its tokens lie.

use crate::tensor::{Slice, TensorView};

/// Keys or values of some sequences: strided [batch, heads, tokens, head_dim], or those of one sequence in pages.
#[derive(Clone, Copy)]
pub(crate) struct KvView<'a> {
    rows: TensorView<'a>,
    /// Pages of the one sequence, each below the pool's number of them.
    pages: Option<&'a [u32]>,
}

/// Where the rows of one head of one sequence begin.
#[derive(Clone, Copy)]
pub(crate) struct RowIndex<'a> {
    /// Element at which the first row begins; in pages that of page 0.
    start: usize,
    /// Elements from a row to the next, within a page.
    pub(crate) stride: usize,
    pages: Option<Pages<'a>>,
}

#[derive(Clone, Copy)]
struct Pages<'a> {
    ids: &'a [u32],
    size_log2: u32,
    /// Elements from a page to the next.
    stride: usize,
}

impl<'a> KvView<'a> {
    pub(crate) fn strided(rows: TensorView<'a>) -> Self {
        KvView { rows, pages: None }
    }

    /// One sequence in a pool [pages, heads, page_size, head_dim], whose page size is a power of two; every id names one of its pages.
    pub(super) fn paged(pool: TensorView<'a>, ids: &'a [u32]) -> Self {
        KvView {
            rows: pool,
            pages: Some(ids),
        }
    }

    pub(crate) fn data(&self) -> Slice<'a> {
        self.rows.data()
    }

    /// The rows of one head; the batch is 0 in pages.
    pub(crate) fn rows(&self, batch: usize, head: usize) -> RowIndex<'a> {
        let layout = self.rows.layout();
        RowIndex {
            start: layout.row(batch, head, 0),
            stride: layout.strides[2],
            pages: self.pages.map(|ids| Pages {
                ids,
                size_log2: layout.shape[2].ilog2(),
                stride: layout.strides[0],
            }),
        }
    }

    /// Some heads of the same sequences.
    pub(crate) fn with_heads(&self, heads: std::ops::Range<usize>) -> Self {
        KvView {
            rows: self.rows.with_heads(heads),
            ..*self
        }
    }
}

impl RowIndex<'_> {
    /// Element at which the row of a token begins.
    #[inline(always)]
    pub(crate) fn row(&self, token: usize) -> usize {
        match self.pages {
            None => self.start + token * self.stride,
            Some(pages) => {
                let page = pages.ids[token >> pages.size_log2] as usize;
                let slot = token & ((1 << pages.size_log2) - 1);
                self.start + page * pages.stride + slot * self.stride
            }
        }
    }

    /// Whether `len` rows from `first` on lie [`stride`](RowIndex::stride) elements apart.
    #[inline]
    pub(crate) fn is_strided(&self, first: usize, len: usize) -> bool {
        self.pages.is_none_or(|pages| {
            len == 0 || first >> pages.size_log2 == (first + len - 1) >> pages.size_log2
        })
    }
}
