//! How one head is treated, and which of its rows are sampled.

use super::sequences::Sequence;
use crate::gpu::{self, Global};
use crate::params::{BLOCK, SEGMENT_BLOCKS};

/// What is done with a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum HeadKind {
    /// Everything visible; nothing is sampled.
    Dense = 0,
    /// Window and sinks; nothing is sampled.
    Local = 1,
    /// Key blocks for each sampled row by itself, united over the rows of a query block.
    Rows = 2,
    /// Pairs (query block, key block), ranked within segments of 64 query blocks.
    Blocks = 3,
    /// Single keys by the mass outside window and sinks.
    Residual = 4,
    /// Single keys by their whole mass.
    Paper = 5,
}

impl HeadKind {
    /// From its number; what is no kind is dense, which leaves nothing out.
    #[inline(always)]
    pub const fn from_u32(kind: u32) -> Self {
        match kind {
            1 => HeadKind::Local,
            2 => HeadKind::Rows,
            3 => HeadKind::Blocks,
            4 => HeadKind::Residual,
            5 => HeadKind::Paper,
            _ => HeadKind::Dense,
        }
    }

    /// Whether rows of the head are sampled.
    #[inline(always)]
    pub const fn is_sampled(self) -> bool {
        !matches!(self, HeadKind::Dense | HeadKind::Local)
    }
}

/// The policy of one query head.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeadPolicy {
    /// What is done.
    pub kind: HeadKind,
    /// Share of the sampled mass to reach, in (0, 1].
    pub coverage: f32,
    /// Key blocks of a query block's window, its diagonal block included; at least 1.
    pub window_blocks: u32,
    /// One position in this many is sampled; at least 1.
    pub row_stride: u32,
    /// The last rows of a sequence that are sampled at `tail_stride` instead.
    pub tail: u32,
    /// One position in this many is sampled among the last `tail` rows; at least 1.
    pub tail_stride: u32,
    /// For [`HeadKind::Rows`], where the stride divides a block: rows are sampled (`row_offset` + head · `offset_step`) mod
    /// `row_stride` before the multiples of the stride, but for the last row of each query block.
    pub row_offset: u32,
    /// 0 in the policy [of a head](Self::of_head).
    pub offset_step: u32,
    /// For [`HeadKind::Blocks`] alone: segments that begin at or beyond this position are sampled at twice `row_stride`, from twice
    /// the position on at four times, and so on up to [`SPARSEST_STRIDE`]; at least 1, and `u32::MAX` for never.
    pub stride_doubles_from: u32,
}

/// The stride that growing row strides end at: two rows a query block.
pub const SPARSEST_STRIDE: u32 = 64;

impl HeadPolicy {
    /// The first key block of a query block's window.
    #[inline(always)]
    pub const fn first_window_block(&self, query_block: u32) -> u32 {
        (query_block + 1).saturating_sub(self.window_blocks)
    }

    /// The policy of one of the heads that share it.
    #[inline(always)]
    pub const fn of_head(self, q_head: u32) -> Self {
        let offset = match self.kind {
            HeadKind::Rows => (self.row_offset + q_head * self.offset_step) % self.row_stride,
            _ => 0,
        };
        HeadPolicy {
            row_offset: offset,
            offset_step: 0,
            ..self
        }
    }

    /// The policy at the row stride of the segment that holds a query block.
    #[inline(always)]
    pub const fn in_segment_of(self, query_block: u32) -> Self {
        let first = query_block / SEGMENT_BLOCKS * SEGMENT_BLOCKS * BLOCK;
        let doubles_from = self.stride_doubles_from;
        if !matches!(self.kind, HeadKind::Blocks)
            || first < doubles_from
            || self.row_stride >= SPARSEST_STRIDE
        {
            return self;
        }
        // 1 up to twice `doubles_from`, 2 up to four times it: bits of the quotient, without a division and its check for zero.
        let more_bits = doubles_from.leading_zeros() - first.leading_zeros();
        let doublings = more_bits + (first >> more_bits >= doubles_from) as u32;
        // No stride needs more of them, and more would shift it out of its bits.
        let most = SPARSEST_STRIDE.ilog2();
        HeadPolicy {
            row_stride: min(self.row_stride << min(doublings, most), SPARSEST_STRIDE),
            ..self
        }
    }

    /// Sampled rows of a query block, at most.
    pub const fn rows_of_block(&self) -> u32 {
        let stride = if self.tail == 0 {
            self.row_stride
        } else {
            min(self.row_stride, self.tail_stride)
        };
        let multiples = BLOCK.div_ceil(stride);
        // In blocks of whole strides, the last row of a sequence is a multiple or stands in a partial block.
        let whole = BLOCK.is_multiple_of(stride)
            && (self.tail == 0 || self.row_stride.is_multiple_of(stride));
        if whole {
            multiples
        } else {
            min(multiples + 2, BLOCK)
        }
    }

    /// The sampled rows of a sequence at positions `from..to`.
    #[inline(always)]
    pub const fn sampled_rows(&self, sequence: &Sequence, from: u32, to: u32) -> SampledRows {
        SampledRows::new(self, sequence, from, to)
    }
}

/// A head's policy in a table, with its place among the sampled heads.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeadEntry {
    /// The policy.
    pub policy: HeadPolicy,
    /// How many sampled heads come before; [`NO_SLOT`](Self::NO_SLOT) where the head is not sampled.
    pub slot: u32,
}

impl HeadEntry {
    /// The slot of a head that is not sampled.
    pub const NO_SLOT: u32 = u32::MAX;
    /// Words of an entry.
    pub const WORDS: u32 = 10;
}

const _: () = assert!(size_of::<HeadEntry>() == 4 * HeadEntry::WORDS as usize);

/// The policies of all query heads.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HeadPolicies {
    /// The policy of every head, where `table` is null.
    pub all: HeadPolicy,
    /// \[q_heads\]: the policy of each. Null: they are alike.
    pub table: Global<HeadEntry>,
    /// \[sampled\]: the sampled heads, ascending. Null with `table`.
    pub sampled_heads: Global<u32>,
    /// How many heads are sampled.
    pub sampled: u32,
}

impl HeadPolicies {
    /// One policy for `q_heads` heads.
    pub const fn alike(policy: HeadPolicy, q_heads: u32) -> Self {
        HeadPolicies {
            all: policy,
            table: Global::NULL,
            sampled_heads: Global::NULL,
            sampled: if policy.kind.is_sampled() { q_heads } else { 0 },
        }
    }

    /// The entry of a head.
    #[inline(always)]
    pub fn get(&self, q_head: u32) -> HeadEntry {
        if self.table.is_null() {
            let slot = if self.all.kind.is_sampled() {
                q_head
            } else {
                HeadEntry::NO_SLOT
            };
            return HeadEntry {
                policy: self.all.of_head(q_head),
                slot,
            };
        }
        let words = self
            .table
            .cast::<u32>()
            .add(u64::from(q_head) * u64::from(HeadEntry::WORDS));
        let word = |index: u64| gpu::ld_global_nc(words.add(index));
        let policy = HeadPolicy {
            kind: HeadKind::from_u32(word(0)),
            coverage: f32::from_bits(word(1)),
            window_blocks: word(2),
            row_stride: word(3),
            tail: word(4),
            tail_stride: word(5),
            row_offset: word(6),
            offset_step: word(7),
            stride_doubles_from: word(8),
        };
        HeadEntry {
            policy: policy.of_head(q_head),
            slot: word(9),
        }
    }

    /// The head of a slot.
    #[inline(always)]
    pub fn head_of(&self, slot: u32) -> u32 {
        if self.sampled_heads.is_null() {
            slot
        } else {
            gpu::ld_global_nc(self.sampled_heads.add(slot.into()))
        }
    }
}

/// Sampled rows of a range of positions, ascending; each is named by its rank.
///
/// Those at positions p whose p + 1 is a multiple of the row stride or, among the sequence's last `tail` rows, of the tail
/// stride, moved by the policy's offset; and the sequence's last row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SampledRows {
    /// Multiples of `stride` below the tail.
    sparse: Multiples,
    /// Multiples of the tail's stride in the tail.
    tail: Multiples,
    last_position: u32,
    len: u32,
}

/// The positions p in a range whose p + 1 is a multiple of a stride, each moved back by an offset but for the last of each block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Multiples {
    stride: u32,
    /// Below `stride`; 0 where the stride does not divide a block.
    offset: u32,
    /// How many lie below the range's first position.
    before: u32,
    len: u32,
}

impl Multiples {
    #[inline(always)]
    const fn new(stride: u32, offset: u32, from: u32, to: u32) -> Self {
        let mut multiples = Multiples {
            stride,
            offset: if BLOCK.is_multiple_of(stride) {
                offset % stride
            } else {
                0
            },
            before: 0,
            len: 0,
        };
        multiples.before = multiples.before(from);
        let end = multiples.before(to);
        multiples.len = if to > from { end - multiples.before } else { 0 };
        multiples
    }

    #[inline(always)]
    const fn position(&self, rank: u32) -> u32 {
        let multiple = (self.before + rank + 1) * self.stride;
        if multiple.is_multiple_of(BLOCK) {
            multiple - 1
        } else {
            multiple - 1 - self.offset
        }
    }

    /// How many lie below `position`, from position 0 on.
    #[inline(always)]
    const fn before(&self, position: u32) -> u32 {
        if self.offset == 0 {
            return position / self.stride;
        }
        let of_block = BLOCK / self.stride;
        let moved = (position % BLOCK + self.offset) / self.stride;
        position / BLOCK * of_block + min(moved, of_block - 1)
    }

    /// How many of the range lie below `position`.
    #[inline(always)]
    const fn below(&self, position: u32) -> u32 {
        min(self.before(position).saturating_sub(self.before), self.len)
    }

    #[inline(always)]
    const fn holds(&self, position: u32) -> bool {
        self.below(position + 1) > self.below(position)
    }
}

#[allow(
    clippy::len_without_is_empty,
    reason = "no caller asks whether there is none"
)]
impl SampledRows {
    #[inline(always)]
    const fn new(policy: &HeadPolicy, sequence: &Sequence, from: u32, to: u32) -> Self {
        let k_len = sequence.k_len;
        let first = max(from, k_len.saturating_sub(sequence.q_len));
        let end = max(min(to, k_len), first);
        let tail_start = min(max(k_len.saturating_sub(policy.tail), first), end);
        let offset = policy.row_offset;
        let sparse = Multiples::new(policy.row_stride, offset, first, tail_start);
        let tail = Multiples::new(policy.tail_stride, offset, tail_start, end);
        let holds_last_row = end == k_len && end > first;
        let last_is_extra = holds_last_row && !sparse.holds(k_len - 1) && !tail.holds(k_len - 1);
        SampledRows {
            sparse,
            tail,
            last_position: k_len.saturating_sub(1),
            len: sparse.len + tail.len + last_is_extra as u32,
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
        if rank < self.sparse.len {
            self.sparse.position(rank)
        } else if rank < self.sparse.len + self.tail.len {
            self.tail.position(rank - self.sparse.len)
        } else {
            self.last_position
        }
    }

    /// How many of the rows stand at positions below `position`.
    #[inline(always)]
    pub const fn rank_at(self, position: u32) -> u32 {
        if position > self.last_position {
            self.len
        } else {
            self.sparse.below(position) + self.tail.below(position)
        }
    }
}

const fn min(x: u32, y: u32) -> u32 {
    if x < y { x } else { y }
}

const fn max(x: u32, y: u32) -> u32 {
    if x > y { x } else { y }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::Sequences;

    /// By definition.
    fn sampled(policy: &HeadPolicy, (q_len, k_len): (u32, u32), from: u32, to: u32) -> Vec<u32> {
        let stride = |p: u32| {
            if p + policy.tail >= k_len && policy.tail > 0 {
                policy.tail_stride
            } else {
                policy.row_stride
            }
        };
        let is_sampled = |p: u32| {
            let stride = stride(p);
            let offset = policy.row_offset % stride;
            if offset == 0 || !BLOCK.is_multiple_of(stride) {
                return (p + 1).is_multiple_of(stride);
            }
            let ends_block = |p: u32| (p + 1).is_multiple_of(BLOCK);
            ends_block(p) || (p + offset + 1).is_multiple_of(stride) && !ends_block(p + offset)
        };
        (0..q_len)
            .filter_map(|row| (row + k_len).checked_sub(q_len))
            .filter(|p| (from..to).contains(p))
            .filter(|&p| is_sampled(p) || p + 1 == k_len)
            .collect()
    }

    #[test]
    fn sampled_rows_are_the_multiples_the_tail_and_the_last_row() {
        for (q_len, k_len) in [
            (1, 1),
            (5, 40),
            (40, 5),
            (333, 333),
            (200, 300),
            (256, 256),
            (1, 300),
        ] {
            let sequence = Sequences::uniform(1, q_len, k_len, true).get(0);
            for (row_stride, tail, tail_stride, row_offset) in [
                (1, 0, 4, 0),
                (7, 0, 4, 3),
                (8, 0, 4, 5),
                (8, 0, 1, 7),
                (128, 0, 1, 100),
                (8, 64, 4, 0),
                (8, 60, 4, 6),
                (16, 256, 4, 9),
                (20, 100, 3, 1),
                (500, 1, 1, 2),
                (500, 1000, 500, 0),
            ] {
                let policy = HeadPolicy {
                    kind: HeadKind::Rows,
                    coverage: 1.0,
                    window_blocks: 1,
                    row_stride,
                    tail,
                    tail_stride,
                    row_offset,
                    offset_step: 0,
                    stride_doubles_from: u32::MAX,
                };
                for (from, to) in [
                    (0, k_len),
                    (0, k_len.min(128)),
                    (k_len / 2, k_len),
                    (128.min(k_len), k_len),
                ] {
                    let rows = policy.sampled_rows(&sequence, from, to);
                    let listed: Vec<u32> =
                        (0..rows.len()).map(|rank| rows.position(rank)).collect();
                    let expected = sampled(&policy, (q_len, k_len), from, to);
                    assert_eq!(listed, expected, "{sequence:?} {policy:?} {from}..{to}");
                    for block in expected.chunk_by(|x, y| x / BLOCK == y / BLOCK) {
                        let most = policy.rows_of_block() as usize;
                        assert!(block.len() <= most, "{sequence:?} {policy:?}: {block:?}");
                    }
                    for position in from..=to {
                        let below = expected.iter().filter(|&&p| p < position).count();
                        assert_eq!(
                            rows.rank_at(position),
                            below as u32,
                            "{sequence:?} {policy:?} {position}"
                        );
                    }
                }
            }
        }
    }
    #[test]
    fn strides_double_with_the_position_of_a_segment_up_to_two_rows_a_query_block() {
        let strides = |kind, row_stride, stride_doubles_from| {
            let policy = HeadPolicy {
                kind,
                coverage: 1.0,
                window_blocks: 1,
                row_stride,
                tail: 0,
                tail_stride: 1,
                row_offset: 0,
                offset_step: 0,
                stride_doubles_from,
            };
            let of_segments: Vec<u32> = (0..128)
                .map(|segment| policy.in_segment_of(64 * segment + segment % 64).row_stride)
                .collect();
            of_segments
        };
        let by_segment = |runs: &[(u32, usize)]| -> Vec<u32> {
            let runs = runs.iter().flat_map(|&(stride, len)| [stride].repeat(len));
            runs.collect()
        };
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
                strides(HeadKind::Blocks, row_stride, doubles_from),
                by_segment(runs),
                "{row_stride} from {doubles_from}"
            );
        }
        assert_eq!(strides(HeadKind::Residual, 16, 1), [16; 128]);
        assert_eq!(strides(HeadKind::Rows, 16, 1), [16; 128]);
    }
}
