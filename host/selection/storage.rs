//! The memory of a selection, borrowed: from a [`Selection`](super::Selection) or from the workspace of a run.

use std::ops::Range;

use super::HeadSelection;
use super::bits::{set_bit, set_bits};
use crate::error::{Error, Result};
use crate::geometry::Geometry;
use crate::problem::Problem;

/// Sizes of a selection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SelectionShape {
    pub(super) batch: usize,
    pub(super) q_heads: usize,
    pub(super) geometry: Geometry,
}

impl SelectionShape {
    pub(crate) fn new(problem: &Problem) -> Self {
        SelectionShape {
            batch: problem.batch,
            q_heads: problem.q_heads,
            geometry: Geometry::new(problem),
        }
    }

    pub(super) fn heads(&self) -> usize {
        self.batch * self.q_heads
    }

    /// 64-bit words of one query block's row of the bit matrix.
    fn row_words(&self) -> usize {
        self.geometry.blocks().div_ceil(64)
    }

    fn head_words(&self) -> usize {
        self.geometry.query_blocks().end * self.row_words()
    }

    /// The shape of a valid problem's selection, if its lists fit the address space.
    pub(crate) fn checked(problem: &Problem) -> Result<Self> {
        let shape = SelectionShape::new(problem);
        // Lists of blocks and stripes alike; both have less than 2^41 words a head.
        let of_head = (shape.head_words() * size_of::<u64>())
            .max(shape.geometry.k_len * size_of::<u32>())
            .max(size_of::<StripeSpan>());
        match of_head.checked_mul(problem.heads()) {
            Some(bytes) if bytes <= isize::MAX as usize => Ok(shape),
            _ => Err(shape.too_large()),
        }
    }

    pub(super) fn too_large(&self) -> Error {
        Error::SelectionTooLarge {
            heads: self.heads(),
            k_len: self.geometry.k_len,
        }
    }

    /// Words of the bit matrix of all heads.
    pub(crate) fn words(&self) -> usize {
        self.heads() * self.head_words()
    }

    pub(super) fn describe(&self) -> [usize; 5] {
        [
            self.batch,
            self.q_heads,
            self.geometry.q_len,
            self.geometry.k_len,
            usize::from(self.geometry.causal),
        ]
    }
}

/// Where one head's stripes lie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Zeroable, bytemuck::Pod)]
#[repr(C)]
pub(crate) struct StripeSpan {
    pub(super) start: u64,
    pub(super) len: u64,
}

impl StripeSpan {
    pub(super) fn range(&self) -> Range<usize> {
        self.start as usize..(self.start + self.len) as usize
    }
}

/// A selection in borrowed memory.
#[derive(Clone, Copy)]
pub(crate) struct SelectionRef<'a> {
    pub(super) shape: SelectionShape,
    pub(super) sinks: usize,
    pub(super) kept_blocks: &'a [u64],
    pub(super) stripes: &'a [u32],
    pub(super) stripe_spans: &'a [StripeSpan],
    pub(super) dense: &'a [u8],
}

impl<'a> SelectionRef<'a> {
    pub(crate) fn head(&self, head: usize) -> HeadSelection<'a> {
        let words = self.shape.head_words();
        HeadSelection {
            geometry: self.shape.geometry,
            sinks: self.sinks,
            words: self.shape.row_words(),
            kept_blocks: &self.kept_blocks[head * words..(head + 1) * words],
            stripes: &self.stripes[self.stripe_spans[head].range()],
            dense: self.dense[head] != 0,
        }
    }
}

/// A selection in borrowed memory, being made.
pub(crate) struct SelectionMut<'a> {
    pub(crate) shape: SelectionShape,
    pub(crate) sinks: usize,
    /// Bit matrix [batch · q_heads, query block, key block].
    pub(crate) kept_blocks: &'a mut [u64],
    pub(crate) stripes: &'a mut [u32],
    pub(crate) stripe_spans: &'a mut [StripeSpan],
    /// One flag a head.
    pub(crate) dense: &'a mut [u8],
}

impl SelectionMut<'_> {
    pub(crate) fn as_ref(&self) -> SelectionRef<'_> {
        SelectionRef {
            shape: self.shape,
            sinks: self.sinks,
            kept_blocks: self.kept_blocks,
            stripes: self.stripes,
            stripe_spans: self.stripe_spans,
            dense: self.dense,
        }
    }

    /// Back to a window alone: `window_blocks` key blocks up to and including each query block's own.
    pub(crate) fn reset(&mut self, window_blocks: usize) {
        let geometry = self.shape.geometry;
        self.kept_blocks.fill(0);
        self.dense.fill(0);
        self.stripe_spans.fill(StripeSpan::default());
        if geometry.causal {
            for head in 0..self.shape.heads() {
                for block in 0..geometry.blocks() {
                    let row = self.row_mut(head, block);
                    for kept in (block + 1).saturating_sub(window_blocks)..=block {
                        set_bit(row, kept);
                    }
                }
            }
        }
    }

    /// The bit matrix cut into `segments` of query blocks, head after head.
    pub(crate) fn block_rows<'s>(
        &'s mut self,
        segments: impl Iterator<Item = Range<usize>> + Clone + 's,
    ) -> impl Iterator<Item = BlockRows<'s>> + 's {
        let row_words = self.shape.row_words();
        let mut rest = &mut *self.kept_blocks;
        (0..self.shape.heads())
            .flat_map(move |_| segments.clone())
            .map(move |blocks| BlockRows {
                row_words,
                bits: rest
                    .split_off_mut(..blocks.len() * row_words)
                    .expect("the segments of a head are its query blocks"),
            })
    }

    /// Room for the stripes of some heads, emptied.
    pub(crate) fn stripe_lists(
        &mut self,
        heads: Range<usize>,
    ) -> impl Iterator<Item = StripeList<'_>> {
        let capacity = self.stripes.len() / self.shape.heads();
        let lists = self
            .stripes
            .chunks_mut(capacity)
            .zip(&mut *self.stripe_spans);
        let some = lists.enumerate().skip(heads.start).take(heads.len());
        some.map(move |(head, (stripes, span))| {
            *span = StripeSpan {
                start: (head * capacity) as u64,
                len: 0,
            };
            StripeList { stripes, span }
        })
    }

    pub(super) fn row_mut(&mut self, head: usize, block: usize) -> &mut [u64] {
        let words = self.shape.row_words();
        let first = head * self.shape.head_words() + block * words;
        &mut self.kept_blocks[first..first + words]
    }
}

/// The key blocks of a segment of query blocks.
pub(crate) struct BlockRows<'a> {
    row_words: usize,
    bits: &'a mut [u64],
}

impl BlockRows<'_> {
    /// Lists a key block for the segment's query block `query_block`.
    pub(crate) fn keep(&mut self, query_block: usize, key_block: usize) {
        let row = &mut self.bits[query_block * self.row_words..][..self.row_words];
        set_bit(row, key_block);
    }
}

impl BlockRows<'_> {
    /// The key blocks listed for the segment's query block `query_block`, ascending.
    pub(crate) fn blocks(&self, query_block: usize) -> impl Iterator<Item = usize> {
        set_bits(&self.bits[query_block * self.row_words..][..self.row_words])
    }
}

/// The stripes of one head.
pub(crate) struct StripeList<'a> {
    stripes: &'a mut [u32],
    span: &'a mut StripeSpan,
}

impl StripeList<'_> {
    /// Adds a stripe; they come in ascending order.
    pub(crate) fn push(&mut self, key: usize) {
        self.stripes[self.span.len as usize] = key as u32;
        self.span.len += 1;
    }
}
