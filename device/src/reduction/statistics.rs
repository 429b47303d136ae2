//! The statistics of one sampled row, as sampling left them, and its normaliser.

use crate::abi::TileSlice;
use crate::gpu::{self, Global};
use crate::tile::{WARP, exponent, scale};

/// Where the statistics of all rows lie. A selection by rows leaves masses in the place of `stats`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Statistics {
    /// softmax_scale · log2 e.
    pub scale_log2: f32,
    /// \[row, key block\], from sampling.
    pub stats: Global<f32>,
    /// \[row, split\], from sampling.
    pub bases: Global<f32>,
    /// \[row\], from sampling.
    pub sink_stats: Global<f32>,
}

/// One row's: log2 of the mass of its key blocks, relative to the greatest of its bases.
#[derive(Clone, Copy)]
pub(crate) struct RowStatistics {
    stats: Global<f32>,
    bases: Global<f32>,
    /// Null where there are no sinks.
    sink_stat: Global<f32>,
    scale: f32,
    /// The greatest base.
    base: f32,
    split_blocks: u32,
    blocks: u32,
}

impl RowStatistics {
    /// Of the row at place `row`, which sees `blocks` key blocks.
    #[inline(always)]
    pub(crate) fn new(all: &Statistics, slice: &TileSlice, row: u32, blocks: u32) -> Self {
        let at = |capacity: u32| u64::from(row) * u64::from(capacity);
        let bases = all.bases.add(at(slice.splits()));
        let mut base = f32::NEG_INFINITY;
        let mut split = 0;
        while split < blocks.div_ceil(slice.split_blocks) {
            base = gpu::max_f32(base, gpu::ld_global(bases.add(split.into())));
            split += 1;
        }
        RowStatistics {
            stats: all.stats.add(at(slice.block_capacity)),
            bases,
            sink_stat: if slice.sinks > 0 {
                all.sink_stats.add(row.into())
            } else {
                Global::NULL
            },
            scale: scale::magnitude(all.scale_log2),
            base,
            split_blocks: slice.split_blocks,
            blocks,
        }
    }

    /// Of the sinks; −∞ where there are none.
    #[inline(always)]
    pub(crate) fn sinks(&self) -> f32 {
        if self.sink_stat.is_null() {
            f32::NEG_INFINITY
        } else {
            gpu::ld_global(self.sink_stat) + self.above(0)
        }
    }

    /// How far the base of a split is above the greatest: 0 or less.
    #[inline(always)]
    pub(crate) fn above(&self, split: u32) -> f32 {
        let base = gpu::ld_global(self.bases.add(split.into()));
        exponent::change(base, self.base, self.scale, 0.0)
    }

    /// Of a key block that the row sees.
    #[inline(always)]
    pub(crate) fn block(&self, key_block: u32) -> f32 {
        gpu::ld_global(self.address(key_block)) + self.above(key_block / self.split_blocks)
    }

    /// Where the key block's number lies.
    #[inline(always)]
    pub(crate) fn address(&self, key_block: u32) -> Global<f32> {
        self.stats.add(key_block.into())
    }

    /// The row's normaliser in the same terms; `None` where the row has no finite one. The whole warp calls it, and all lanes
    /// get the same bits, which depend on the row alone.
    #[inline(always)]
    pub(crate) fn lse(&self) -> Option<f32> {
        let sinks = self.sinks();
        let mut maximum = sinks;
        let mut is_number = sinks < f32::INFINITY;
        let mut block = gpu::laneid();
        while block < self.blocks {
            let x = self.block(block);
            maximum = gpu::max_f32(maximum, x);
            // False for NaN too.
            is_number &= x < f32::INFINITY;
            block += 32;
        }
        let maximum = across(maximum, gpu::max_f32);
        let is_number = gpu::vote_sync_all(WARP, is_number);
        if !is_number || maximum == f32::NEG_INFINITY {
            return None;
        }
        let mut sum = if gpu::laneid() == 0 {
            gpu::ex2_approx_ftz_f32(sinks - maximum)
        } else {
            0.0
        };
        let mut block = gpu::laneid();
        while block < self.blocks {
            sum += gpu::ex2_approx_ftz_f32(self.block(block) - maximum);
            block += 32;
        }
        let sum = across(sum, |x, y| x + y);
        Some(maximum + gpu::lg2_approx_ftz_f32(sum))
    }

    /// Writes the row's log-sum-exp in two parts, as sampling has it, if it is wanted. The whole warp calls it.
    #[inline(always)]
    pub(crate) fn write_row_lse(&self, to: Global<f32>, row: u32, lse: Option<f32>) {
        if !to.is_null() && gpu::laneid() == 0 {
            let both = [self.base, lse.unwrap_or(f32::NAN)];
            gpu::st_global_v2(to.add(2 * u64::from(row)), both);
        }
    }
}

/// Combines the lanes' values in a fixed order, in each of them.
#[inline(always)]
fn across(mut x: f32, combine: impl Fn(f32, f32) -> f32) -> f32 {
    for step in 0..5 {
        x = combine(x, gpu::shfl_sync_bfly(WARP, x, 1 << step));
    }
    x
}
