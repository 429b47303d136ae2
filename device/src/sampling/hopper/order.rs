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
    /// Tiles of the split that some row sees.
    tiles: u32,
    /// The first of them.
    first_tile: u32,
}

impl Steps {
    #[inline(always)]
    pub(super) fn new(p: &SamplingParams, panel: &RowPanel) -> Self {
        let seen = panel.visible(panel.last_rank).div_ceil(TILE);
        Steps {
            for_sinks: if panel.split == 0 {
                sinks(p).div_ceil(TILE).min(seen)
            } else {
                0
            },
            tiles: panel.end_block - panel.first_block,
            first_tile: panel.first_block,
        }
    }

    /// How many there are.
    #[inline(always)]
    pub(super) fn count(self) -> u32 {
        self.for_sinks + self.tiles
    }

    /// The tile after the last of the split.
    #[inline(always)]
    pub(super) fn end_tile(self) -> u32 {
        self.first_tile + self.tiles
    }

    /// The tile of a step.
    #[inline(always)]
    pub(super) fn tile(self, step: u32) -> u32 {
        if step < self.for_sinks {
            step
        } else {
            self.first_tile + (self.count() - 1 - step)
        }
    }

    /// The same, worked out in this warp: what is common to all roles of a CTA would otherwise be kept for all of them.
    #[inline(always)]
    pub(super) fn of_warp(self) -> Self {
        Steps {
            for_sinks: gpu::shfl_sync_idx(WARP, self.for_sinks, 0),
            tiles: gpu::shfl_sync_idx(WARP, self.tiles, 0),
            first_tile: gpu::shfl_sync_idx(WARP, self.first_tile, 0),
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
        self.count() - end_tile.saturating_sub(self.first_tile).min(self.tiles)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_of_a_split_come_last_to_first_behind_the_sinks() {
        let steps = Steps {
            for_sinks: 2,
            tiles: 3,
            first_tile: 128,
        };
        let tiles: Vec<u32> = (0..steps.count()).map(|step| steps.tile(step)).collect();
        assert_eq!(tiles, [0, 1, 130, 129, 128]);
    }
}
