//! The lengths of a batch's sequences.

use std::ops::Range;

use crate::error::{Error, Result};

/// Numbers as engines keep them: 32 bits, signed or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Indices<'a> {
    /// Unsigned.
    U32(&'a [u32]),
    /// Signed. Only entries that have no use may be negative.
    I32(&'a [i32]),
}

impl<'a> Indices<'a> {
    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Indices::U32(all) => all.len(),
            Indices::I32(all) => all.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn get(&self, at: usize) -> i64 {
        match self {
            Indices::U32(all) => all[at].into(),
            Indices::I32(all) => all[at].into(),
        }
    }

    /// The same bits, in which negative numbers are above 2^31.
    pub(super) fn unsigned(self) -> &'a [u32] {
        match self {
            Indices::U32(all) => all,
            Indices::I32(all) => bytemuck::cast_slice(all),
        }
    }
}

macro_rules! indices_from {
    ($type:ty, $variant:ident) => {
        impl<'a> From<&'a [$type]> for Indices<'a> {
            fn from(all: &'a [$type]) -> Self {
                Indices::$variant(all)
            }
        }
        impl<'a> From<&'a Vec<$type>> for Indices<'a> {
            fn from(all: &'a Vec<$type>) -> Self {
                Indices::$variant(all)
            }
        }
        impl<'a, const LEN: usize> From<&'a [$type; LEN]> for Indices<'a> {
            fn from(all: &'a [$type; LEN]) -> Self {
                Indices::$variant(all)
            }
        }
    };
}
indices_from!(u32, U32);
indices_from!(i32, I32);

/// The lengths of the sequences of a batch: cumulative (`cu_seqlens`), or one a sequence.
///
/// Cumulative lengths are one more than there are sequences and do not fall: sequence `s` has the tokens `cu[s]..cu[s + 1]` of a packed
/// tensor. With one length each, sequences follow each other without gaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeqLens<'a> {
    indices: Indices<'a>,
    cumulative: bool,
}

impl<'a> SeqLens<'a> {
    /// Cumulative lengths \[sequences + 1\].
    pub fn cumulative(cu_seqlens: impl Into<Indices<'a>>) -> Self {
        SeqLens {
            indices: cu_seqlens.into(),
            cumulative: true,
        }
    }

    /// One length each \[sequences\].
    pub fn each(seqlens: impl Into<Indices<'a>>) -> Self {
        SeqLens {
            indices: seqlens.into(),
            cumulative: false,
        }
    }

    /// How many sequences these are the lengths of.
    pub fn sequences(&self) -> usize {
        self.indices.len() - usize::from(self.cumulative && !self.indices.is_empty())
    }

    /// Tokens of each sequence in a packed tensor.
    ///
    /// # Errors
    /// [`Error::SeqlensCount`] and [`Error::SeqlensFall`].
    pub(crate) fn ranges(&self, name: &'static str, sequences: usize) -> Result<Vec<Range<usize>>> {
        let expected = sequences + usize::from(self.cumulative);
        let given = self.indices.len();
        if given != expected {
            return Err(Error::SeqlensCount {
                name,
                expected,
                given,
            });
        }
        let mut end = match self.cumulative {
            true => self.indices.get(0),
            false => 0,
        };
        let fall = |sequence, from, to| Error::SeqlensFall {
            name,
            sequence,
            from,
            to,
        };
        if end < 0 {
            return Err(fall(0, 0, end));
        }
        let ranges = (0..sequences).map(|sequence| {
            let start = end;
            end = match self.cumulative {
                true => self.indices.get(sequence + 1),
                // Below 2^63: fewer than 2^31 sequences of lengths below 2^32.
                false => start + self.indices.get(sequence),
            };
            if end < start {
                return Err(fall(sequence, start, end));
            }
            Ok(start as usize..end as usize)
        });
        ranges.collect()
    }
}
