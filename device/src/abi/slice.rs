//! A launch's share of the query tiles, and where their sampled rows lie in buffers.
//!
//! A selection by rows walks the query tiles of a batch in slices: sampling writes the statistics of a slice's rows, the
//! selection reads them, and the next slice takes their place. What a row finds depends on the row alone: not on the slice,
//! not on the rows beside it, not on the batch.
//!
//! # Rows in buffers
//! \[sampled head of the slice, query tile of the slice, row of the tile\], the last by its rank among the tile's sampled rows, below
//! `row_capacity`. Places without a row hold nothing.
//!
//! # Splits
//! The keys of a row are shared out among CTAs: key blocks `128·s .. 128·s + 128` are split `s`. It is a constant, not a
//! matter of how many CTAs there are, so that it leaves the bits alone.

use super::policy::{HeadEntry, HeadPolicies, SampledRows};
use super::sequences::{Sequence, Sequences};
use crate::params::{BLOCK, SEGMENT_BLOCKS};

/// Key blocks of a split: some 150 µs of sampling on a Hopper multiprocessor, beside which loading the rows is nothing; and
/// 8 splits at 128K tokens, so that a few panels of rows occupy a GPU.
pub const SPLIT_BLOCKS: u32 = 128;

/// The query tiles `first_tile .. first_tile + tiles`, of the sampled heads `first_slot .. first_slot + slots`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct TileSlice {
    /// The batch; causal.
    pub sequences: Sequences,
    /// How each head is treated.
    pub heads: HeadPolicies,
    /// Query heads.
    pub q_heads: u32,
    /// Key/value heads; a divisor of the query heads.
    pub kv_heads: u32,
    /// First keys that every row keeps.
    pub sinks: u32,
    /// The first sampled head.
    pub first_slot: u32,
    /// How many.
    pub slots: u32,
    /// The first query tile.
    pub first_tile: u32,
    /// How many.
    pub tiles: u32,
    /// Sampled rows of a query tile and head, at most; at least 1.
    pub row_capacity: u32,
    /// Key blocks that a row of the slice sees, at most; at least 1.
    pub block_capacity: u32,
    /// Key blocks of a split: [`SPLIT_BLOCKS`], or all of them where a row needs one normaliser.
    pub split_blocks: u32,
}

/// Neighbouring query blocks of a sequence: one of the runs that a slice is cut into, at multiples of their length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRun {
    /// The sequence.
    pub sequence: Sequence,
    /// The first query block.
    pub first: u32,
    /// The one after the last.
    pub end: u32,
    /// The query tile of the first.
    pub first_tile: u32,
}

impl TileSlice {
    /// Places of rows.
    pub const fn rows(&self) -> u64 {
        self.slots as u64 * self.tiles as u64 * self.row_capacity as u64
    }

    /// Splits of a row, at most.
    #[inline(always)]
    pub const fn splits(&self) -> u32 {
        self.block_capacity.div_ceil(self.split_blocks)
    }

    /// The place in buffers of a tile of the sampled head `slot`.
    #[inline(always)]
    pub const fn tile_row(&self, slot: u32, tile: u32) -> u32 {
        (slot - self.first_slot) * self.tiles + (tile - self.first_tile)
    }

    /// The place in buffers of such a tile's first row.
    #[inline(always)]
    pub const fn first_row(&self, slot: u32, tile: u32) -> u32 {
        self.tile_row(slot, tile) * self.row_capacity
    }

    /// The key/value head that a query head reads.
    #[inline(always)]
    pub const fn kv_head(&self, q_head: u32) -> u32 {
        q_head / (self.q_heads / self.kv_heads)
    }

    /// A tile number brought into the range of the slice.
    #[inline(always)]
    fn clip(&self, tile: u32) -> u32 {
        tile.clamp(self.first_tile, self.first_tile + self.tiles)
    }

    /// Numbers of runs of up to `len` query blocks. As with query tiles, every run has one below this, and a few name none.
    #[inline(always)]
    pub const fn runs(&self, len: u32) -> u32 {
        self.tiles / len + 2 * self.sequences.count
    }

    /// The number of the first run of a sequence by its number: each has room for its runs, of which one more than its tiles
    /// fill may be partial.
    #[inline(always)]
    fn first_run(&self, index: u32, len: u32) -> u32 {
        let first = self.clip(self.sequences.first_query_tile_at(index));
        (first - self.first_tile) / len + 2 * index
    }

    /// The run of a number, if it names one.
    #[inline(always)]
    pub fn run(&self, number: u32, len: u32) -> Option<BlockRun> {
        // The last sequence whose first run is not after the number.
        let (mut low, mut high) = (0, self.sequences.count);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if self.first_run(middle, len) <= number {
                low = middle;
            } else {
                high = middle;
            }
        }
        let sequence = self.sequences.get(low);
        let first_of_sequence = self.sequences.first_query_tile(&sequence);
        let first_with_keys = first_of_sequence + sequence.fully_masked_rows().div_ceil(BLOCK);
        let block_of = |tile: u32| sequence.first_query_block() + (tile - first_with_keys);
        let first_tile = self.clip(first_with_keys);
        let end_tile = self.clip(first_of_sequence + sequence.query_tiles());
        if first_tile >= end_tile {
            return None;
        }
        let (first_block, end_block) = (block_of(first_tile), block_of(end_tile));
        let first_multiple = (first_block / len + (number - self.first_run(low, len))) * len;
        let first = first_multiple.max(first_block);
        let end = end_block.min(first_multiple + len);
        if first >= end {
            return None;
        }
        Some(BlockRun {
            sequence,
            first,
            end,
            first_tile: first_tile + (first - first_block),
        })
    }

    /// Query blocks whose sampled rows fit a panel of `rows` rows, at least [`BLOCK`]: a power of two, so that a panel lies in
    /// one segment.
    #[inline(always)]
    const fn blocks_of_panel(&self, rows: u32) -> u32 {
        let fitting = 1 << (rows / self.row_capacity).ilog2();
        if fitting < SEGMENT_BLOCKS {
            fitting
        } else {
            SEGMENT_BLOCKS
        }
    }

    /// CTAs of a grid that has one for each panel of `rows` rows of each head, and each split.
    pub const fn panel_ctas(&self, rows: u32) -> u32 {
        self.runs(self.blocks_of_panel(rows)) * self.splits() * self.slots
    }

    /// The panel of a CTA, if it has rows that see its split. Panels of late rows come first, for they see more keys; the heads
    /// of a panel stand together, so that those which share keys run at the same time.
    #[inline(always)]
    pub fn panel(&self, cta: u32, rows: u32) -> Option<RowPanel> {
        let (head, rest) = (cta % self.slots, cta / self.slots);
        let (split, rest) = (rest % self.splits(), rest / self.splits());
        let len = self.blocks_of_panel(rows);
        let run = self.run(self.runs(len) - 1 - rest, len)?;
        let slot = self.first_slot + head;
        let q_head = self.heads.head_of(slot);
        let HeadEntry { policy, .. } = self.heads.get(q_head);
        let rows = policy.in_segment_of(run.first).sampled_rows(
            &run.sequence,
            run.first * BLOCK,
            run.end * BLOCK,
        );
        if rows.len() == 0 {
            return None;
        }
        let last_rank = rows.len() - 1;
        let end_block = rows.position(last_rank) / BLOCK + 1;
        let first_block = split * self.split_blocks;
        if first_block >= end_block {
            return None;
        }
        Some(RowPanel {
            sequence: run.sequence,
            q_head,
            kv_head: self.kv_head(q_head),
            rows,
            last_rank,
            first_query_block: run.first,
            first_row: self.first_row(slot, run.first_tile),
            row_capacity: self.row_capacity,
            split,
            first_block,
            end_block: end_block.min(first_block + self.split_blocks),
        })
    }
}

/// Sampled rows of neighbouring query tiles of a sequence and head, and a split of the keys that they see.
#[derive(Clone, Copy, Debug)]
pub struct RowPanel {
    /// The sequence.
    pub sequence: Sequence,
    /// The query head.
    pub q_head: u32,
    /// The key/value head that it reads.
    pub kv_head: u32,
    /// The rows.
    pub rows: SampledRows,
    /// Rank of the last row; the first has rank 0.
    pub last_rank: u32,
    /// Query block of the first tile.
    pub first_query_block: u32,
    /// Place in buffers of that tile's first row.
    pub first_row: u32,
    /// Places of a tile.
    pub row_capacity: u32,
    /// The split.
    pub split: u32,
    /// Its first key block.
    pub first_block: u32,
    /// The key block after its last that a row sees.
    pub end_block: u32,
}

impl RowPanel {
    /// Place in buffers of the row of a rank.
    #[inline(always)]
    pub const fn row(&self, rank: u32) -> u32 {
        let query_block = self.rows.position(rank) / BLOCK;
        let of_tile = rank - self.rows.rank_at(query_block * BLOCK);
        self.first_row + (query_block - self.first_query_block) * self.row_capacity + of_tile
    }

    /// Keys that the row of this rank sees; ranks after the last repeat it.
    #[inline(always)]
    pub fn visible(&self, rank: u32) -> u32 {
        self.rows.position(rank.min(self.last_rank)) + 1
    }

    /// The row of this rank, counted from the sequence's first query; ranks after the last repeat it.
    #[inline(always)]
    pub fn query(&self, rank: u32) -> u32 {
        self.visible(rank) - 1 + self.sequence.q_len - self.sequence.k_len
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::{HeadKind, HeadPolicy};

    fn slice(sequences: Sequences, policy: HeadPolicy, first_tile: u32, tiles: u32) -> TileSlice {
        TileSlice {
            sequences,
            heads: HeadPolicies::alike(policy, 3),
            q_heads: 3,
            kv_heads: 1,
            sinks: 0,
            first_slot: 0,
            slots: 3,
            first_tile,
            tiles,
            row_capacity: policy.rows_of_block(),
            block_capacity: sequences.max_key_blocks(),
            split_blocks: SPLIT_BLOCKS,
        }
    }

    #[test]
    fn every_row_of_a_slice_has_one_panel_and_place_for_each_split_that_it_sees() {
        for (count, q_len, k_len) in [
            (1, 20_000, 20_000),
            (1, 300, 20_000),
            (3, 1, 1),
            (2, 9000, 8193),
            (4, 500, 40_000),
        ] {
            let sequences = Sequences::uniform(count, q_len, k_len, true);
            let all = sequences.query_tiles();
            for (row_stride, tail, tail_stride) in
                [(8, 0, 1), (16, 256, 4), (20, 300, 3), (500, 0, 1)]
            {
                let policy = HeadPolicy {
                    kind: HeadKind::Rows,
                    coverage: 1.0,
                    window_blocks: 1,
                    row_stride,
                    tail,
                    tail_stride,
                    row_offset: 0,
                    offset_step: 0,
                    stride_doubles_from: u32::MAX,
                };
                for (first, tiles) in [
                    (0, all),
                    (0, 1),
                    (all / 3, all.div_ceil(2).min(all - all / 3)),
                ] {
                    let slice = slice(sequences, policy, first, tiles);
                    for panel_rows in [128, 256] {
                        check(&slice, &policy, panel_rows);
                    }
                }
            }
        }
    }

    /// The places that panels give are those of the tiles' rows, each once a split.
    fn check(slice: &TileSlice, policy: &HeadPolicy, panel_rows: u32) {
        let mut given = Vec::new();
        for cta in 0..slice.panel_ctas(panel_rows) {
            let Some(panel) = slice.panel(cta, panel_rows) else {
                continue;
            };
            assert!(panel.last_rank < panel_rows);
            for rank in 0..=panel.last_rank {
                let position = panel.rows.position(rank);
                if panel.first_block <= position / BLOCK {
                    assert!(
                        position / BLOCK < panel.end_block || panel.end_block % SPLIT_BLOCKS == 0
                    );
                    given.push((panel.row(rank), panel.split, panel.sequence.index, position));
                }
            }
        }
        let mut expected = Vec::new();
        for slot in 0..3 {
            for number in slice.first_tile..slice.first_tile + slice.tiles {
                let Some(tile) = slice.sequences.query_tile(number) else {
                    continue;
                };
                let Some(block) = tile.query_block else {
                    continue;
                };
                let rows = policy.sampled_rows(&tile.sequence, block * BLOCK, (block + 1) * BLOCK);
                assert!(rows.len() <= slice.row_capacity);
                for rank in 0..rows.len() {
                    for split in 0..=block / SPLIT_BLOCKS {
                        let row = slice.first_row(slot, number) + rank;
                        assert!(u64::from(row) < slice.rows());
                        expected.push((row, split, tile.sequence.index, rows.position(rank)));
                    }
                }
            }
        }
        given.sort_unstable();
        expected.sort_unstable();
        assert_eq!(given, expected);
    }
}
