//! What each head attends to: key blocks of each query block, and single keys (stripes) of the whole head.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::geometry::{BLOCK, Geometry};
use crate::problem::Problem;

/// The mask of every head, in the one form that all policies share:
/// query `i` attends to key `j` iff `j` is visible to it and `j`'s block is listed for `i`'s block,
/// or `j` is a stripe, or `j < sinks`. A head can also be dense: every visible key.
///
/// In causal problems a query block always lists itself. Callers may fill one themselves and hand it to
/// [`Plan::attend`](crate::Plan::attend).
///
/// ```
/// use sample_attention::{Dtype, Problem, Selection};
/// let problem = Problem::causal(1000, 64, Dtype::F32);
/// let mut selection = Selection::new(&problem)?;
/// selection.set_sinks(4);
/// selection.set_stripes(0, 0, &[300, 301])?;
/// for query_block in 1..8 {
///     selection.set_blocks(0, 0, query_block, &[query_block - 1])?;
/// }
/// assert!(selection.head(0, 0).keeps(900, 301));
/// # Ok::<(), sample_attention::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    shape: SelectionShape,
    sinks: usize,
    kept_blocks: Vec<u64>,
    /// Each head's own, one after the other, so that the spans are contiguous.
    stripes: Vec<u32>,
    stripe_spans: Vec<StripeSpan>,
    dense: Vec<u8>,
}

impl Selection {
    /// Nothing but each query block's own keys (for causal problems; otherwise nothing).
    ///
    /// # Errors
    /// Those of an invalid problem.
    pub fn new(problem: &Problem) -> Result<Self> {
        problem.validate()?;
        let shape = SelectionShape::new(problem);
        let mut selection = Selection {
            shape,
            sinks: 0,
            kept_blocks: vec![0; shape.words()],
            stripes: Vec::new(),
            stripe_spans: vec![StripeSpan::default(); shape.heads()],
            dense: vec![0; shape.heads()],
        };
        selection.as_mut().reset(1);
        Ok(selection)
    }

    /// Every visible key of every head.
    ///
    /// # Errors
    /// Those of an invalid problem.
    pub fn dense(problem: &Problem) -> Result<Self> {
        let mut selection = Self::new(problem)?;
        selection.dense.fill(1);
        Ok(selection)
    }

    /// Replaces the first keys that every query keeps.
    pub fn set_sinks(&mut self, sinks: usize) {
        self.sinks = sinks.min(self.shape.geometry.k_len);
    }

    /// Replaces the key blocks of one query block; order and repeats do not matter. Blocks after the query block are
    /// allowed and empty in causal problems.
    ///
    /// # Errors
    /// [`Error::SelectionIndex`].
    pub fn set_blocks(
        &mut self,
        batch: usize,
        q_head: usize,
        query_block: usize,
        key_blocks: &[usize],
    ) -> Result<()> {
        let head = self.head_index(batch, q_head)?;
        let geometry = self.shape.geometry;
        check_index("query block", query_block, geometry.query_blocks().end)?;
        for &block in key_blocks {
            check_index("key block", block, geometry.blocks())?;
        }
        let mut selection = self.as_mut();
        let row = selection.row_mut(head, query_block);
        row.fill(0);
        for &block in key_blocks {
            if !geometry.causal || block <= query_block {
                set_bit(row, block);
            }
        }
        if geometry.causal {
            set_bit(row, query_block);
        }
        Ok(())
    }

    /// Replaces one head's stripes: ascending key indices without repeats.
    ///
    /// # Errors
    /// [`Error::SelectionIndex`] and [`Error::StripesNotAscending`].
    pub fn set_stripes(&mut self, batch: usize, q_head: usize, stripes: &[u32]) -> Result<()> {
        let head = self.head_index(batch, q_head)?;
        if let Some(pair) = stripes.windows(2).find(|pair| pair[0] >= pair[1]) {
            return Err(Error::StripesNotAscending {
                previous: pair[0],
                next: pair[1],
            });
        }
        if let Some(&last) = stripes.last() {
            check_index("stripe", last as usize, self.shape.geometry.k_len)?;
        }
        let old = self.stripe_spans[head].range();
        self.stripes.splice(old, stripes.iter().copied());
        self.stripe_spans[head].len = stripes.len() as u64;
        let mut start = 0;
        for span in &mut self.stripe_spans {
            span.start = start;
            start += span.len;
        }
        Ok(())
    }

    /// Makes one head dense, or sparse again.
    ///
    /// # Errors
    /// [`Error::SelectionIndex`].
    pub fn set_dense(&mut self, batch: usize, q_head: usize, dense: bool) -> Result<()> {
        let head = self.head_index(batch, q_head)?;
        self.dense[head] = u8::from(dense);
        Ok(())
    }

    /// The mask of one head.
    ///
    /// # Panics
    /// When there is no such head.
    pub fn head(&self, batch: usize, q_head: usize) -> HeadSelection<'_> {
        let head = self.head_index(batch, q_head);
        self.as_ref()
            .head(head.unwrap_or_else(|error| panic!("{error}")))
    }

    /// The first keys that every query keeps.
    pub fn sinks(&self) -> usize {
        self.sinks
    }

    pub(crate) fn as_ref(&self) -> SelectionRef<'_> {
        SelectionRef {
            shape: self.shape,
            sinks: self.sinks,
            kept_blocks: &self.kept_blocks,
            stripes: &self.stripes,
            stripe_spans: &self.stripe_spans,
            dense: &self.dense,
        }
    }

    fn as_mut(&mut self) -> SelectionMut<'_> {
        SelectionMut {
            shape: self.shape,
            sinks: self.sinks,
            kept_blocks: &mut self.kept_blocks,
            stripes: &mut self.stripes,
            stripe_spans: &mut self.stripe_spans,
            dense: &mut self.dense,
        }
    }

    pub(crate) fn check(&self, problem: &Problem) -> Result<()> {
        let expected = SelectionShape::new(problem);
        if self.shape != expected {
            return Err(Error::SelectionShape {
                expected: expected.describe(),
                given: self.shape.describe(),
            });
        }
        Ok(())
    }

    fn head_index(&self, batch: usize, q_head: usize) -> Result<usize> {
        check_index("batch", batch, self.shape.batch)?;
        check_index("query head", q_head, self.shape.q_heads)?;
        Ok(batch * self.shape.q_heads + q_head)
    }
}

/// Sizes of a selection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SelectionShape {
    batch: usize,
    q_heads: usize,
    geometry: Geometry,
}

impl SelectionShape {
    pub(crate) fn new(problem: &Problem) -> Self {
        SelectionShape {
            batch: problem.batch,
            q_heads: problem.q_heads,
            geometry: Geometry::new(problem),
        }
    }

    fn heads(&self) -> usize {
        self.batch * self.q_heads
    }

    /// 64-bit words of one query block's row of the bit matrix.
    fn row_words(&self) -> usize {
        self.geometry.blocks().div_ceil(64)
    }

    fn head_words(&self) -> usize {
        self.geometry.query_blocks().end * self.row_words()
    }

    /// Words of the bit matrix of all heads.
    pub(crate) fn words(&self) -> usize {
        self.heads() * self.head_words()
    }

    fn describe(&self) -> [usize; 5] {
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
    start: u64,
    len: u64,
}

impl StripeSpan {
    fn range(&self) -> Range<usize> {
        self.start as usize..(self.start + self.len) as usize
    }
}

/// A selection in borrowed memory.
#[derive(Clone, Copy)]
pub(crate) struct SelectionRef<'a> {
    shape: SelectionShape,
    sinks: usize,
    kept_blocks: &'a [u64],
    stripes: &'a [u32],
    stripe_spans: &'a [StripeSpan],
    dense: &'a [u8],
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

    pub(crate) fn to_owned(self) -> Selection {
        let mut stripes = Vec::new();
        let mut stripe_spans = self.stripe_spans.to_vec();
        for span in &mut stripe_spans {
            let start = stripes.len() as u64;
            stripes.extend_from_slice(&self.stripes[span.range()]);
            span.start = start;
        }
        Selection {
            shape: self.shape,
            sinks: self.sinks,
            kept_blocks: self.kept_blocks.to_vec(),
            stripes,
            stripe_spans,
            dense: self.dense.to_vec(),
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

    fn row_mut(&mut self, head: usize, block: usize) -> &mut [u64] {
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

fn set_bit(row: &mut [u64], index: usize) {
    row[index / 64] |= 1 << (index % 64);
}

fn check_index(what: &'static str, index: usize, count: usize) -> Result<()> {
    if index >= count {
        return Err(Error::SelectionIndex { what, index, count });
    }
    Ok(())
}

/// The mask of one head of a [`Selection`].
#[derive(Clone, Copy, Debug)]
pub struct HeadSelection<'a> {
    geometry: Geometry,
    sinks: usize,
    words: usize,
    kept_blocks: &'a [u64],
    stripes: &'a [u32],
    dense: bool,
}

impl<'a> HeadSelection<'a> {
    /// Whether every visible key is kept, whatever the lists say.
    pub fn is_dense(&self) -> bool {
        self.dense
    }

    /// Whether key block `key_block` is listed for query block `query_block`.
    pub fn keeps_block(&self, query_block: usize, key_block: usize) -> bool {
        self.row(query_block)[key_block / 64] >> (key_block % 64) & 1 == 1
    }

    /// The key blocks of a query block, ascending.
    pub fn blocks(&self, query_block: usize) -> impl Iterator<Item = usize> + use<'a> {
        self.row(query_block)
            .iter()
            .enumerate()
            .flat_map(|(at, &word)| {
                let mut left = word;
                std::iter::from_fn(move || {
                    let bit = (left != 0).then(|| left.trailing_zeros() as usize)?;
                    left &= left - 1;
                    Some(at * 64 + bit)
                })
            })
    }

    /// The stripes of the head, ascending.
    pub fn stripes(&self) -> &'a [u32] {
        self.stripes
    }

    /// The mask itself: whether query `row` attends to key `key`.
    pub fn keeps(&self, row: usize, key: usize) -> bool {
        let visible = key < self.geometry.visible_keys(row);
        visible
            && (self.dense
                || self.keeps_block(self.geometry.query_block(row), key / BLOCK)
                || key < self.sinks
                || self.stripes.binary_search(&(key as u32)).is_ok())
    }

    /// Key blocks listed, over all query blocks that hold a row.
    pub fn blocks_kept(&self) -> usize {
        let rows = self.geometry.query_blocks();
        rows.map(|block| {
            self.row(block)
                .iter()
                .map(|word| word.count_ones() as usize)
                .sum::<usize>()
        })
        .sum()
    }

    /// Sinks and stripes that the key blocks of `query_block` do not cover, ascending: all of them visible to the
    /// whole query block in a causal problem, since the block's own keys are always covered.
    pub(crate) fn loose_keys(&self, query_block: usize) -> impl Iterator<Item = u32> + use<'a> {
        let end = if self.geometry.causal {
            query_block * BLOCK
        } else {
            self.geometry.k_len
        };
        let sinks = self.sinks as u32;
        let row = self.row(query_block);
        let first_stripe = self.stripes.partition_point(|&key| key < sinks);
        (0..sinks)
            .chain(self.stripes[first_stripe..].iter().copied())
            .take_while(move |&key| (key as usize) < end)
            .filter(move |&key| {
                let block = key as usize / BLOCK;
                row[block / 64] >> (block % 64) & 1 == 0
            })
    }

    /// Pairs (row, key) that the mask keeps: the count over [`HeadSelection::keeps`].
    pub fn pairs(&self) -> u64 {
        let geometry = self.geometry;
        if self.dense {
            return geometry.visible_pairs();
        }
        geometry
            .query_blocks()
            .map(|query_block| {
                let rows = geometry.rows_of_block(query_block);
                let loose = (rows.len() * self.loose_keys(query_block).count()) as u64;
                let listed: u64 = self
                    .blocks(query_block)
                    .map(|block| {
                        let keys = geometry.keys_of_block(block);
                        if geometry.causal && block == query_block {
                            rows.clone()
                                .map(|row| (geometry.visible_keys(row) - keys.start) as u64)
                                .sum()
                        } else {
                            (rows.len() * keys.len()) as u64
                        }
                    })
                    .sum();
                listed + loose
            })
            .sum()
    }

    /// Kept share of the pairs that the problem allows.
    pub fn density(&self) -> f64 {
        match self.geometry.visible_pairs() {
            0 => 1.0,
            all => self.pairs() as f64 / all as f64,
        }
    }

    fn row(&self, query_block: usize) -> &'a [u64] {
        &self.kept_blocks[query_block * self.words..(query_block + 1) * self.words]
    }
}
