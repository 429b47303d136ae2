//! Index arithmetic of the selection: sampled rows, and the units that spend their mass by themselves. For the kernels, and
//! for the host that launches them.
//!
//! Query i stands at key position p(i) = i + k_len − q_len and sees the keys up to p(i). Rows with p(i) < 0 see nothing; no
//! selection kernel visits them, so rows are named by position here.

use crate::params::{BLOCK, ProblemSizes, SEGMENT_BLOCKS};

/// The stride that growing row strides end at: two rows a query block.
pub const SPARSEST_STRIDE: u32 = 64;

/// Sampled rows of a range of positions, ascending; each is named by its rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SampledRows {
    k_len: u32,
    stride: u32,
    /// Multiples of `stride` at or below the range's first position.
    multiples_before: u32,
    /// Sampled rows that are multiples; at most one more is not.
    multiples: u32,
    len: u32,
}

#[allow(
    clippy::len_without_is_empty,
    reason = "no caller asks whether there is none"
)]
impl SampledRows {
    /// The sampled rows at positions `from..to`, where `to` is at most `k_len`: those whose position plus one is a
    /// multiple of `stride`, and the last row of the head. The problem is causal.
    #[inline(always)]
    pub const fn new(sizes: &ProblemSizes, stride: u32, from: u32, to: u32) -> Self {
        let first_position = sizes.k_len.saturating_sub(sizes.q_len);
        let first = if from > first_position {
            from
        } else {
            first_position
        };
        let end = if to > first { to } else { first };
        let multiples_before = first / stride;
        let multiples = end / stride - multiples_before;
        let holds_last_row = end == sizes.k_len && end > first;
        let last_is_extra = holds_last_row && !sizes.k_len.is_multiple_of(stride);
        SampledRows {
            k_len: sizes.k_len,
            stride,
            multiples_before,
            multiples,
            len: multiples + last_is_extra as u32,
        }
    }

    /// How many there are.
    #[inline(always)]
    pub const fn len(self) -> u32 {
        self.len
    }

    /// Key position of the row of this rank, which is below [`len`](Self::len).
    #[inline(always)]
    pub const fn position(self, rank: u32) -> u32 {
        if rank < self.multiples {
            (self.multiples_before + rank + 1) * self.stride - 1
        } else {
            self.k_len - 1
        }
    }

    /// How many of the rows stand at positions below `position`.
    #[inline(always)]
    pub const fn rank_at(self, position: u32) -> u32 {
        if position >= self.k_len {
            return self.len;
        }
        let rank = (position / self.stride).saturating_sub(self.multiples_before);
        if rank < self.multiples {
            rank
        } else {
            self.multiples
        }
    }
}

/// How a selection's work is cut up. A *unit* is what spends its mass by itself: one segment of one head where blocks are
/// selected, one head where keys are. A launch works on `count` units from `first` on, and buffers "a unit" have a place for
/// each of these, so a host bounds its workspace by launching the stages for some units after others.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Units {
    /// The problem; causal.
    pub sizes: ProblemSizes,
    /// One position in this many is sampled in units that begin below `stride_doubles_from`; at least 1.
    pub row_stride: u32,
    /// Units that begin at or beyond this position are sampled at twice `row_stride`, from twice the position on at four times, and so
    /// on up to [`SPARSEST_STRIDE`]; at least 1. Keys are ranked over a whole head, which begins at 0, so it makes no difference there.
    pub stride_doubles_from: u32,
    /// First keys that every query keeps, at most `k_len`.
    pub sinks: u32,
    /// Key blocks of a query block's window, its own included; at least 1.
    pub window_blocks: u32,
    /// Query blocks of a unit, at most.
    pub unit_blocks: u32,
    /// Sampled rows of a unit, at most.
    pub row_capacity: u32,
    /// First unit of the launch.
    pub first: u32,
    /// Units of the launch.
    pub count: u32,
}

/// What a selection chooses among.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Candidates {
    /// Pairs (query block, key block), segment by segment.
    Blocks,
    /// Single keys, head by head.
    Keys,
}

/// One unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unit {
    /// Batch · q_heads + query head.
    pub head: u32,
    /// Its first query block.
    pub first_block: u32,
    /// The query block after its last.
    pub end_block: u32,
}

impl Units {
    /// All units of a problem, sampled at the same stride everywhere.
    pub fn new(
        sizes: ProblemSizes,
        candidates: Candidates,
        row_stride: u32,
        sinks: u32,
        window_tokens: u32,
    ) -> Self {
        let mut units = Units {
            sizes,
            row_stride,
            stride_doubles_from: u32::MAX,
            sinks: sinks.min(sizes.k_len),
            window_blocks: window_tokens.saturating_sub(1).div_ceil(BLOCK) + 1,
            unit_blocks: match candidates {
                Candidates::Blocks => SEGMENT_BLOCKS.min(sizes.key_blocks()),
                Candidates::Keys => sizes.key_blocks(),
            },
            row_capacity: 0,
            first: 0,
            count: 0,
        };
        units.count = units.total();
        units.with_stride_doubles_from(u32::MAX)
    }

    /// The same units, with [`stride_doubles_from`](Self::stride_doubles_from) at a position of at least 1.
    pub fn with_stride_doubles_from(self, position: u32) -> Self {
        let units = Units {
            stride_doubles_from: position,
            ..self
        };
        let rows = (0..units.per_head()).map(|unit| units.rows(units.unit(unit)).len());
        Units {
            // At least 1, so that no buffer and no grid is empty.
            row_capacity: rows.fold(1, u32::max),
            ..units
        }
    }

    /// A launch of some of the units.
    pub const fn slice(self, first: u32, count: u32) -> Self {
        Units {
            first,
            count,
            ..self
        }
    }

    /// Units of one head.
    #[inline(always)]
    pub const fn per_head(&self) -> u32 {
        self.sizes.key_blocks().div_ceil(self.unit_blocks)
    }

    /// Units of the problem.
    #[inline(always)]
    pub const fn total(&self) -> u32 {
        self.sizes.heads() * self.per_head()
    }

    /// The unit of this index among all of the problem: head after head, segments ascending.
    #[inline(always)]
    pub const fn unit(&self, index: u32) -> Unit {
        let first_block = index % self.per_head() * self.unit_blocks;
        let end = first_block + self.unit_blocks;
        let blocks = self.sizes.key_blocks();
        Unit {
            head: index / self.per_head(),
            first_block,
            end_block: if end < blocks { end } else { blocks },
        }
    }

    /// The row stride of a unit: its first position decides.
    #[inline(always)]
    pub const fn stride(&self, unit: Unit) -> u32 {
        let (first, doubles_from) = (unit.first_block * BLOCK, self.stride_doubles_from);
        if first < doubles_from || self.row_stride >= SPARSEST_STRIDE {
            return self.row_stride;
        }
        // 1 up to twice `doubles_from`, 2 up to four times it: bits of the quotient, without a division and its check for zero.
        let more_bits = doubles_from.leading_zeros() - first.leading_zeros();
        let doublings = more_bits + (first >> more_bits >= doubles_from) as u32;
        // No stride needs more of them, and more would shift it out of its bits.
        let most = SPARSEST_STRIDE.ilog2();
        let stride = self.row_stride << if doublings < most { doublings } else { most };
        if stride < SPARSEST_STRIDE {
            stride
        } else {
            SPARSEST_STRIDE
        }
    }

    /// The sampled rows of a unit.
    #[inline(always)]
    pub const fn rows(&self, unit: Unit) -> SampledRows {
        let end = unit.end_block * BLOCK;
        let end = if end < self.sizes.k_len {
            end
        } else {
            self.sizes.k_len
        };
        let from = unit.first_block * BLOCK;
        SampledRows::new(&self.sizes, self.stride(unit), from, end)
    }

    /// The first key block of a query block's window.
    #[inline(always)]
    pub const fn first_window_block(&self, query_block: u32) -> u32 {
        (query_block + 1).saturating_sub(self.window_blocks)
    }

    /// Pairs (query block, key block) of a unit.
    #[inline(always)]
    pub const fn pair_capacity(&self) -> u32 {
        self.unit_blocks * self.sizes.key_blocks()
    }

    /// Keys of a unit, rounded up to whole key blocks.
    #[inline(always)]
    pub const fn key_capacity(&self) -> u32 {
        self.sizes.key_blocks() * BLOCK
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn causal(q_len: u32, k_len: u32) -> ProblemSizes {
        ProblemSizes {
            batch: 2,
            q_heads: 3,
            kv_heads: 1,
            q_len,
            k_len,
            head_dim: 64,
            causal: 1,
        }
    }

    /// By definition.
    fn sampled(sizes: &ProblemSizes, stride: u32, from: u32, to: u32) -> Vec<u32> {
        (0..sizes.q_len)
            .filter_map(|row| (row + sizes.k_len).checked_sub(sizes.q_len))
            .filter(|p| (from..to).contains(p))
            .filter(|p| (p + 1).is_multiple_of(stride) || p + 1 == sizes.k_len)
            .collect()
    }

    #[test]
    fn sampled_rows_are_the_multiples_and_the_last_row() {
        for (q_len, k_len) in [
            (1, 1),
            (5, 40),
            (40, 5),
            (333, 333),
            (200, 300),
            (256, 256),
            (1, 300),
        ] {
            let sizes = causal(q_len, k_len);
            for stride in [1, 7, 16, 20, 500] {
                for (from, to) in [
                    (0, k_len),
                    (0, k_len.min(128)),
                    (k_len / 2, k_len),
                    (128.min(k_len), k_len),
                ] {
                    let rows = SampledRows::new(&sizes, stride, from, to);
                    let listed: Vec<u32> =
                        (0..rows.len()).map(|rank| rows.position(rank)).collect();
                    let expected = sampled(&sizes, stride, from, to);
                    assert_eq!(listed, expected, "{sizes:?}, stride {stride}, {from}..{to}");
                    for position in from..=to {
                        let below = expected.iter().filter(|&&p| p < position).count();
                        assert_eq!(rows.rank_at(position), below as u32, "{sizes:?} {position}");
                    }
                }
            }
        }
    }

    #[test]
    fn units_share_out_the_sampled_rows_of_every_head() {
        for (q_len, k_len) in [(20_000, 20_000), (300, 20_000), (20_000, 300), (1, 8193)] {
            let sizes = causal(q_len, k_len);
            for (candidates, doubles_from) in [
                (Candidates::Blocks, u32::MAX),
                (Candidates::Blocks, 8192),
                (Candidates::Keys, u32::MAX),
                (Candidates::Keys, 1),
            ] {
                let units = Units::new(sizes, candidates, 20, 16, 256)
                    .with_stride_doubles_from(doubles_from);
                let whole = match (candidates, doubles_from) {
                    // Strides 20, 40 and, instead of 80, 64.
                    (Candidates::Blocks, 8192) => [(20, 0), (40, 8192), (64, 16_384)]
                        .map(|(stride, from)| {
                            let end = (from + 8192).min(k_len).max(from);
                            sampled(&sizes, stride, from, end).len() as u32
                        })
                        .iter()
                        .sum(),
                    _ => sampled(&sizes, 20, 0, k_len).len() as u32,
                };
                for head in 0..sizes.heads() {
                    let of_head: Vec<Unit> = (0..units.total())
                        .map(|index| units.unit(index))
                        .filter(|unit| unit.head == head)
                        .collect();
                    let lens = of_head.iter().map(|&unit| units.rows(unit).len());
                    assert_eq!(lens.clone().sum::<u32>(), whole);
                    assert_eq!(lens.max().unwrap_or(0).max(1), units.row_capacity);
                    let last = of_head.last().map(|unit| unit.end_block);
                    assert_eq!(last, Some(sizes.key_blocks()));
                }
            }
        }
    }

    #[test]
    fn strides_double_with_the_position_of_a_segment_up_to_two_rows_a_query_block() {
        let sizes = causal(1 << 20, 1 << 20);
        let strides = |row_stride, doubles_from, candidates| {
            let units = Units::new(sizes, candidates, row_stride, 16, 256)
                .with_stride_doubles_from(doubles_from);
            let of_segments: Vec<u32> = (0..units.per_head())
                .map(|segment| units.stride(units.unit(segment)))
                .collect();
            of_segments
        };
        let by_segment = |runs: &[(u32, usize)]| -> Vec<u32> {
            let runs = runs.iter().flat_map(|&(stride, len)| [stride].repeat(len));
            runs.collect()
        };
        let blocks = Candidates::Blocks;
        for (row_stride, doubles_from, runs) in [
            // 128 segments of 8192 positions.
            (16, u32::MAX, &[(16, 128)][..]),
            (16, 1 << 20, &[(16, 128)]),
            (16, 65_536, &[(16, 8), (32, 8), (64, 112)]),
            (16, 8192, &[(16, 1), (32, 1), (64, 126)]),
            // The position that a segment begins at decides: 8192 is below, 24,576 beyond twice 8193.
            (16, 8193, &[(16, 2), (32, 1), (64, 125)]),
            (16, 3 << 13, &[(16, 3), (32, 3), (64, 122)]),
            (
                1,
                8192,
                &[(1, 1), (2, 1), (4, 2), (8, 4), (16, 8), (32, 16), (64, 96)],
            ),
            (1, 1, &[(1, 1), (64, 127)]),
            (20, 8192, &[(20, 1), (40, 1), (64, 126)]),
            (63, 1, &[(63, 1), (64, 127)]),
            (64, 1, &[(64, 128)]),
            (100, 1, &[(100, 128)]),
            (u32::MAX, 1, &[(u32::MAX, 128)]),
        ] {
            assert_eq!(
                strides(row_stride, doubles_from, blocks),
                by_segment(runs),
                "{row_stride} from {doubles_from}"
            );
        }
        assert_eq!(strides(16, 1, Candidates::Keys), [16]);
    }

    #[test]
    fn the_window_holds_at_least_its_tokens() {
        for (tokens, blocks) in [(1, 1), (2, 2), (129, 2), (130, 3), (256, 3), (257, 3)] {
            let units = Units::new(causal(1000, 1000), Candidates::Blocks, 16, 0, tokens);
            assert_eq!(units.window_blocks, blocks, "{tokens} tokens");
            assert_eq!(units.first_window_block(5), 6 - blocks);
        }
    }
}
