//! The steps of a panel: which tile when.

use crate::abi::RowPanel;
use crate::gpu;
use crate::sampling::{SamplingParams, sinks};
use crate::tile::WARP;

use super::TILE;

/// The tiles that hold sinks, ascending, for the sinks alone; then the tiles of the split, descending.
#[derive(Clone, Copy, Debug)]
pub(super) struct Steps {
    /// For the sinks alone.
    pub(super) for_sinks: u32,
    /// All.
    count: u32,
    /// The tile of a step after the sinks', plus the step: a subtraction a step.
    tile_plus_step: u32,
}

impl Steps {
    #[inline(always)]
    pub(super) fn new(p: &SamplingParams, panel: &RowPanel) -> Self {
        let seen = panel.visible(panel.last_rank).div_ceil(TILE);
        let for_sinks = if panel.split == 0 {
            sinks(p).div_ceil(TILE).min(seen)
        } else {
            0
        };
        Steps::of(for_sinks, panel.first_block, panel.end_block)
    }

    #[inline(always)]
    fn of(for_sinks: u32, first_tile: u32, end_tile: u32) -> Self {
        let count = for_sinks + end_tile - first_tile;
        Steps {
            for_sinks,
            count,
            tile_plus_step: first_tile + count - 1,
        }
    }

    /// How many there are.
    #[inline(always)]
    pub(super) fn count(self) -> u32 {
        self.count
    }

    /// The first tile of the split.
    #[inline(always)]
    pub(super) fn first_tile(self) -> u32 {
        self.tile_plus_step + 1 - self.count
    }

    /// The tile after the last that a row sees.
    #[inline(always)]
    pub(super) fn end_tile(self) -> u32 {
        self.tile_plus_step + 1 - self.for_sinks
    }

    /// The tile of a step.
    #[inline(always)]
    pub(super) fn tile(self, step: u32) -> u32 {
        if step < self.for_sinks {
            step
        } else {
            self.tile_plus_step - step
        }
    }

    /// The same, worked out in this warp: what is common to all roles of a CTA would otherwise be kept for all of them.
    #[inline(always)]
    pub(super) fn of_warp(self) -> Self {
        Steps {
            for_sinks: gpu::shfl_sync_idx(WARP, self.for_sinks, 0),
            count: gpu::shfl_sync_idx(WARP, self.count, 0),
            tile_plus_step: gpu::shfl_sync_idx(WARP, self.tile_plus_step, 0),
        }
    }

    /// The first step after the sinks' whose tile a row of `first_rank..=last_rank` sees; [`Steps::count`] where there
    /// is no such row.
    #[inline(always)]
    pub(super) fn first_seen(self, panel: &RowPanel, first_rank: u32, last_rank: u32) -> u32 {
        if first_rank > panel.last_rank {
            return self.count();
        }
        let end_tile = panel.visible(last_rank).div_ceil(TILE);
        let tiles = self.count - self.for_sinks;
        self.count - end_tile.saturating_sub(self.first_tile()).min(tiles)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_of_a_split_come_last_to_first_behind_the_sinks() {
        let steps = Steps::of(2, 128, 131);
        assert_eq!((steps.first_tile(), steps.end_tile()), (128, 131));
        let tiles: Vec<u32> = (0..steps.count()).map(|step| steps.tile(step)).collect();
        assert_eq!(tiles, [0, 1, 130, 129, 128]);
    }
}
