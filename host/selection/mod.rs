//! What each head attends to: key blocks of each query block, and single keys (stripes) of the whole head.

mod bits;
mod head;
mod storage;

use crate::error::{Error, Result};
use crate::problem::Problem;

use bits::set_bit;
pub use head::HeadSelection;
pub(crate) use storage::{
    BlockRows, SelectionMut, SelectionRef, SelectionShape, StripeList, StripeSpan,
};

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
    /// Those of an invalid problem, and [`Error::SelectionTooLarge`].
    pub fn new(problem: &Problem) -> Result<Self> {
        problem.validate()?;
        let shape = SelectionShape::checked(problem)?;
        let mut selection = Selection {
            shape,
            sinks: 0,
            kept_blocks: zeroed(shape, shape.words())?,
            stripes: Vec::new(),
            stripe_spans: zeroed(shape, shape.heads())?,
            dense: zeroed(shape, shape.heads())?,
        };
        selection.as_mut().reset(1);
        Ok(selection)
    }

    /// Every visible key of every head.
    ///
    /// # Errors
    /// As [`Selection::new`].
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

/// Zeros, or a refusal where the memory for them cannot be had.
fn zeroed<T: Clone + Default>(shape: SelectionShape, len: usize) -> Result<Vec<T>> {
    let mut zeros = Vec::new();
    zeros
        .try_reserve_exact(len)
        .map_err(|_| shape.too_large())?;
    zeros.resize(len, T::default());
    Ok(zeros)
}

fn check_index(what: &'static str, index: usize, count: usize) -> Result<()> {
    if index >= count {
        return Err(Error::SelectionIndex { what, index, count });
    }
    Ok(())
}

impl SelectionRef<'_> {
    /// A copy that owns its memory.
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
