//! Q, K and V of a ragged batch.

use std::ops::Range;

use super::bounds::VarlenBounds;
use super::kv::KvView;
use super::seqlens::SeqLens;
use super::table::BlockTable;
use crate::error::{Error, Result};
use crate::tensor::{TensorView, check_sinks};

/// Q, K and V of a ragged batch, and where its sequences lie in them.
///
/// Queries are packed: [`TensorView::thd`] takes [total_q, q_heads, head_dim]. Keys and values are packed too, or lie in pages: then
/// [`TensorView::bshd`] takes a pool [blocks, page_size, kv_heads, head_dim] (NHD), [`TensorView::bhsd`] one of
/// [blocks, kv_heads, page_size, head_dim] (HND), and [`TensorView::new`] any other, such as one that holds all layers.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct VarlenInputs<'a> {
    /// Queries [1, q_heads, tokens, head_dim].
    pub q: TensorView<'a>,
    /// Keys [1, kv_heads, tokens, head_dim], or with a block table [blocks, kv_heads, page_size, head_dim].
    pub k: TensorView<'a>,
    /// Values, as the keys; their strides may differ.
    pub v: TensorView<'a>,
    /// Queries of each sequence.
    pub seqlens_q: SeqLens<'a>,
    /// Keys of each sequence.
    pub seqlens_k: SeqLens<'a>,
    /// Where the keys and values of each sequence lie, if they are in pages.
    pub block_table: Option<BlockTable<'a>>,
    /// A learned sink of each query head, as [`Inputs::sink_logits`](crate::Inputs::sink_logits).
    pub sink_logits: Option<&'a [f32]>,
}

/// Where one sequence lies.
#[derive(Clone, Debug)]
pub(crate) struct Span {
    /// Its number in the batch.
    pub(crate) sequence: usize,
    /// Tokens of the queries' tensor.
    pub(crate) q: Range<usize>,
    /// Tokens of the keys' tensor; in pages only their number counts.
    pub(crate) k: Range<usize>,
}

/// Tokens of a page that are taken: those that engines use.
const PAGE_SIZES: [usize; 4] = [16, 32, 64, 128];

impl<'a> VarlenInputs<'a> {
    /// A packed batch.
    pub fn new(
        q: TensorView<'a>,
        k: TensorView<'a>,
        v: TensorView<'a>,
        seqlens_q: SeqLens<'a>,
        seqlens_k: SeqLens<'a>,
    ) -> Self {
        VarlenInputs {
            q,
            k,
            v,
            seqlens_q,
            seqlens_k,
            block_table: None,
            sink_logits: None,
        }
    }

    /// The same with a learned sink of each query head.
    pub fn with_sink_logits(self, sink_logits: &'a [f32]) -> Self {
        VarlenInputs {
            sink_logits: Some(sink_logits),
            ..self
        }
    }

    /// The same with keys and values in pages.
    pub fn with_block_table(self, block_table: BlockTable<'a>) -> Self {
        VarlenInputs {
            block_table: Some(block_table),
            ..self
        }
    }

    /// Checks everything that can be wrong with a batch within these bounds. Returns where its sequences lie.
    pub(crate) fn check(&self, bounds: &VarlenBounds) -> Result<Vec<Span>> {
        let [_, _, q_tokens, _] = self.q.shape();
        let q_shape = [1, bounds.q_heads, q_tokens, bounds.head_dim];
        self.q.check("q", q_shape, bounds.dtype)?;
        let [blocks, _, kv_tokens, _] = self.k.shape();
        let blocks = if self.block_table.is_some() {
            blocks
        } else {
            1
        };
        let kv_shape = [blocks, bounds.kv_heads, kv_tokens, bounds.head_dim];
        self.k.check("k", kv_shape, bounds.dtype)?;
        self.v.check("v", kv_shape, bounds.dtype)?;
        check_sinks(self.sink_logits, bounds.q_heads)?;
        if self.block_table.is_some() && !PAGE_SIZES.contains(&kv_tokens) {
            return Err(Error::PageTokens { given: kv_tokens });
        }
        let q = self.seqlens_q.ranges("seqlens_q", bounds.sequences)?;
        let k = self.seqlens_k.ranges("seqlens_k", bounds.sequences)?;
        check_lengths(("seqlens_q", "max_seqlen_q"), &q, bounds.max_seqlen_q)?;
        check_lengths(("seqlens_k", "max_seqlen_k"), &k, bounds.max_seqlen_k)?;
        check_end("seqlens_q", &q, q_tokens.min(bounds.total_q))?;
        match &self.block_table {
            None => check_end("seqlens_k", &k, kv_tokens)?,
            Some(table) => {
                for (sequence, k) in k.iter().enumerate() {
                    table.pages_of(sequence, k.len().div_ceil(kv_tokens), blocks)?;
                }
            }
        }
        let spans = q.into_iter().zip(k).enumerate();
        Ok(spans
            .map(|(sequence, (q, k))| Span { sequence, q, k })
            .collect())
    }

    /// The queries of one sequence that has some.
    pub(crate) fn queries(&self, span: &Span) -> TensorView<'a> {
        self.q.with_tokens(span.q.clone())
    }

    /// Keys and values of one sequence that has some, of a batch that has been checked.
    pub(crate) fn keys_and_values(&self, span: &Span) -> Result<[KvView<'a>; 2]> {
        let tensors = [self.k, self.v];
        let Some(table) = &self.block_table else {
            return Ok(tensors.map(|all| KvView::strided(all.with_tokens(span.k.clone()))));
        };
        let [blocks, _, page_size, _] = self.k.shape();
        let needed = span.k.len().div_ceil(page_size);
        let ids = table.pages_of(span.sequence, needed, blocks)?;
        Ok(tensors.map(|pool| KvView::paged(pool, ids)))
    }
}

fn check_lengths(
    (name, bound): (&'static str, &'static str),
    ranges: &[Range<usize>],
    max: usize,
) -> Result<()> {
    match ranges.iter().position(|range| range.len() > max) {
        Some(sequence) => Err(Error::SeqlensLong {
            name,
            sequence,
            len: ranges[sequence].len(),
            bound,
            max,
        }),
        None => Ok(()),
    }
}

fn check_end(name: &'static str, ranges: &[Range<usize>], tokens: usize) -> Result<()> {
    match ranges.last() {
        Some(last) if last.end > tokens => Err(Error::SeqlensEnd {
            name,
            end: last.end,
            tokens,
        }),
        _ => Ok(()),
    }
}
