//! Sampling: the exact softmax normaliser of every sampled row, and where blocks are selected, what each key block adds to it.
//!
//! Scores never reach memory. [`portable`] runs on every GPU; [`hopper`] is for Hopper, with `wgmma` and bulk copies. Both
//! write the same things to the same places, not the same last bits; each gives the same bits whenever it runs.
//!
//! # Shape contract
//! bf16 or f16, head_dim 64 or 128 as the entry says. The problem is causal. Buffers "a unit" hold `units.count` units:
//!
//! | buffer | elements | written where |
//! |---|---|---|
//! | `row_lse` | [`row_lse_len`] | ranks that have a row; −∞ where every score is, NaN where one is |
//! | `stats` | [`stats_len`] | ranks that have a row, key blocks up to the row's own |
//! | `sink_stats` | [`sink_stats_len`] | ranks that have a row, if there are sinks |
//!
//! A statistic of some keys of a row is a pair (reference, Σ 2^(score − reference)), scores in the log2 domain. The
//! reference is at most the maximum of all of the row's scores, and no score of these keys is so far above it that the sum
//! comes near the end of `f32`: each share sum · 2^(reference − row_lse) is then as exact as `f32` is. Where keys are a
//! hundred below it and more the sum may be anything as small, for so is their share. The portable kernel takes the keys'
//! own maximum.

use crate::geometry::Units;
use crate::gpu::Global;
use crate::params::TensorArg;

pub mod hopper;
pub mod portable;

pub use portable::*;

/// What sampling reads and writes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SamplingParams {
    /// Which rows.
    pub units: Units,
    /// softmax_scale · log2 e.
    pub scale_log2: f32,
    /// Queries.
    pub q: TensorArg,
    /// Keys.
    pub k: TensorArg,
    /// \[unit, rank\]: log2 of each row's normaliser.
    pub row_lse: Global<f32>,
    /// \[unit, key block, rank\]: the statistic of each row over a key block without the sinks; null where keys are selected.
    pub stats: Global<f32>,
    /// \[unit, rank\]: the statistic of each row over the sinks; null with `stats`.
    pub sink_stats: Global<f32>,
}

/// Elements of `row_lse`.
pub const fn row_lse_len(units: &Units) -> u64 {
    units.count as u64 * units.row_capacity as u64
}

/// Elements of `stats`.
pub const fn stats_len(units: &Units) -> u64 {
    2 * row_lse_len(units) * units.sizes.key_blocks() as u64
}

/// Elements of `sink_stats`.
pub const fn sink_stats_len(units: &Units) -> u64 {
    2 * row_lse_len(units)
}

/// Where statistics of one row over some keys lie in `stats`.
#[inline(always)]
pub(crate) const fn stats_at(units: &Units, slot: u32, key_block: u32, rank: u32) -> u64 {
    let blocks = units.sizes.key_blocks() as u64;
    let place = slot as u64 * blocks + key_block as u64;
    2 * (place * units.row_capacity as u64 + rank as u64)
}

/// Where the statistic of one row over the sinks lies in `sink_stats`.
#[inline(always)]
pub(crate) const fn sink_stats_at(units: &Units, slot: u32, rank: u32) -> u64 {
    2 * row_lse_at(units, slot, rank)
}

/// Where the normaliser of one row lies in `row_lse`.
#[inline(always)]
pub(crate) const fn row_lse_at(units: &Units, slot: u32, rank: u32) -> u64 {
    slot as u64 * units.row_capacity as u64 + rank as u64
}

/// A maximum to subtract: −∞ minus itself would be NaN.
#[inline(always)]
pub(crate) fn finite_or_zero(x: f32) -> f32 {
    if x == f32::NEG_INFINITY { 0.0 } else { x }
}
