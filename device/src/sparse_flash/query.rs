//! The query side: which rows a query block has, and the rows that are in none.

use super::{COPY_THREADS, SparseFlashParams};
use crate::gpu::{self, Global};
use crate::params::BLOCK;

/// The rows of a query block: row `r` of the block is query token `first_token + r`.
#[derive(Clone, Copy)]
pub(super) struct QueryRows {
    /// Negative where the block begins before the first query.
    pub first_token: i32,
    pub q_len: u32,
}

impl QueryRows {
    #[inline(always)]
    pub fn new(p: &SparseFlashParams, query_block: u32) -> Self {
        Self {
            first_token: (query_block * BLOCK) as i32 - p.sizes.first_position(),
            q_len: p.sizes.q_len,
        }
    }

    /// The query token of a row; at or past `q_len` where the row has none.
    #[inline(always)]
    pub fn token(self, row: u32) -> u32 {
        (self.first_token + row as i32) as u32
    }

    /// Whether one of `rows` rows, from `first_row` on, has a token.
    #[inline(always)]
    pub fn any(self, first_row: u32, rows: u32) -> bool {
        let first = self.first_token + first_row as i32;
        first < self.q_len as i32 && first + (rows as i32) > 0
    }
}

/// Zero and −∞ for rows that see nothing, 128 of them from `128 · tile` on. [`COPY_THREADS`] threads, from thread 0 on, call it.
#[inline(always)]
pub(super) fn write_blind_rows(p: &SparseFlashParams, batch: u32, head: u32, tile: u32) {
    let sizes = &p.sizes;
    let first = tile * BLOCK;
    let rows = (sizes.blind_rows() - first).min(BLOCK);
    let lse = u64::from(batch * sizes.q_heads + head) * u64::from(sizes.q_len) + u64::from(first);
    if gpu::tid_x() < rows {
        let lse: Global<f32> = p.lse.add(lse + u64::from(gpu::tid_x()));
        gpu::st_global(lse, f32::NEG_INFINITY);
    }
    let row_bytes = sizes.head_dim * if p.output_f32 != 0 { 4 } else { 2 };
    let mut byte = gpu::tid_x() * 16;
    while byte < rows * row_bytes {
        let token = first + byte / row_bytes;
        let row: Global<u8> = if p.output_f32 != 0 {
            p.o.token::<f32>(batch, head, token).cast()
        } else {
            p.o.token::<u16>(batch, head, token).cast()
        };
        gpu::st_global_v4(row.byte_add(u64::from(byte % row_bytes)).cast(), [0u32; 4]);
        byte += COPY_THREADS * 16;
    }
}
