//! Block-sparse FlashAttention: O and its log-sum-exp over a selection, and dense as the selection of everything.
//!
//! Query row `i` attends to key `j` iff it sees it (see [`params`](crate::params)) and `j`'s key
//! block is listed for `i`'s query block, or `j` is one of the head's *stripes*, or `j < sinks`. A
//! causal query block always attends to its own key block, listed or not. Keys that only a stripe or
//! a sink names are *loose*; a key that several name counts once.
//!
//! ```text
//! for each tile of keys: own block, listed blocks, loose keys packed a tile at a time
//!     S = Q·Kᵀ, mask;  P = online softmax of S;  O = O·rescale + P·V
//! O / sum, lse = max + ln sum
//! ```
//!
//! Two kernels keep this contract: [`portable`], on everything from sm_80 on, and [`hopper`]. What they
//! share is here: the parameters, the walk along a query block's keys, and the rows.
//!
//! # The mask is exact
//! Scores of masked keys become −∞ whatever they were, and padding is zero. That leaves 0·V of
//! masked keys: with NaN or infinity in V it would reach rows that do not see the key. It can only
//! happen in the own key block, whose tiles rows see in part. There the kernels look through V, set
//! such elements to zero, and if there was one, add its products separately to the rows that do see
//! it, from global memory.
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
//! Every element of O and every log-sum-exp is written, once; rows that attend to nothing get O = 0
//! and lse = −∞. A query block's result depends only on its own lists, so it has the same bits in
//! every run, whatever the rest of the problem.

pub mod hopper;
mod loose;
pub mod portable;
mod query;
mod record;
mod walk;
mod warp;

use crate::gpu::Global;
use crate::params::{ProblemSizes, TensorArg};

/// Threads that walk and copy together, from thread 0 on: all of a portable block, Hopper's producers.
const COPY_THREADS: u32 = 128;

/// The barrier that these threads alone use.
const COPY_BARRIER: u32 = 1;

/// The parameters of a launch.
///
/// Head indices `bh` below are `batch · q_heads + head`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SparseFlashParams {
    /// The problem.
    pub sizes: ProblemSizes,
    /// softmax_scale · log2(e): any finite number.
    pub scale_log2: f32,
    /// The first keys, that every row keeps.
    pub sinks: u32,
    /// 1 where O is `f32`, 0 where it has the inputs' type.
    pub output_f32: u32,
    /// [batch, q_heads, q_len, head_dim] of the entry's type.
    pub q: TensorArg,
    /// [batch, kv_heads, k_len, head_dim] of the entry's type.
    pub k: TensorArg,
    /// [batch, kv_heads, k_len, head_dim] of the entry's type.
    pub v: TensorArg,
    /// [batch, q_heads, q_len, head_dim].
    pub o: TensorArg,
    /// `f32` [batch, q_heads, q_len]: natural logarithms.
    pub lse: Global<f32>,
    /// `u32` (bh, query block, list_capacity): ascending key blocks, without repeats. Null: every head is
    /// dense, and nothing below is read.
    pub lists: Global<u32>,
    /// `u32` (bh, query block): how many key blocks are listed.
    pub list_count: Global<u32>,
    /// Entries from a list to the next.
    pub list_capacity: u32,
    /// Entries from a head's stripes to the next head's.
    pub stripe_capacity: u32,
    /// `u32` (bh, stripe_capacity): ascending keys, without repeats. Null: none.
    pub stripes: Global<u32>,
    /// Of each `bh`: how many stripes the head has. Null if and only if `stripes` is.
    pub stripe_count: Global<u32>,
    /// Of each `bh`: 1 where the head is dense, and its lists, stripes and sinks do not count. Null: none is.
    pub dense: Global<u32>,
}

/// Query blocks that hold a row.
const fn query_tiles(sizes: &ProblemSizes) -> u32 {
    sizes.query_blocks() - sizes.first_query_block()
}
