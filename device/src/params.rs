//! What every launch says about its problem: sizes, tensors, and the geometry that follows from them.
//!
//! Plain data with one definition for host, emulator and kernel. Each stage adds a struct of its own
//! beside its kernel.
//!
//! # Geometry
//! Tokens are grouped in blocks of [`BLOCK`] by *position*. A causal problem aligns queries with the
//! last keys: query row `i` stands at key position `p(i) = i + k_len − q_len` and sees the keys
//! `j <= p(i)`; rows with `p(i) < 0` see nothing and belong to no query block. In a problem that is
//! not causal every row sees every key, and `p(i) = i`.

use crate::abi::Sequences;
pub use crate::block::{BLOCK, SEGMENT_BLOCKS};
use crate::gpu::Global;

/// The shape of an attention problem. Every size is at least 1, `q_heads` a multiple of `kv_heads`,
/// and `q_len + k_len` less than 2^31.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProblemSizes {
    /// Sequences.
    pub batch: u32,
    /// Query heads.
    pub q_heads: u32,
    /// Key/value heads.
    pub kv_heads: u32,
    /// Query tokens of a sequence.
    pub q_len: u32,
    /// Key tokens of a sequence.
    pub k_len: u32,
    /// Elements of a token of one head.
    pub head_dim: u32,
    /// 1 where a query sees the keys up to its own position, 0 where it sees all.
    pub causal: u32,
}

impl ProblemSizes {
    /// Whether a query sees only the keys up to its own position.
    #[inline(always)]
    pub const fn is_causal(&self) -> bool {
        self.causal != 0
    }

    /// The batch of equal lengths.
    #[inline(always)]
    pub const fn sequences(&self) -> Sequences {
        Sequences::uniform(self.batch, self.q_len, self.k_len, self.is_causal())
    }

    /// Pairs of sequence and query head.
    #[inline(always)]
    pub const fn heads(&self) -> u32 {
        self.batch * self.q_heads
    }

    /// The key/value head that a query head reads.
    #[inline(always)]
    pub const fn kv_head(&self, q_head: u32) -> u32 {
        q_head / (self.q_heads / self.kv_heads)
    }

    /// Key blocks, the last one perhaps partial.
    #[inline(always)]
    pub const fn key_blocks(&self) -> u32 {
        self.k_len.div_ceil(BLOCK)
    }

    /// Query blocks, counted from position 0: in a causal problem whose queries are fewer than its
    /// keys, the first ones hold no row.
    #[inline(always)]
    pub const fn query_blocks(&self) -> u32 {
        if self.is_causal() {
            self.key_blocks()
        } else {
            self.q_len.div_ceil(BLOCK)
        }
    }

    /// The first query block that holds a row.
    #[inline(always)]
    pub const fn first_query_block(&self) -> u32 {
        if self.is_causal() {
            self.k_len.saturating_sub(self.q_len) / BLOCK
        } else {
            0
        }
    }

    /// Rows that see no key: the first ones of a causal problem with more queries than keys.
    #[inline(always)]
    pub const fn blind_rows(&self) -> u32 {
        if self.is_causal() {
            self.q_len.saturating_sub(self.k_len)
        } else {
            0
        }
    }

    /// `p(0)`: the position of row 0. Negative where rows see nothing.
    #[inline(always)]
    pub const fn first_position(&self) -> i32 {
        if self.is_causal() {
            self.k_len as i32 - self.q_len as i32
        } else {
            0
        }
    }
}

/// A tensor [batch, head, token, head_dim] in global memory. Its last dimension is contiguous and
/// every token starts at a multiple of 16 bytes; the strides are otherwise free, in elements.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct TensorArg {
    /// The first element, of whatever type the kernel reads or writes.
    pub address: Global<u8>,
    /// Elements from a sequence to the next.
    pub stride_batch: u64,
    /// Elements from a head to the next.
    pub stride_head: u64,
    /// Elements from a token to the next.
    pub stride_token: u64,
}

impl TensorArg {
    /// A tensor that lies contiguously as [batch, head, token, head_dim].
    pub const fn contiguous<T>(address: Global<T>, heads: u32, tokens: u32, head_dim: u32) -> Self {
        let stride_head = tokens as u64 * head_dim as u64;
        Self {
            address: address.cast(),
            stride_batch: heads as u64 * stride_head,
            stride_head,
            stride_token: head_dim as u64,
        }
    }

    /// The first token of a head.
    #[inline(always)]
    pub const fn head<T>(&self, batch: u32, head: u32) -> Global<T> {
        let offset = batch as u64 * self.stride_batch + head as u64 * self.stride_head;
        self.address.cast::<T>().add(offset)
    }

    /// A token of a head.
    #[inline(always)]
    pub const fn token<T>(&self, batch: u32, head: u32, token: u32) -> Global<T> {
        self.head::<T>(batch, head)
            .add(token as u64 * self.stride_token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn causal(q_len: u32, k_len: u32) -> ProblemSizes {
        ProblemSizes {
            batch: 1,
            q_heads: 8,
            kv_heads: 2,
            q_len,
            k_len,
            head_dim: 64,
            causal: 1,
        }
    }

    #[test]
    fn query_blocks_hold_every_row_that_sees_a_key() {
        for (q_len, k_len) in [
            (1, 1),
            (113, 203),
            (203, 113),
            (1, 1000),
            (256, 256),
            (799, 3),
        ] {
            let sizes = causal(q_len, k_len);
            for row in 0..q_len {
                let position = sizes.first_position() + row as i32;
                assert_eq!(position < 0, row < sizes.blind_rows());
                let blocks = sizes.first_query_block()..sizes.query_blocks();
                assert!(position < 0 || blocks.contains(&(position as u32 / BLOCK)));
            }
        }
    }

    #[test]
    fn addresses_pass_32_bits() {
        let tensor = TensorArg::contiguous::<u16>(Global::from_address(16), 40, 1 << 20, 128);
        let far = tensor.token::<u16>(1, 39, (1 << 20) - 1).address();
        assert_eq!(far, 16 + 2 * 128 * (80 * (1 << 20) - 1));
    }

    #[test]
    fn query_heads_share_key_heads_in_order() {
        let sizes = causal(1, 1);
        let heads: Vec<u32> = (0..8).map(|head| sizes.kv_head(head)).collect();
        assert_eq!(heads, [0, 0, 0, 0, 1, 1, 1, 1]);
    }
}
