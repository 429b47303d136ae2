//! The rows that one CTA works on.

use super::params::{group, heads};
use crate::abi::Sequence;
use crate::gpu;
use crate::params::BLOCK;
use crate::sparse_flash::SparseFlashParams;

/// The row tile of a CTA: row `r` is packed row `first + r`, which is query `(first + r) / group` and the query head that many after
/// `first_head` as the remainder says.
#[derive(Clone, Copy)]
pub(super) struct RowTile {
    pub sequence: Sequence,
    pub first_head: u32,
    pub kv_head: u32,
    first: u32,
    /// Rows of the tile.
    pub rows: u32,
    group: u32,
}

impl RowTile {
    #[inline(always)]
    pub fn new(p: &SparseFlashParams, tile_rows: u32) -> Self {
        let sequence = p.sequences.get(gpu::ctaid_z());
        let group = group(p);
        let head = gpu::ctaid_y() % heads(p);
        let number = (gpu::ctaid_y() / heads(p) * tile_rows) as i32;
        let all = sequence.q_len * group;
        // With lists, no tile has rows of two query blocks.
        let before = if p.mask.is_dense() {
            0
        } else {
            sequence.first_position().rem_euclid(tile_rows as i32)
        };
        let end = all.min((number - before + tile_rows as i32) as u32);
        let first = (number - before).max(0) as u32;
        let first_head = head * group;
        Self {
            sequence,
            first_head,
            kv_head: p.kv_head(first_head),
            first,
            rows: end.saturating_sub(first),
            group,
        }
    }

    /// Query and query head of a row.
    #[inline(always)]
    pub fn query_and_head(&self, row: u32) -> (u32, u32) {
        let row = self.first + row;
        (row / self.group, self.first_head + row % self.group)
    }

    /// The query block of the tile's rows, which see a key.
    #[inline(always)]
    pub fn query_block(&self) -> u32 {
        (self.query_and_head(0).0 as i32 + self.sequence.first_position()) as u32 / BLOCK
    }

    /// How many keys a row sees.
    #[inline(always)]
    pub fn sees(&self, row: u32) -> u32 {
        let Sequence { q_len, k_len, .. } = self.sequence;
        if self.sequence.causal {
            (self.query_and_head(row).0 + k_len + 1).saturating_sub(q_len)
        } else {
            k_len
        }
    }
}
