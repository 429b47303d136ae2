//! Where the pages of each sequence lie.

use std::ops::Range;

use super::seqlens::Indices;
use crate::error::{Error, Result};

/// The numbers of the pages (vLLM's blocks) that hold the keys and values of each sequence: page `j` holds tokens
/// `j * page_size..(j + 1) * page_size`. Sequences may share pages. Entries beyond a sequence's length are never read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockTable<'a> {
    ids: Indices<'a>,
    rows: Rows<'a>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rows<'a> {
    /// Entries from a sequence's first to the next's.
    Stride(usize),
    /// Where each sequence's begin, and where the last's end.
    Csr(Indices<'a>),
}

impl<'a> BlockTable<'a> {
    /// A table [sequences, max_blocks], row after row.
    pub fn new(ids: impl Into<Indices<'a>>, max_blocks: usize) -> Self {
        BlockTable {
            ids: ids.into(),
            rows: Rows::Stride(max_blocks),
        }
    }

    /// The pages of all sequences one after the other: those of sequence `s` are `indices[indptr[s]..indptr[s + 1]]`.
    pub fn csr(indptr: impl Into<Indices<'a>>, indices: impl Into<Indices<'a>>) -> Self {
        BlockTable {
            ids: indices.into(),
            rows: Rows::Csr(indptr.into()),
        }
    }

    /// Entries of one sequence that the table has room for.
    fn row(&self, sequence: usize) -> Range<usize> {
        let len = self.ids.len();
        let clamp = |at: i64| usize::try_from(at).map_or(0, |at| at.min(len));
        match self.rows {
            Rows::Stride(stride) => {
                let start = sequence.saturating_mul(stride).min(len);
                start..start.saturating_add(stride).min(len)
            }
            Rows::Csr(indptr) if sequence + 1 < indptr.len() => {
                let start = clamp(indptr.get(sequence));
                start..clamp(indptr.get(sequence + 1)).max(start)
            }
            Rows::Csr(_) => 0..0,
        }
    }

    /// The first `needed` pages of one sequence, each below `pages`.
    ///
    /// # Errors
    /// [`Error::BlockTableShort`] and [`Error::PageNumber`].
    pub(super) fn pages_of(
        &self,
        sequence: usize,
        needed: usize,
        pages: usize,
    ) -> Result<&'a [u32]> {
        let row = self.row(sequence);
        if row.len() < needed {
            return Err(Error::BlockTableShort {
                sequence,
                needed,
                given: row.len(),
            });
        }
        let ids = &self.ids.unsigned()[row.start..row.start + needed];
        match ids.iter().position(|&page| page as usize >= pages) {
            Some(slot) => Err(Error::PageNumber {
                sequence,
                slot,
                page: self.ids.get(row.start + slot),
                pages,
            }),
            None => Ok(ids),
        }
    }
}
