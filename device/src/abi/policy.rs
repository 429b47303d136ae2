//! How one head is treated, and which of its rows are sampled.

use super::sequences::Sequence;

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
}

impl HeadPolicy {
    /// The first key block of a query block's window.
    #[inline(always)]
    pub const fn first_window_block(&self, query_block: u32) -> u32 {
        (query_block + 1).saturating_sub(self.window_blocks)
    }

    /// The sampled rows of a sequence at positions `from..to`.
    #[inline(always)]
    pub const fn sampled_rows(&self, sequence: &Sequence, from: u32, to: u32) -> SampledRows {
        SampledRows::new(self, sequence, from, to)
    }
}

/// Sampled rows of a range of positions, ascending; each is named by its rank.
///
/// Those at positions p whose p + 1 is a multiple of the row stride or, among the sequence's last `tail` rows, of the tail
/// stride; and the sequence's last row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SampledRows {
    /// Multiples of `stride` below the tail.
    sparse: Multiples,
    /// Multiples of the tail's stride in the tail.
    tail: Multiples,
    last_position: u32,
    len: u32,
}

/// The positions p in a range whose p + 1 is a multiple of a stride.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Multiples {
    stride: u32,
    /// Multiples at or below the range's first position.
    before: u32,
    len: u32,
}

impl Multiples {
    #[inline(always)]
    const fn new(stride: u32, from: u32, to: u32) -> Self {
        let before = from / stride;
        let end = to / stride;
        Multiples {
            stride,
            before,
            len: if to > from { end - before } else { 0 },
        }
    }

    #[inline(always)]
    const fn position(&self, rank: u32) -> u32 {
        (self.before + rank + 1) * self.stride - 1
    }

    /// How many lie below `position`.
    #[inline(always)]
    const fn below(&self, position: u32) -> u32 {
        let rank = (position / self.stride).saturating_sub(self.before);
        if rank < self.len { rank } else { self.len }
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
        let sparse = Multiples::new(policy.row_stride, first, tail_start);
        let tail = Multiples::new(policy.tail_stride, tail_start, end);
        let holds_last_row = end == k_len && end > first;
        let stride = if policy.tail > 0 {
            policy.tail_stride
        } else {
            policy.row_stride
        };
        let last_is_extra = holds_last_row && !k_len.is_multiple_of(stride);
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
        (0..q_len)
            .filter_map(|row| (row + k_len).checked_sub(q_len))
            .filter(|p| (from..to).contains(p))
            .filter(|&p| (p + 1).is_multiple_of(stride(p)) || p + 1 == k_len)
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
            for (row_stride, tail, tail_stride) in [
                (1, 0, 4),
                (7, 0, 4),
                (8, 64, 4),
                (16, 256, 4),
                (20, 100, 3),
                (500, 1, 1),
                (500, 1000, 500),
            ] {
                let policy = HeadPolicy {
                    kind: HeadKind::Rows,
                    coverage: 1.0,
                    window_blocks: 1,
                    row_stride,
                    tail,
                    tail_stride,
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
}
