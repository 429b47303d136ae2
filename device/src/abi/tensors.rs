//! Keys and values, strided or paged, and the log-sum-exp.

use super::sequences::Sequence;
use crate::gpu::{self, Global};
use crate::params::TensorArg;

/// Keys or values.
///
/// Strided (`block_table` is null): [batch, kv_heads, tokens, head_dim] at any strides; in a packed batch the batch is 1 and a
/// sequence's tokens begin at its `k_start`.
///
/// Paged: [pages, kv_heads, page tokens, head_dim] at any strides, where `rows.stride_batch` leads from a page to the next. Token
/// `j` of a sequence is token `j mod page` of page `table[j / page]`. Entries at or beyond the sequence's length are never read;
/// entries in use must be below the number of pages, which no kernel can check, and pages · page tokens below 2^32.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct KvTensor {
    /// Where tokens lie.
    pub rows: TensorArg,
    /// Page numbers of all sequences. Null: strided.
    pub block_table: Global<u32>,
    /// \[count + 1\]: where each sequence's page numbers begin (a CSR table). Null: each `table_stride` further.
    pub table_starts: Global<u32>,
    /// Entries from a sequence's page numbers to the next's.
    pub table_stride: u32,
    /// log2 of the tokens of a page: 4 to 7.
    pub page_log2: u32,
}

impl KvTensor {
    /// Tokens at strides.
    pub const fn strided(rows: TensorArg) -> Self {
        KvTensor {
            rows,
            block_table: Global::NULL,
            table_starts: Global::NULL,
            table_stride: 0,
            page_log2: 0,
        }
    }

    /// Whether tokens lie in pages.
    #[inline(always)]
    pub const fn is_paged(&self) -> bool {
        !self.block_table.is_null()
    }

    /// The page numbers of a sequence.
    #[inline(always)]
    pub fn pages(&self, sequence: &Sequence) -> Global<u32> {
        self.pages_of(sequence.index)
    }

    /// The page numbers of a sequence by its number.
    #[inline(always)]
    pub fn pages_of(&self, sequence: u32) -> Global<u32> {
        let first = if self.table_starts.is_null() {
            u64::from(sequence) * u64::from(self.table_stride)
        } else {
            gpu::ld_global_nc(self.table_starts.add(sequence.into())).into()
        };
        self.block_table.add(first)
    }

    /// The last token of a page, which is also the mask of a token's place in its page.
    #[inline(always)]
    pub const fn last_in_page(&self) -> u32 {
        (1 << self.page_log2) - 1
    }

    /// A token of one head.
    #[inline(always)]
    pub fn token<T>(&self, sequence: &Sequence, kv_head: u32, token: u32) -> Global<T> {
        if !self.is_paged() {
            return self
                .rows
                .token(sequence.batch, kv_head, sequence.k_start + token);
        }
        let page = self.pages(sequence).add((token >> self.page_log2).into());
        let in_page = token & self.last_in_page();
        self.rows.token(gpu::ld_global_nc(page), kv_head, in_page)
    }
}

/// The natural log-sum-exp of every row, `f32`: [batch, q_heads, q_len], or [q_heads, total_q] in a packed batch.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct LseTensor {
    /// The first.
    pub address: Global<f32>,
    /// Elements from a sequence to the next; 0 in a packed batch.
    pub stride_batch: u64,
    /// Elements from a head to the next.
    pub stride_head: u64,
}

impl LseTensor {
    /// A row's.
    #[inline(always)]
    pub const fn row(&self, sequence: &Sequence, q_head: u32, row: u32) -> Global<f32> {
        self.address.add(
            sequence.batch as u64 * self.stride_batch
                + q_head as u64 * self.stride_head
                + sequence.q_start as u64
                + row as u64,
        )
    }
}
