//! The mask of one head, to be read.

use super::bits::set_bits;
use crate::geometry::{BLOCK, Geometry};

/// The mask of one head of a [`Selection`](super::Selection).
#[derive(Clone, Copy, Debug)]
pub struct HeadSelection<'a> {
    pub(super) geometry: Geometry,
    pub(super) sinks: usize,
    pub(super) words: usize,
    pub(super) kept_blocks: &'a [u64],
    pub(super) stripes: &'a [u32],
    pub(super) dense: bool,
}

impl<'a> HeadSelection<'a> {
    /// Whether every visible key is kept, whatever the lists say.
    pub fn is_dense(&self) -> bool {
        self.dense
    }

    /// Whether key block `key_block` is listed for query block `query_block`.
    ///
    /// # Panics
    /// When the problem has no such blocks.
    pub fn keeps_block(&self, query_block: usize, key_block: usize) -> bool {
        self.row(query_block)[key_block / 64] >> (key_block % 64) & 1 == 1
    }

    /// Query blocks that have a list.
    pub(crate) fn query_blocks(&self) -> std::ops::Range<usize> {
        0..self.geometry.query_blocks().end
    }

    /// The key blocks of a query block, ascending.
    ///
    /// # Panics
    /// When the problem has no such query block.
    pub fn blocks(&self, query_block: usize) -> impl Iterator<Item = usize> + use<'a> {
        set_bits(self.row(query_block))
    }

    /// The stripes of the head, ascending.
    pub fn stripes(&self) -> &'a [u32] {
        self.stripes
    }

    /// The mask itself: whether query `row` attends to key `key`. `false` where the problem has no such query or key.
    pub fn keeps(&self, row: usize, key: usize) -> bool {
        let visible = row < self.geometry.q_len
            && (self.geometry.first_visible(row)..self.geometry.visible_keys(row)).contains(&key);
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
        if geometry.window_left.is_some() {
            return self.pairs_in_windows();
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

    /// The same where each row has its own first key.
    fn pairs_in_windows(&self) -> u64 {
        let geometry = self.geometry;
        let of_row = |query_block, row| {
            let visible = geometry.first_visible(row)..geometry.visible_keys(row);
            let listed = self.blocks(query_block).map(|block| {
                let keys = geometry.keys_of_block(block);
                let end = keys.end.min(visible.end);
                end.saturating_sub(keys.start.max(visible.start))
            });
            let loose = self.loose_keys(query_block);
            let loose = loose.filter(|&key| visible.contains(&(key as usize)));
            (listed.sum::<usize>() + loose.count()) as u64
        };
        let blocks = geometry.query_blocks();
        let rows =
            blocks.flat_map(|block| geometry.rows_of_block(block).map(move |row| (block, row)));
        rows.map(|(block, row)| of_row(block, row)).sum()
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
