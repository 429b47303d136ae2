//! Which panel a block of threads takes, and the panel's steps.

use crate::geometry::{SampledRows, Units};
use crate::gpu::{self, Global};
use crate::sampling::SamplingParams;
use crate::tile::WARP;

use super::{PANEL, TILE};

/// Sampled rows of one unit, and the tiles that they see.
pub(super) struct Panel {
    /// The unit's place in the buffers.
    pub(super) slot: u32,
    pub(super) batch: u32,
    q_head: u32,
    pub(super) kv_head: u32,
    rows: SampledRows,
    /// Rank in the unit of the panel's first row.
    pub(super) first_rank: u32,
    /// Rank of the unit's last row, at least `first_rank`.
    pub(super) last_rank: u32,
    pub(super) steps: Steps,
}

/// The steps of a panel: the tiles that hold sinks, ascending, for the sinks alone; then all tiles, descending.
#[derive(Clone, Copy)]
pub(super) struct Steps {
    /// For the sinks alone.
    pub(super) for_sinks: u32,
    /// Tiles that some row sees.
    tiles: u32,
}

impl Steps {
    /// How many there are.
    #[inline(always)]
    pub(super) fn count(self) -> u32 {
        self.for_sinks + self.tiles
    }

    /// The tile of a step.
    #[inline(always)]
    pub(super) fn tile(self, step: u32) -> u32 {
        if step < self.for_sinks {
            step
        } else {
            self.count() - 1 - step
        }
    }

    /// The same, worked out in this warp: what is common to all roles of a block would otherwise be kept for all of them.
    #[inline(always)]
    pub(super) fn of_warp(self) -> Self {
        Steps {
            for_sinks: gpu::shfl_sync_idx(WARP, self.for_sinks, 0),
            tiles: gpu::shfl_sync_idx(WARP, self.tiles, 0),
        }
    }
}

/// Panels of a unit, at most.
const fn panels(units: &Units) -> u32 {
    units.row_capacity.div_ceil(PANEL)
}

/// Heads that the units of a launch belong to.
const fn heads(units: &Units) -> u32 {
    let last = units.first + units.count - 1;
    last / units.per_head() - units.first / units.per_head() + 1
}

/// Blocks of the grid: every panel of every segment of these heads, although the first and the last head may be there in
/// part, so that panels of equal weight stand together.
pub(super) const fn blocks(units: &Units) -> u32 {
    heads(units) * units.per_head() * panels(units)
}

/// Keys that key blocks leave out: none without statistics.
#[inline(always)]
pub(super) fn sinks(p: &SamplingParams) -> u32 {
    if p.stats.is_null() { 0 } else { p.units.sinks }
}

impl Panel {
    /// The panel of a block of the grid, if it has rows. Heavy ones come first, the last of each head; those of equal weight
    /// stand together, so that heads that share keys run at the same time.
    #[inline(always)]
    pub(super) fn of_block(p: &SamplingParams, block: u32) -> Option<Panel> {
        let units = &p.units;
        let sizes = &units.sizes;
        let (head, weight) = (block % heads(units), block / heads(units));
        let panel = panels(units) * units.per_head() - 1 - weight;
        let first_of_head = (units.first / units.per_head() + head) * units.per_head();
        let index = first_of_head + panel / panels(units);
        if index < units.first || index >= units.first + units.count {
            return None;
        }
        let unit = units.unit(index);
        let rows = units.rows(unit);
        let first_rank = panel % panels(units) * PANEL;
        if first_rank >= rows.len() {
            return None;
        }
        let q_head = unit.head % sizes.q_heads;
        let mut panel = Panel {
            slot: index - units.first,
            batch: unit.head / sizes.q_heads,
            q_head,
            kv_head: sizes.kv_head(q_head),
            rows,
            first_rank,
            last_rank: rows.len() - 1,
            steps: Steps {
                for_sinks: 0,
                tiles: 0,
            },
        };
        let tiles = panel.visible(first_rank + PANEL - 1).div_ceil(TILE);
        panel.steps = Steps {
            for_sinks: sinks(p).div_ceil(TILE).min(tiles),
            tiles,
        };
        Some(panel)
    }

    /// Keys that the row of this rank sees; ranks after the last repeat it.
    #[inline(always)]
    pub(super) fn visible(&self, rank: u32) -> u32 {
        self.rows.position(rank.min(self.last_rank)) + 1
    }

    /// Where the query of this rank begins; ranks after the last repeat it.
    #[inline(always)]
    pub(super) fn query(&self, p: &SamplingParams, rank: u32) -> Global<u16> {
        let sizes = &p.units.sizes;
        let row = self.visible(rank) - 1 + sizes.q_len - sizes.k_len;
        p.q.token(self.batch, self.q_head, row)
    }

    /// The first step after the sinks' whose tile a row of `first_rank..=last_rank` sees; [`Steps::count`] where there
    /// is no such row.
    #[inline(always)]
    pub(super) fn first_step_of(&self, first_rank: u32, last_rank: u32) -> u32 {
        if first_rank > self.last_rank {
            self.steps.count()
        } else {
            self.steps.count() - self.visible(last_rank).div_ceil(TILE)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::Candidates;
    use crate::params::{ProblemSizes, TensorArg};

    fn params(units: Units) -> SamplingParams {
        let tensor = TensorArg::contiguous::<u16>(Global::NULL, 1, 1, 64);
        SamplingParams {
            units,
            scale_log2: 1.0,
            q: tensor,
            k: tensor,
            row_lse: Global::NULL,
            stats: Global::NULL,
            sink_stats: Global::NULL,
        }
    }

    #[test]
    fn every_row_of_a_launch_has_one_panel_and_heavy_panels_come_first() {
        for (q_len, k_len) in [(20_000, 20_000), (300, 20_000), (1, 1), (9000, 8193)] {
            let sizes = ProblemSizes {
                batch: 2,
                q_heads: 3,
                kv_heads: 1,
                q_len,
                k_len,
                head_dim: 64,
                causal: 1,
            };
            for (candidates, row_stride) in [(Candidates::Blocks, 16), (Candidates::Keys, 20)] {
                let all = Units::new(sizes, candidates, row_stride, 16, 256);
                for (first, count) in [(0, all.count), (0, 1), (all.count / 3, all.count / 2)] {
                    if count == 0 {
                        continue;
                    }
                    let p = params(all.slice(first, count));
                    let of_blocks: Vec<Panel> = (0..blocks(&p.units))
                        .filter_map(|block| Panel::of_block(&p, block))
                        .collect();
                    assert!(of_blocks.is_sorted_by(|x, y| x.steps.tiles >= y.steps.tiles));
                    let mut covered: Vec<[u32; 2]> = of_blocks
                        .iter()
                        .map(|panel| [panel.slot, panel.first_rank])
                        .collect();
                    covered.sort_unstable();
                    let rows = |slot| p.units.rows(p.units.unit(first + slot)).len();
                    let expected: Vec<[u32; 2]> = (0..count)
                        .flat_map(|slot| {
                            (0..rows(slot).div_ceil(PANEL)).map(move |i| [slot, i * PANEL])
                        })
                        .collect();
                    assert_eq!(covered, expected);
                }
            }
        }
    }
}
