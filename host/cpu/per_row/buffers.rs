//! The memory of one task.

use crate::cpu::arena::{Arena, Footprint};
use crate::cpu::simd::PANEL;
use crate::cpu::tile::Stats;
use crate::cpu::units::Units;
use crate::geometry::BLOCK;

/// Sampled rows of a task, as far as whole query blocks allow: two panels, which share the conversion of each key block.
pub(super) const TASK_ROWS: usize = 2 * PANEL;

/// Panels of the largest task: more than two where a single query block has more than [`TASK_ROWS`] sampled rows. A bound by the
/// strides alone, so that the workspace of a longer prompt is no smaller.
fn task_panels(units: &Units) -> usize {
    let (stride, of_tail) = match units.tail.rows {
        0 => (units.row_stride, 0),
        // Where the tail begins within the block, both strides may have a row more than their share.
        _ => (units.row_stride.min(units.tail.stride), 2),
    };
    // Staggered rows leave the last row of the call to be sampled besides.
    let of_block = (BLOCK.div_ceil(stride) + of_tail + 1).min(BLOCK);
    of_block.max(TASK_ROWS).div_ceil(PANEL)
}

/// What one worker keeps of its task.
pub(in crate::cpu) struct TaskBuffers<'a> {
    /// [panel, key block]: maximum and sum of each row's scores without the sinks; then the sums relative to the row's maximum.
    pub(super) blocks: &'a mut [Stats],
    /// [panel]: the same of the sinks.
    pub(super) sinks: &'a mut [Stats],
    /// [panel]: maximum and sum over all keys that each row sees.
    pub(super) whole: &'a mut [Stats],
    /// One entry a key block: the candidates of one row.
    pub(super) candidates: &'a mut [u64],
    /// One flag a key block: what the rows of one query block asked for.
    pub(super) asked: &'a mut [u8],
}

impl<'a> TaskBuffers<'a> {
    pub(in crate::cpu) fn carve(arena: &mut Arena<'a>, units: &Units) -> Option<Self> {
        let (panels, blocks) = (task_panels(units), units.geometry.blocks());
        Some(TaskBuffers {
            blocks: arena.take(panels * blocks)?,
            sinks: arena.take(panels)?,
            whole: arena.take(panels)?,
            candidates: arena.take(blocks)?,
            asked: arena.take(blocks)?,
        })
    }

    pub(in crate::cpu) fn measure(footprint: &mut Footprint, units: &Units) {
        let (panels, blocks) = (task_panels(units), units.geometry.blocks());
        footprint.take::<Stats>(blocks, panels);
        footprint.take::<Stats>(panels, 1);
        footprint.take::<Stats>(panels, 1);
        footprint.take::<u64>(blocks, 1);
        footprint.take::<u8>(blocks, 1);
    }
}
