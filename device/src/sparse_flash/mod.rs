//! Block-sparse FlashAttention: O and its log-sum-exp over a selection, and dense as the selection of everything.
//!
//! What a row attends to is the [sparse mask](crate::abi::mask)'s to say. Keys that only a single-key list or the sinks name are
//! *gathered*; a key that several name counts once.
//!
//! ```text
//! a work tile = one query tile of one query head
//!
//! for each tile of keys: diagonal block, listed blocks, gathered keys packed a tile at a time
//!     S = Q·Kᵀ, mask;  P = online softmax of S;  O = O·rescale + P·V
//! O / sum, lse = max + ln sum
//! ```
//!
//! Two kernels keep this contract: [`portable`], on everything from sm_80 on, and [`hopper`]. What they
//! share is here: the parameters, the walk along a query block's keys, and the rows.
//!
//! # The mask is exact
//! Scores of masked keys become −∞ whatever they were, and rows of a tile that hold no key of the sequence are zero: TMA fills
//! them with zeros where the tensor ends, and where the next sequence or the unused part of a page follows, the tile is gathered
//! key by key. That leaves 0·V of keys that a row of the tile does not see: with NaN or infinity in V it would reach that row. It
//! can only happen in the diagonal key block of a causal sequence, whose tiles rows see in part. There the kernels look through V, set
//! such elements to zero, and if there was one, add its products separately to the rows that do see it, from global memory.
//!
//! # Non-finite input
//! A score is softmax_scale · (q·k), with q·k in `f32`; products beyond its range are infinite, unless the scale is 0. The results are those
//! of the formula in real numbers and infinities:
//!
//! | visible, kept scores of a row | O | lse |
//! |---|---|---|
//! | none | 0 | −∞ |
//! | one is NaN or +∞ | NaN | NaN |
//! | all are −∞ | NaN | −∞ |
//! | others | keys at −∞ weigh nothing | finite, infinite where it is beyond `f32` |
//!
//! Such a row changes nothing in the others, neither here nor where masses are summed.
//!
//! # Range
//! Scores of any finite size are told apart as exactly as their `f32` products are, whatever the scale. Weighted sums are in `f32` before they
//! are divided: with `bf16` values the sum of |v| · weight / 2^16 over a row's keys, weights at most 2^8 and mostly at most 1, must stay in
//! range. A few hundred keys of the largest `bf16`, or 65,536 equal ones, do. Over 128K keys of equal weight and value the sums' own rounding is
//! within that of O to 16 bits.
//!
//! # Output
//! Every row's O and log-sum-exp are written, once, and nothing else is; rows that attend to nothing get O = 0 and lse = −∞. A
//! query tile's result depends only on its own sequence and lists, so it has the same bits in every run, whatever else is in the
//! batch, and wherever keys lie.

mod gathered;
pub mod hopper;
pub mod portable;
mod walk;
mod warp_context;
mod warp_lane;
pub(crate) mod work;

use crate::abi::{KvTensor, LseTensor, Sequences, SparseMask};
use crate::gpu::Global;
use crate::params::TensorArg;

/// Threads that walk and copy together, from thread 0 on: all of a portable block, Hopper's producers.
const COPY_THREADS: u32 = 128;

/// The barrier that these threads alone use.
const COPY_BARRIER: u32 = 1;

/// The parameters of a launch.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SparseFlashParams {
    /// The batch.
    pub sequences: Sequences,
    /// Query heads: a multiple of `kv_heads`.
    pub q_heads: u32,
    /// Key/value heads.
    pub kv_heads: u32,
    /// Elements of a token of one head: the entry's.
    pub head_dim: u32,
    /// softmax_scale · log2(e): any finite number.
    pub scale_log2: f32,
    /// 1 where O is `f32`, 0 where it has the inputs' type.
    pub output_f32: u32,
    /// [batch, q_heads, q_len, head_dim] of the entry's type; [1, q_heads, total_q, head_dim] where sequences are packed.
    pub q: TensorArg,
    /// Keys of the entry's type.
    pub k: KvTensor,
    /// Values of the entry's type.
    pub v: KvTensor,
    /// As `q`.
    pub o: TensorArg,
    /// The log-sum-exp of every row.
    pub lse: LseTensor,
    /// What is attended to. With lists, the launch computes the query tiles that have them, else all.
    pub mask: SparseMask,
}

impl SparseFlashParams {
    /// Dense attention as far as sizes say, for what follows from them alone: no tensor has an address.
    pub const fn at_nowhere(
        sequences: Sequences,
        (q_heads, kv_heads): (u32, u32),
        head_dim: u32,
    ) -> Self {
        let tensor = TensorArg::contiguous::<u16>(Global::NULL, 1, 1, head_dim);
        Self {
            sequences,
            q_heads,
            kv_heads,
            head_dim,
            scale_log2: 0.0,
            output_f32: 0,
            q: tensor,
            k: KvTensor::strided(tensor),
            v: KvTensor::strided(tensor),
            o: tensor,
            lse: LseTensor {
                address: Global::NULL,
                stride_batch: 0,
                stride_head: 0,
            },
            mask: SparseMask::DENSE,
        }
    }

    /// The first query tile that the launch computes.
    #[inline(always)]
    pub const fn first_tile(&self) -> u32 {
        if self.mask.is_dense() {
            0
        } else {
            self.mask.first_tile
        }
    }

    /// Numbers of query tiles that the launch computes, those that name no tile included.
    #[inline(always)]
    pub const fn tiles(&self) -> u32 {
        if self.mask.is_dense() {
            self.sequences.query_tiles()
        } else {
            self.mask.tiles
        }
    }

    /// The key/value head that a query head reads.
    #[inline(always)]
    pub const fn kv_head(&self, q_head: u32) -> u32 {
        q_head / (self.q_heads / self.kv_heads)
    }

    /// Whether rows of a tile beyond a sequence's last key hold something else: the next sequence, or what is left in a page. They
    /// are zero otherwise, for there the tensor ends.
    #[inline(always)]
    const fn keys_are_followed(&self) -> bool {
        self.sequences.is_ragged() || self.k.is_paged() || self.v.is_paged()
    }
}
