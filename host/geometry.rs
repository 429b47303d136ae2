//! Positions, blocks, segments and sampled rows: the index arithmetic that every stage shares.

use std::ops::Range;

use sample_attention_device::abi::{self, HeadKind, HeadPolicy, Sequences};

use crate::problem::Problem;

/// Tokens of a query block or key block; blocks are counted from key position 0.
pub const BLOCK: usize = 128;

/// Query blocks of a segment: [`Budget::Blocks`](crate::Budget::Blocks) spends each segment's mass by itself, so a prompt
/// prefilled in chunks of whole segments selects what a whole prefill selects, provided that the row stride divides the
/// segment's 8192 tokens (otherwise each chunk samples its own last row besides).
pub const SEGMENT_BLOCKS: usize = 64;

/// The stride that growing row strides end at: two rows a query block.
const SPARSEST_STRIDE: usize = 64;

/// The row stride of a unit of the selection that begins at position `first`, by
/// [`Policy::stride_doubles_from`](crate::Policy::stride_doubles_from).
pub(crate) fn row_stride_at(row_stride: usize, doubles_from: usize, first: usize) -> usize {
    if row_stride >= SPARSEST_STRIDE {
        return row_stride;
    }
    // 0 below the first doubling, 1 up to twice its position, 2 up to four times it.
    let doublings = usize::BITS - (first / doubles_from).leading_zeros();
    // No stride needs more of them, and more would shift it out of its bits.
    (row_stride << doublings.min(SPARSEST_STRIDE.ilog2())).min(SPARSEST_STRIDE)
}

/// Rows, keys and blocks of one head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub(crate) q_len: usize,
    pub(crate) k_len: usize,
    pub(crate) causal: bool,
    /// Keys before its position that a row sees at most.
    pub(crate) window_left: Option<usize>,
}

impl Geometry {
    pub(crate) fn new(problem: &Problem) -> Self {
        Geometry {
            q_len: problem.q_len,
            k_len: problem.k_len,
            causal: problem.causal,
            window_left: problem.window_left,
        }
    }

    /// Key blocks, and query blocks too: both are counted from key position 0.
    pub(crate) fn blocks(&self) -> usize {
        self.k_len.div_ceil(BLOCK)
    }

    pub(crate) fn segments(&self) -> usize {
        self.blocks().div_ceil(SEGMENT_BLOCKS)
    }

    /// First key that row `row` may see; it sees the keys from there on to [`visible_keys`](Geometry::visible_keys).
    pub(crate) fn first_visible(&self, row: usize) -> usize {
        self.window_left.map_or(0, |window_left| {
            (row + self.k_len).saturating_sub(self.q_len.saturating_add(window_left))
        })
    }

    /// Keys that row `row` may see, and those before its window: a prefix of this length.
    pub(crate) fn visible_keys(&self, row: usize) -> usize {
        if self.causal {
            (row + self.k_len + 1).saturating_sub(self.q_len)
        } else {
            self.k_len
        }
    }

    /// Rows that see at least one key.
    pub(crate) fn seeing_rows(&self) -> Range<usize> {
        let first = if self.causal { self.first_row_at(0) } else { 0 };
        first..self.q_len
    }

    /// First row that stands at key position `position` or later.
    pub(crate) fn first_row_at(&self, position: usize) -> usize {
        (position + self.q_len)
            .saturating_sub(self.k_len)
            .min(self.q_len)
    }

    /// Key position of a row that sees at least one key.
    pub(crate) fn position(&self, row: usize) -> usize {
        row + self.k_len - self.q_len
    }

    pub(crate) fn rows_at(&self, positions: Range<usize>) -> Range<usize> {
        self.first_row_at(positions.start)..self.first_row_at(positions.end)
    }

    /// Rows of query block `block`; empty for blocks before the first query.
    pub(crate) fn rows_of_block(&self, block: usize) -> Range<usize> {
        if self.causal {
            self.rows_at(block * BLOCK..((block + 1) * BLOCK).min(self.k_len))
        } else {
            block * BLOCK..((block + 1) * BLOCK).min(self.q_len)
        }
    }

    /// Query block of a row that sees at least one key. Without causality rows have no position among the keys, and
    /// blocks are counted from row 0.
    pub(crate) fn query_block(&self, row: usize) -> usize {
        if self.causal {
            self.position(row) / BLOCK
        } else {
            row / BLOCK
        }
    }

    /// Keys of key block `block`.
    pub(crate) fn keys_of_block(&self, block: usize) -> Range<usize> {
        block * BLOCK..((block + 1) * BLOCK).min(self.k_len)
    }

    /// Query blocks that hold at least one row.
    pub(crate) fn query_blocks(&self) -> Range<usize> {
        if self.causal {
            self.k_len.saturating_sub(self.q_len) / BLOCK..self.blocks()
        } else {
            0..self.q_len.div_ceil(BLOCK)
        }
    }

    /// Pairs (row, key) of one head that the problem allows.
    pub(crate) fn visible_pairs(&self) -> u64 {
        (0..self.q_len)
            .map(|row| (self.visible_keys(row) - self.first_visible(row)) as u64)
            .sum()
    }
}

/// The offset of the sampled rows of a query head: heads are staggered, so that what a row would have looked up that one head does
/// not sample, another does. Consecutive heads are about 0.6 strides apart, by a step that shares no factor with the stride: as many
/// heads as the stride is long sample all rows between them.
pub(crate) fn row_offset(row_stride: usize, first: usize, q_head: usize) -> usize {
    let is_coprime = |step: &usize| gcd(*step, row_stride) == 1;
    let step = (row_stride / 5 * 3 + (row_stride % 5 * 3).div_ceil(5)..=row_stride)
        .find(is_coprime)
        .unwrap_or(1);
    // Widened: strides and heads are the caller's, of any size.
    let offset = (first % row_stride) as u128 + q_head as u128 * step as u128;
    (offset % row_stride as u128) as usize
}

fn gcd(mut a: usize, mut b: usize) -> usize {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// The last rows of a call, which are sampled at a stride of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tail {
    pub(crate) rows: usize,
    pub(crate) stride: usize,
}

impl Tail {
    pub(crate) const NONE: Tail = Tail { rows: 0, stride: 1 };
}

/// The rows of a call that sampling reads, as the kernels have them too.
/// Rows are addressed by their rank among the sampled rows of a range of positions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SampledRows {
    geometry: Geometry,
    rows: abi::SampledRows,
}

impl SampledRows {
    /// Sampled rows at `positions`, which must end at or before `k_len`.
    pub(crate) fn new(
        geometry: Geometry,
        (stride, offset): (usize, usize),
        tail: Tail,
        positions: Range<usize>,
    ) -> Self {
        let Geometry { q_len, k_len, .. } = geometry;
        let stride = stride_within(stride, k_len);
        let policy = HeadPolicy {
            kind: HeadKind::Rows,
            coverage: 1.0,
            window_blocks: 1,
            row_stride: stride,
            tail: tail.rows.min(k_len) as u32,
            tail_stride: stride_within(tail.stride, k_len),
            row_offset: (offset % BLOCK) as u32,
            offset_step: 0,
            stride_doubles_from: u32::MAX,
        };
        // Lengths are below 2^31.
        let sequence = Sequences::uniform(1, q_len as u32, k_len as u32, true).get(0);
        let [from, to] = [positions.start, positions.end].map(|position| position as u32);
        SampledRows {
            geometry,
            rows: policy.sampled_rows(&sequence, from, to),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.rows.len() as usize
    }

    /// Key position of the sampled row of this rank.
    pub(crate) fn position(&self, rank: usize) -> usize {
        self.rows.position(rank as u32) as usize
    }

    /// Row of this rank.
    pub(crate) fn row(&self, rank: usize) -> usize {
        self.geometry.first_row_at(self.position(rank))
    }

    /// Ranks of the sampled rows at positions below `position`.
    pub(crate) fn rank_at(&self, position: usize) -> usize {
        self.rows.rank_at(position as u32) as usize
    }
}

/// A stride as kernels have it, for problems with `k_len` keys. One beyond all positions samples the last row alone, whatever it is;
/// one beyond a block divides none.
pub(crate) fn stride_within(stride: usize, k_len: usize) -> u32 {
    stride.min((k_len + 1).max(BLOCK + 1)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn brute_force(
        geometry: Geometry,
        (stride, offset): (usize, usize),
        tail: Tail,
        positions: Range<usize>,
    ) -> Vec<usize> {
        let stride_at = |p| match p + tail.rows >= geometry.k_len {
            true => tail.stride,
            false => stride,
        };
        (0..geometry.q_len)
            .filter(|&row| geometry.visible_keys(row) > 0)
            .map(|row| (row, geometry.position(row)))
            .filter(|&(row, p)| {
                let stride = stride_at(p);
                let offset = match (p + 1) % BLOCK {
                    0 => 0,
                    _ if BLOCK.is_multiple_of(stride) => offset % stride,
                    _ => 0,
                };
                // Not what is moved from a block's end.
                let sampled = (p + 1 + offset) % stride == 0 && (p + 1 + offset) % BLOCK != 0;
                let sampled = sampled || offset == 0 && (p + 1) % stride == 0;
                let sampled = sampled || row + 1 == geometry.q_len;
                positions.contains(&p) && sampled
            })
            .map(|(row, _)| row)
            .collect()
    }

    fn check_rows(geometry: Geometry, stride: (usize, usize), tail: Tail, positions: Range<usize>) {
        let rows = SampledRows::new(geometry, stride, tail, positions.clone());
        let listed: Vec<usize> = (0..rows.len()).map(|rank| rows.row(rank)).collect();
        let place = format!("{geometry:?} {stride:?} {tail:?} {positions:?}");
        let expected = brute_force(geometry, stride, tail, positions.clone());
        assert_eq!(listed, expected, "{place}");
        for position in positions.start..=positions.end {
            let below = (0..rows.len())
                .filter(|&rank| rows.position(rank) < position)
                .count();
            assert_eq!(rows.rank_at(position), below, "{place} {position}");
        }
    }

    #[test]
    fn as_many_heads_as_the_stride_is_long_sample_all_rows() {
        for stride in [1, 2, 3, 4, 6, 8, 12, 16, 20, 100] {
            for first in [0, 5] {
                let mut offsets: Vec<usize> = (0..stride)
                    .map(|head| row_offset(stride, first, head))
                    .collect();
                offsets.sort_unstable();
                assert!(offsets.into_iter().eq(0..stride), "{stride} {first}");
            }
        }
        assert_eq!(
            [0, 1, 2, 3].map(|head| row_offset(8, 0, head)),
            [0, 5, 2, 7]
        );
        let _ = row_offset(usize::MAX, usize::MAX, usize::MAX);
    }

    #[test]
    fn sampled_rows_are_the_multiples_and_the_last_row() {
        let tail = |rows, stride| Tail { rows, stride };
        for (q_len, k_len) in [(1, 1), (5, 40), (40, 5), (333, 333), (200, 300), (256, 256)] {
            for stride in [1, 7, 16, 20, 500] {
                for (start, end) in [(0, k_len), (0, k_len.min(128)), (k_len / 2, k_len)] {
                    for tail in [Tail::NONE, tail(30, 4), tail(130, 7), tail(1000, 3)] {
                        let geometry = Geometry {
                            q_len,
                            k_len,
                            causal: true,
                            window_left: None,
                        };
                        for offset in [0, 3, stride - 1] {
                            check_rows(geometry, (stride, offset), tail, start..end);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn query_blocks_partition_the_rows_that_see_a_key() {
        for (q_len, k_len) in [
            (1, 1),
            (300, 300),
            (100, 300),
            (300, 100),
            (129, 128),
            (1, 1000),
        ] {
            let geometry = Geometry {
                q_len,
                k_len,
                causal: true,
                window_left: None,
            };
            let rows: Vec<usize> = geometry
                .query_blocks()
                .flat_map(|block| geometry.rows_of_block(block))
                .collect();
            let seeing: Vec<usize> = (0..q_len)
                .filter(|&r| geometry.visible_keys(r) > 0)
                .collect();
            assert_eq!(rows, seeing);
        }
    }
}
