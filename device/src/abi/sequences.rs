//! The sequences of a batch, and the query tiles that they are cut into.
//!
//! # Positions
//! Keys of a sequence are counted from 0. Causal: query `i` stands at key position `p(i) = i + k_len − q_len` and sees the keys
//! `j <= p(i)` (bottom-right alignment). Not causal: every query sees every key and `p(i) = i`.
//!
//! # Query tiles
//! Query block `b` holds the rows at positions `b·128 .. b·128 + 128`. A sequence has a *query tile* for each query block that
//! holds one of its rows and, before those, a tile for each 128 rows that see no key (causal, more queries than keys). Tiles of
//! all sequences are numbered one after the other. In a ragged batch a sequence's first number follows from `cu_q` without a sum
//! over the sequences before: `⌊cu_q / 128⌋ + 2·sequence`, which is room enough, so that a few numbers name no tile.

use crate::block::BLOCK;
use crate::gpu::{self, Global};

/// The lengths of a batch.
///
/// Uniform: every sequence has `max_q` queries and `max_k` keys, and tensors have a batch dimension.
/// Ragged (`cu_q` is not null): queries of all sequences are packed one after the other; so are keys, unless they are paged.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Sequences {
    /// Sequences.
    pub count: u32,
    /// Queries of the longest sequence: a bound where lengths are ragged.
    pub max_q: u32,
    /// Keys of the longest sequence: a bound where lengths are ragged.
    pub max_k: u32,
    /// Queries of all sequences: a bound where lengths are ragged.
    pub total_q: u32,
    /// 1 where a query sees the keys up to its own position, 0 where it sees all.
    pub causal: u32,
    /// 1 where `cu_k` holds one length a sequence, `count` of them, instead of cumulative lengths. For paged keys alone.
    pub k_lens_each: u32,
    /// \[count + 1\]: cumulative queries. Null: uniform lengths.
    pub cu_q: Global<u32>,
    /// \[count + 1\]: cumulative keys. Null if and only if `cu_q` is.
    pub cu_k: Global<u32>,
}

/// One sequence of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// Its number.
    pub index: u32,
    /// Its place in the batch dimension of tensors: its number, or 0 where sequences are packed.
    pub batch: u32,
    /// Rows of packed queries before its own; 0 where lengths are uniform.
    pub q_start: u32,
    /// Rows of packed keys before its own; 0 where lengths are uniform. Where keys are paged it names nothing.
    pub k_start: u32,
    /// Queries.
    pub q_len: u32,
    /// Keys.
    pub k_len: u32,
    /// Whether a query sees only the keys up to its own position.
    pub causal: bool,
}

/// A query tile: up to 128 rows of one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueryTile {
    /// The sequence.
    pub sequence: Sequence,
    /// The query block; `None` for rows that see no key.
    pub query_block: Option<u32>,
    /// Its first row, counted from the sequence's first query. Negative where the query block begins before it.
    pub first_row: i32,
}

impl Sequence {
    /// `p(0)`: negative where rows see no key.
    #[inline(always)]
    pub const fn first_position(&self) -> i32 {
        if self.causal {
            self.k_len as i32 - self.q_len as i32
        } else {
            0
        }
    }

    /// Rows that see no key: the first ones of a causal sequence with more queries than keys, all of one without keys.
    #[inline(always)]
    pub const fn fully_masked_rows(&self) -> u32 {
        if self.k_len == 0 {
            self.q_len
        } else if self.causal {
            self.q_len.saturating_sub(self.k_len)
        } else {
            0
        }
    }

    /// Key blocks, the last one perhaps partial.
    #[inline(always)]
    pub const fn key_blocks(&self) -> u32 {
        self.k_len.div_ceil(BLOCK)
    }

    /// The first query block that holds a row which sees a key.
    #[inline(always)]
    pub const fn first_query_block(&self) -> u32 {
        if self.causal {
            self.k_len.saturating_sub(self.q_len) / BLOCK
        } else {
            0
        }
    }

    /// The query block after the last.
    #[inline(always)]
    pub const fn end_query_block(&self) -> u32 {
        if self.q_len == 0 || self.k_len == 0 {
            self.first_query_block()
        } else if self.causal {
            self.key_blocks()
        } else {
            self.q_len.div_ceil(BLOCK)
        }
    }

    /// Query tiles, those of rows that see no key included.
    #[inline(always)]
    pub const fn query_tiles(&self) -> u32 {
        self.fully_masked_rows().div_ceil(BLOCK) + self.end_query_block() - self.first_query_block()
    }

    /// A query tile by its place among the sequence's own: rows that see no key first, then query blocks ascending.
    #[inline(always)]
    pub const fn query_tile(self, place: u32) -> Option<QueryTile> {
        if place < self.query_tiles() {
            Some(self.tile_at(place))
        } else {
            None
        }
    }

    /// The same for a place below [`query_tiles`](Self::query_tiles).
    #[inline(always)]
    pub const fn tile_at(self, place: u32) -> QueryTile {
        let masked_tiles = self.fully_masked_rows().div_ceil(BLOCK);
        if place < masked_tiles {
            QueryTile {
                sequence: self,
                query_block: None,
                first_row: (place * BLOCK) as i32,
            }
        } else {
            let query_block = self.first_query_block() + place - masked_tiles;
            QueryTile {
                sequence: self,
                query_block: Some(query_block),
                first_row: (query_block * BLOCK) as i32 - self.first_position(),
            }
        }
    }

    /// The place among the sequence's own tiles of a query block.
    #[inline(always)]
    pub const fn place_of(&self, query_block: u32) -> u32 {
        self.fully_masked_rows().div_ceil(BLOCK) + query_block - self.first_query_block()
    }
}

impl Sequences {
    /// A batch of equal lengths.
    pub const fn uniform(count: u32, q_len: u32, k_len: u32, causal: bool) -> Self {
        Sequences {
            count,
            max_q: q_len,
            max_k: k_len,
            // More than kernels count: those that go by it have few queries.
            total_q: count.saturating_mul(q_len),
            causal: causal as u32,
            k_lens_each: 0,
            cu_q: Global::NULL,
            cu_k: Global::NULL,
        }
    }

    /// Whether lengths are device data.
    #[inline(always)]
    pub const fn is_ragged(&self) -> bool {
        !self.cu_q.is_null()
    }

    /// Whether a query sees only the keys up to its own position.
    #[inline(always)]
    pub const fn is_causal(&self) -> bool {
        self.causal != 0
    }

    /// Key blocks of the longest sequence.
    #[inline(always)]
    pub const fn max_key_blocks(&self) -> u32 {
        self.max_k.div_ceil(BLOCK)
    }

    /// The sequence that all are alike, where lengths are uniform.
    #[inline(always)]
    const fn alike(&self, index: u32) -> Sequence {
        Sequence {
            index,
            batch: index,
            q_start: 0,
            k_start: 0,
            q_len: self.max_q,
            k_len: self.max_k,
            causal: self.is_causal(),
        }
    }

    /// A sequence by its number. Lengths beyond the bounds are cut to them, so that no buffer is left.
    #[inline(always)]
    pub fn get(&self, index: u32) -> Sequence {
        if !self.is_ragged() {
            return self.alike(index);
        }
        let q_start = gpu::ld_global_nc(self.cu_q.add(index.into()));
        let q_end = gpu::ld_global_nc(self.cu_q.add(u64::from(index) + 1));
        let (k_start, k_len) = if self.k_lens_each != 0 {
            (0, gpu::ld_global_nc(self.cu_k.add(index.into())))
        } else {
            let start = gpu::ld_global_nc(self.cu_k.add(index.into()));
            let end = gpu::ld_global_nc(self.cu_k.add(u64::from(index) + 1));
            (start, end.saturating_sub(start))
        };
        Sequence {
            index,
            batch: 0,
            q_start,
            k_start,
            q_len: q_end.saturating_sub(q_start).min(self.max_q),
            k_len: k_len.min(self.max_k),
            causal: self.is_causal(),
        }
    }

    /// Numbers of query tiles: every tile has one below this, known from bounds alone.
    #[inline(always)]
    pub const fn query_tiles(&self) -> u32 {
        if self.is_ragged() {
            self.total_q / BLOCK + 2 * self.count
        } else {
            self.count * self.alike(0).query_tiles()
        }
    }

    /// The number of the first query tile of a sequence by its number; [`query_tiles`](Self::query_tiles) or less after the last.
    #[inline(always)]
    pub fn first_query_tile_at(&self, index: u32) -> u32 {
        if self.is_ragged() {
            gpu::ld_global_nc(self.cu_q.add(index.into())) / BLOCK + 2 * index
        } else {
            index * self.alike(0).query_tiles()
        }
    }

    /// The number of a sequence's first query tile.
    #[inline(always)]
    pub fn first_query_tile(&self, sequence: &Sequence) -> u32 {
        if self.is_ragged() {
            sequence.q_start / BLOCK + 2 * sequence.index
        } else {
            sequence.index * self.alike(0).query_tiles()
        }
    }

    /// The query tile of a number; `None` where the number names none.
    #[inline(always)]
    pub fn query_tile(&self, number: u32) -> Option<QueryTile> {
        if number >= self.query_tiles() {
            return None;
        }
        let sequence = self.sequence_of(number);
        sequence.query_tile(number - self.first_query_tile(&sequence))
    }

    /// The sequence to which a number below [`query_tiles`](Self::query_tiles) belongs, whether it names a tile or not. Ragged: a
    /// binary search over the sequences.
    #[inline(always)]
    pub fn sequence_of(&self, number: u32) -> Sequence {
        if !self.is_ragged() {
            return self.alike(number / self.alike(0).query_tiles());
        }
        // The last sequence whose first tile is not after the number. `high - low` halves: at most 32 turns.
        let (mut low, mut high) = (0, self.count);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if self.first_query_tile_at(middle) <= number {
                low = middle;
            } else {
                high = middle;
            }
        }
        self.get(low)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(q_len: u32, k_len: u32, causal: bool) -> Sequence {
        Sequences::uniform(1, q_len, k_len, causal).get(0)
    }

    const LENGTHS: [(u32, u32); 12] = [
        (1, 1),
        (113, 203),
        (203, 113),
        (1, 1000),
        (256, 256),
        (799, 3),
        (0, 5),
        (5, 0),
        (0, 0),
        (129, 128),
        (2, 129),
        (1024, 1023),
    ];

    #[test]
    fn every_row_lies_in_exactly_one_tile() {
        for (q_len, k_len) in LENGTHS {
            for causal in [false, true] {
                let sequence = sequence(q_len, k_len, causal);
                let mut seen = vec![0; q_len as usize];
                for place in 0..sequence.query_tiles() {
                    let tile = sequence.query_tile(place).unwrap();
                    let masked = sequence.fully_masked_rows() as i32;
                    let rows = match tile.query_block {
                        None => tile.first_row..(tile.first_row + 128).min(masked),
                        Some(block) => {
                            assert_eq!(sequence.place_of(block), place);
                            tile.first_row.max(masked)..(tile.first_row + 128).min(q_len as i32)
                        }
                    };
                    assert!(!rows.is_empty(), "{sequence:?} {place}");
                    for row in rows {
                        seen[row as usize] += 1;
                        if let Some(block) = tile.query_block {
                            let position = row + sequence.first_position();
                            assert_eq!(position as u32 / BLOCK, block);
                        }
                    }
                }
                assert!(seen.iter().all(|&count| count == 1), "{sequence:?}");
                assert_eq!(sequence.query_tile(sequence.query_tiles()), None);
            }
        }
    }

    /// The room that a ragged batch has for a sequence's tiles, wherever it begins.
    #[test]
    fn no_sequence_has_more_tiles_than_numbers_are_kept_for_it() {
        for (q_len, k_len) in LENGTHS {
            for causal in [false, true] {
                for q_start in [0, 1, 127, 128, 200] {
                    let room = (q_start + q_len) / BLOCK + 2 - q_start / BLOCK;
                    assert!(sequence(q_len, k_len, causal).query_tiles() <= room);
                }
            }
        }
    }

    #[test]
    fn tiles_of_equal_sequences_follow_each_other() {
        let sequences = Sequences::uniform(3, 300, 1000, true);
        let of_each = sequences.get(0).query_tiles();
        assert_eq!(sequences.query_tiles(), 3 * of_each);
        for number in 0..sequences.query_tiles() {
            let tile = sequences.query_tile(number).unwrap();
            assert_eq!(tile.sequence.index, number / of_each);
            let place = tile.sequence.place_of(tile.query_block.unwrap());
            assert_eq!(sequences.first_query_tile(&tile.sequence) + place, number);
        }
        assert_eq!(sequences.query_tile(sequences.query_tiles()), None);
    }
}
