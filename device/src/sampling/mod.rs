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
//! | `row_lse` | [`row_lse_len`] | ranks that have a row |
//! | `stats` | [`stats_len`] | ranks that have a row, key blocks up to the row's own |
//! | `sink_stats` | [`sink_stats_len`] | ranks that have a row, if there are sinks |
//!
//! A statistic of some keys of a row is a pair (reference, Σ 2^((score − reference) · scale)). Scores and references are raw products
//! with the [sign](crate::tile::scale) of the softmax scale, `scale` is its magnitude in the log2 domain. `row_lse` has such a pair over all
//! keys of the row, with log2 of the sum in place of the sum: the row's log-sum-exp in the log2 domain is reference · scale + log2 sum. The
//! two are apart because their sum, in one `f32`, would lose log2 sum where scores are large. The share of the keys of a statistic,
//! ([`log2_share`]), has only the difference of two references.
//!
//! A statistic's reference is at most the row's, which is at most the maximum of the row's scores, and no score of these keys is so far above
//! the statistic's reference that the sum comes near the end of `f32`: each share is then as exact as `f32` is. Where keys are a hundred below
//! it and more the sum may be anything as small, for so is their share. The portable kernel takes the keys' own maximum.
//!
//! Of a row whose scores are all −∞, `row_lse` is (−∞, −∞); of one with a score that is NaN or +∞, one of the two is NaN. Shares are NaN
//! in both.

use crate::geometry::Units;
use crate::gpu::Global;
use crate::params::TensorArg;
use crate::tile::exponent;

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
    /// \[unit, rank\]: each row's log-sum-exp in the log2 domain, in two parts.
    pub row_lse: Global<f32>,
    /// \[unit, key block, rank\]: the statistic of each row over a key block without the sinks; null where keys are selected.
    pub stats: Global<f32>,
    /// \[unit, rank\]: the statistic of each row over the sinks; null with `stats`.
    pub sink_stats: Global<f32>,
}

/// Elements of `row_lse`.
pub const fn row_lse_len(units: &Units) -> u64 {
    2 * units.count as u64 * units.row_capacity as u64
}

/// Elements of `stats`.
pub const fn stats_len(units: &Units) -> u64 {
    row_lse_len(units) * units.sizes.key_blocks() as u64
}

/// Elements of `sink_stats`.
pub const fn sink_stats_len(units: &Units) -> u64 {
    row_lse_len(units)
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
    row_lse_at(units, slot, rank)
}

/// Where the log-sum-exp of one row lies in `row_lse`.
#[inline(always)]
pub(crate) const fn row_lse_at(units: &Units, slot: u32, rank: u32) -> u64 {
    2 * (slot as u64 * units.row_capacity as u64 + rank as u64)
}

/// log2 of what the sum of a statistic with this reference is multiplied by to give the share of its keys in the row's mass.
#[inline(always)]
pub(crate) fn log2_share(reference: f32, row_lse: [f32; 2], scale: f32) -> f32 {
    let [row_reference, log2_sum] = row_lse;
    exponent::change(reference, row_reference, scale, 0.0) - log2_sum
}
