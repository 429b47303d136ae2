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
//! | `row_lse` | [`row_lse_len`] | places of rows. For one split alone |
//! | `stats` | [`stats_len`] | places of rows, key blocks up to the row's own |
//! | `bases` | [`bases_len`] | places of rows, splits up to the row's own |
//! | `sink_stats` | [`sink_stats_len`] | places of rows, if there are sinks |
//!
//! Scores are raw products with the [sign](crate::tile::scale) of the softmax scale, `scale` is its magnitude in the log2 domain.
//! A row has a *base* in each split, which is one of its scores there and no more than 2^64 below the others in weight. The
//! *statistic* of some keys is log2 Σ 2^((score − base) · scale): as exact as `f32` is at the differences of the row's scores,
//! whatever their size. It is −∞ where every score is, and where the keys' share is nothing; NaN or +∞ where a score is no number.
//! Sinks are of split 0.
//!
//! `row_lse` has a score of the row and log2 Σ 2^((score − that) · scale): the row's log-sum-exp in the log2 domain is the first ·
//! scale + the second. The two are apart because their sum, in one `f32`, would lose the second where scores are large. Of a row
//! whose scores are all −∞ it is (−∞, −∞); of one with a score that is NaN or +∞, one of the two is NaN.
//!
//! All of it depends on the row alone: not on the rows that share its warp, nor on the slice.

use crate::abi::{KvTensor, TileSlice};
use crate::gpu::{self, Global};
use crate::params::TensorArg;
use crate::tile::{exponent, scale};

pub mod heads;
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
    /// \[row\]: each row's log-sum-exp in the log2 domain, in two parts; or null.
    pub row_lse: Global<f32>,
    /// \[row, key block\]: the statistic of each row over a key block without the sinks; or null.
    pub stats: Global<f32>,
    /// \[row, split\]: the score that statistics are relative to; null with `stats`.
    pub bases: Global<f32>,
    /// \[row\]: the statistic of each row over the sinks; null with `stats`.
    pub sink_stats: Global<f32>,
}

/// Elements of `row_lse`.
pub const fn row_lse_len(slice: &TileSlice) -> u64 {
    2 * slice.rows()
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

/// Σ 2^((score − reference) · scale) over some keys of a row.
#[derive(Clone, Copy)]
struct RowMass {
    reference: f32,
    sum: f32,
}

/// Where a row's statistics go.
#[derive(Clone, Copy)]
struct RowOutput {
    row: u32,
    base: f32,
}

/// How far above a base, in the log2 domain, a reference may be: statistics up to there have a unit in the last place of 2^-17.
const MOST_ABOVE_LOG2: f32 = 64.0;

impl RowOutput {
    #[inline(always)]
    const fn new(row: u32) -> Self {
        RowOutput {
            row,
            base: f32::NEG_INFINITY,
        }
    }

    /// log2 of a mass relative to the base. The base moves to the mass's reference if that is far above it, and what the row has
    /// written with it: the `written` key blocks, and the sinks if `with_sinks`.
    #[inline(always)]
    fn statistic(
        &mut self,
        p: &SamplingParams,
        mass: RowMass,
        written: core::ops::Range<u32>,
        with_sinks: bool,
    ) -> f32 {
        let scale = scale::magnitude(p.scale_log2);
        if self.base == f32::NEG_INFINITY {
            self.base = mass.reference;
        }
        let mut above = exponent::change(mass.reference, self.base, scale, 0.0);
        if above > MOST_ABOVE_LOG2 {
            let change = exponent::change(self.base, mass.reference, scale, 0.0);
            let mut block = written.start;
            while block < written.end {
                add(self.block(p, block), change);
                block += 1;
            }
            if with_sinks {
                add(p.sink_stats.add(self.row.into()), change);
            }
            self.base = mass.reference;
            above = 0.0;
        }
        gpu::lg2_approx_ftz_f32(mass.sum) + above
    }

    /// Where the statistic of a key block lies.
    #[inline(always)]
    fn block(&self, p: &SamplingParams, key_block: u32) -> Global<f32> {
        let first = u64::from(self.row) * u64::from(p.slice.block_capacity);
        p.stats.add(first + u64::from(key_block))
    }

    /// Writes the statistic of a key block, after those of the `written` ones, and of the sinks if `with_sinks`.
    #[inline(always)]
    fn write_block(
        &mut self,
        p: &SamplingParams,
        key_block: u32,
        mass: RowMass,
        written: core::ops::Range<u32>,
        with_sinks: bool,
    ) {
        let statistic = self.statistic(p, mass, written, with_sinks);
        gpu::st_global(self.block(p, key_block), statistic);
    }

    /// Writes the statistic of the sinks, before any key block's.
    #[inline(always)]
    fn write_sinks(&mut self, p: &SamplingParams, mass: RowMass) {
        let statistic = self.statistic(p, mass, 0..0, false);
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
            let lse = [total.reference, gpu::lg2_approx_ftz_f32(total.sum)];
            gpu::st_global_v2(p.row_lse.add(2 * u64::from(self.row)), lse);
        }
    }
}

/// Adds to a number that this thread wrote.
#[inline(always)]
fn add(to: Global<f32>, change: f32) {
    gpu::st_global(to, gpu::ld_global(to) + change);
}

/// Keys that key blocks leave out: none without statistics.
#[inline(always)]
fn sinks(p: &SamplingParams) -> u32 {
    if p.stats.is_null() { 0 } else { p.slice.sinks }
}
