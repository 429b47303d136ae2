//! A work tile: one query tile of one query head, and where its rows and keys lie.

use super::SparseFlashParams;
use crate::abi::{KvTensor, QueryTile};
use crate::gpu::{self, Global};
use crate::params::{BLOCK, TensorArg};

/// One query tile of one query head.
#[derive(Clone, Copy, Debug)]
pub(super) struct WorkTile {
    pub q_head: u32,
    pub kv_head: u32,
    /// The query tile's number.
    pub number: u32,
    /// The query block, or [`WorkTile::MASKED`].
    pub query_block: u32,
    pub rows: QueryRows,
    pub keys: Keys,
}

/// The rows of a query tile: its row `r` is row `first + r` of the sequence, and a row at all only where that is before `end`.
#[derive(Clone, Copy, Debug)]
pub(super) struct QueryRows {
    /// Place of the sequence in the batch dimension of tensors.
    pub batch: u32,
    /// Packed rows before the sequence's.
    pub start: u32,
    /// Negative where the query block begins before the first query.
    pub first: i32,
    /// The sequence's row after the tile's last.
    pub end: u32,
}

/// The keys of a sequence.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keys {
    /// The sequence's number.
    pub sequence: u32,
    /// Packed keys before its own.
    pub start: u32,
    /// How many.
    pub len: u32,
}

impl QueryRows {
    /// The sequence's row of the tile's row `row`; at or past `end` where there is none.
    #[inline(always)]
    pub const fn row(self, row: u32) -> u32 {
        (self.first + row as i32) as u32
    }

    /// Whether the tile's row `row` is one.
    #[inline(always)]
    pub const fn has(self, row: u32) -> bool {
        self.row(row) < self.end
    }

    /// Whether one of `rows` rows, from `first_row` on, is one.
    #[inline(always)]
    pub const fn any(self, first_row: u32, rows: u32) -> bool {
        let first = self.first + first_row as i32;
        first < self.end as i32 && first + (rows as i32) > 0
    }
}

impl WorkTile {
    /// The query block of rows that see no key: a tile without keys.
    pub const MASKED: u32 = u32::MAX;

    /// A query tile of a head.
    #[inline(always)]
    pub const fn new(p: &SparseFlashParams, q_head: u32, number: u32, tile: &QueryTile) -> Self {
        let sequence = &tile.sequence;
        let (query_block, end) = match tile.query_block {
            Some(block) => (block, sequence.q_len),
            None => (Self::MASKED, sequence.fully_masked_rows()),
        };
        Self {
            q_head,
            kv_head: p.kv_head(q_head),
            number,
            query_block,
            rows: QueryRows {
                batch: sequence.batch,
                start: sequence.q_start,
                first: tile.first_row,
                end,
            },
            keys: Keys {
                sequence: sequence.index,
                start: sequence.k_start,
                len: sequence.k_len,
            },
        }
    }

    /// Key blocks from this one on are not walked: the diagonal block of a causal sequence, which comes first, or the end.
    #[inline(always)]
    pub const fn end_block(&self, p: &SparseFlashParams) -> u32 {
        if self.query_block == Self::MASKED {
            0
        } else if p.sequences.is_causal() {
            self.query_block
        } else {
            self.keys.len.div_ceil(BLOCK)
        }
    }

    /// The tile's row `row` of the queries or outputs; any address where that is no row.
    #[inline(always)]
    pub const fn token<T>(&self, tensor: &TensorArg, row: u32) -> Global<T> {
        let QueryRows { batch, start, .. } = self.rows;
        tensor.token(batch, self.q_head, start.wrapping_add(self.rows.row(row)))
    }

    /// Where the log-sum-exp of the tile's row `row` lies.
    #[inline(always)]
    pub const fn lse(&self, p: &SparseFlashParams, row: u32) -> Global<f32> {
        let QueryRows { batch, start, .. } = self.rows;
        let row = start as u64 + self.rows.row(row) as u64;
        p.lse
            .address
            .add(batch as u64 * p.lse.stride_batch + self.q_head as u64 * p.lse.stride_head + row)
    }

    /// The keys or values that the tile reads.
    #[inline(always)]
    pub fn tokens(&self, tensor: &KvTensor) -> Tokens {
        Tokens::new(tensor, self.kv_head, self.rows.batch, self.keys)
    }
}

/// The tokens of one head of K or V, of one sequence.
#[derive(Clone, Copy)]
pub(crate) struct Tokens {
    /// The first token, or that of page 0.
    pub first: Global<u16>,
    /// Elements from a token to the next.
    pub stride: u64,
    /// The sequence's page numbers; null where tokens are not paged.
    pub pages: Global<u32>,
}

impl Tokens {
    /// The tokens of a head, of the sequence at `batch` of strided tensors.
    #[inline(always)]
    pub fn new(tensor: &KvTensor, kv_head: u32, batch: u32, keys: Keys) -> Self {
        let rows = &tensor.rows;
        let head = u64::from(kv_head) * rows.stride_head;
        let (first, pages) = if tensor.is_paged() {
            (head, tensor.pages_of(keys.sequence))
        } else {
            let batch = u64::from(batch) * rows.stride_batch;
            let start = u64::from(keys.start) * rows.stride_token;
            (batch + head + start, Global::NULL)
        };
        Self {
            // Strides in bytes would otherwise be kept from tile to tile.
            first: rows.address.cast().add(gpu::opaque(first)),
            stride: rows.stride_token,
            pages,
        }
    }

    /// Where a token lies among all slots of all pages: page · page tokens + token of the page. Not paged: the token itself. The
    /// token is one of the sequence's.
    #[inline(always)]
    pub fn slot(self, tensor: &KvTensor, token: u32) -> u32 {
        if !tensor.is_paged() {
            return token;
        }
        let page = gpu::ld_global_nc(self.pages.add((token >> tensor.page_log2).into()));
        (page << tensor.page_log2) | (token & tensor.last_in_page())
    }

    /// The first element of the token in a slot.
    #[inline(always)]
    pub const fn at_slot(self, tensor: &KvTensor, slot: u32) -> Global<u16> {
        if !tensor.is_paged() {
            return self.first.add(slot as u64 * self.stride);
        }
        let page = (slot >> tensor.page_log2) as u64 * tensor.rows.stride_batch;
        let in_page = (slot & tensor.last_in_page()) as u64 * self.stride;
        self.first.add(page + in_page)
    }

    /// A token's first element.
    #[inline(always)]
    pub fn token(self, tensor: &KvTensor, token: u32) -> Global<u16> {
        self.at_slot(tensor, self.slot(tensor, token))
    }
}

/// Keys from this one on are not gathered: the diagonal block's, and what no row sees.
#[inline(always)]
pub(super) const fn end_key(end_block: u32, k_len: u32) -> u32 {
    let end = end_block * BLOCK;
    if end < k_len { end } else { k_len }
}
