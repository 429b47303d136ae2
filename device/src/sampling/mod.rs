//! Sampling: the exact softmax normaliser of every sampled row, and where blocks are selected, what each key block adds to it.
//!
//! Scores never reach memory. [`portable`] runs on every GPU; [`hopper`] is for Hopper, with `wgmma` and bulk copies. Both
//! write the same things to the same places, not the same last bits; each gives the same bits whenever it runs.
//!
//! # Shape contract
//! bf16 or f16, head_dim 64 or 128 as the entry says. The problem is causal. Rows have places as [`TileSlice`] says:
//!
//! | buffer | elements | written where |
//! |---|---|---|
//! | `row_lse` | [`row_lse_len`] | places of rows; −∞ where every score is, NaN where one is. For one split alone |
//! | `stats` | [`stats_len`] | places of rows, key blocks up to the row's own |
//! | `bases` | [`bases_len`] | places of rows, splits up to the row's own |
//! | `sink_stats` | [`sink_stats_len`] | places of rows, if there are sinks |
//!
//! A statistic is log2 of the mass that a row gives some keys, Σ 2^score, less the row's *base* in the keys' split, which is about
//! the greatest score of the first keys that the row saw there. So it is as exact as `f32` is at the spread of the row's scores,
//! whatever their size. −∞ where every score is or their share is nothing; NaN or +∞ where a score is no number. Sinks are of
//! split 0. All of it depends on the row alone: not on the rows that share its warp, nor on the slice.

use crate::abi::{KvTensor, TileSlice};
use crate::gpu::{self, Global};
use crate::params::TensorArg;

pub mod hopper;
pub mod portable;

pub use portable::*;

/// What sampling reads and writes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SamplingParams {
    /// Which rows.
    pub slice: TileSlice,
    /// softmax_scale · log2 e.
    pub scale_log2: f32,
    /// Queries; in a packed batch those of all sequences.
    pub q: TensorArg,
    /// Keys.
    pub k: KvTensor,
    /// \[row\]: log2 of each row's normaliser; or null.
    pub row_lse: Global<f32>,
    /// \[row, key block\]: the statistic of each row over a key block without the sinks; or null.
    pub stats: Global<f32>,
    /// \[row, split\]: what statistics are relative to; null with `stats`.
    pub bases: Global<f32>,
    /// \[row\]: the statistic of each row over the sinks; null with `stats`.
    pub sink_stats: Global<f32>,
}

/// Elements of `row_lse`.
pub const fn row_lse_len(slice: &TileSlice) -> u64 {
    slice.rows()
}

/// Elements of `stats`.
pub const fn stats_len(slice: &TileSlice) -> u64 {
    slice.rows() * slice.block_capacity as u64
}

/// Elements of `bases`.
pub const fn bases_len(slice: &TileSlice) -> u64 {
    slice.rows() * slice.splits() as u64
}

/// Elements of `sink_stats`.
pub const fn sink_stats_len(slice: &TileSlice) -> u64 {
    slice.rows()
}

/// A maximum to subtract: −∞ minus itself would be NaN.
#[inline(always)]
pub(crate) fn finite_or_zero(x: f32) -> f32 {
    if x == f32::NEG_INFINITY { 0.0 } else { x }
}

/// Σ 2^score over some keys of a row, as a multiple of 2^reference.
#[derive(Clone, Copy)]
struct RowMass {
    reference: f32,
    sum: f32,
}

/// Where a row's statistics go. Its base is the first reference that it has.
#[derive(Clone, Copy)]
struct RowOutput {
    row: u32,
    base: f32,
}

impl RowOutput {
    #[inline(always)]
    const fn new(row: u32) -> Self {
        RowOutput {
            row,
            base: f32::NEG_INFINITY,
        }
    }

    /// log2 of a mass, less the base.
    #[inline(always)]
    fn statistic(&mut self, mass: RowMass) -> f32 {
        if self.base == f32::NEG_INFINITY {
            self.base = mass.reference;
        }
        // A reference of −∞ comes with a sum of 0.
        let above = finite_or_zero(mass.reference) - finite_or_zero(self.base);
        gpu::lg2_approx_ftz_f32(mass.sum) + above
    }

    /// Writes the statistic of a key block.
    #[inline(always)]
    fn write_block(&mut self, p: &SamplingParams, key_block: u32, mass: RowMass) {
        let at = u64::from(self.row) * u64::from(p.slice.block_capacity) + u64::from(key_block);
        let statistic = self.statistic(mass);
        gpu::st_global(p.stats.add(at), statistic);
    }

    /// Writes the statistic of the sinks.
    #[inline(always)]
    fn write_sinks(&mut self, p: &SamplingParams, mass: RowMass) {
        let statistic = self.statistic(mass);
        gpu::st_global(p.sink_stats.add(self.row.into()), statistic);
    }

    /// Writes what is known after the last key.
    #[inline(always)]
    fn finish(&self, p: &SamplingParams, split: u32, total: RowMass) {
        if !p.bases.is_null() {
            let at = u64::from(self.row) * u64::from(p.slice.splits()) + u64::from(split);
            gpu::st_global(p.bases.add(at), self.base);
        }
        if !p.row_lse.is_null() {
            let lse = total.reference + gpu::lg2_approx_ftz_f32(total.sum);
            gpu::st_global(p.row_lse.add(self.row.into()), lse);
        }
    }
}

/// Keys that key blocks leave out: none without statistics.
#[inline(always)]
fn sinks(p: &SamplingParams) -> u32 {
    if p.stats.is_null() { 0 } else { p.slice.sinks }
}
