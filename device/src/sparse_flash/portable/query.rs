//! What is copied in and written out for the rows of a query tile.

use super::super::SparseFlashParams;
use super::super::work::WorkTile;
use super::STRIPS;
use super::stage::{Stage, ThreadChunks};
use crate::gpu::{self, fragment::MmaM16N8K16};
use crate::params::BLOCK;
use crate::tile::{Accumulator, Float16, STRIP_ROWS, pack_averages, scale};

/// Copies the block's rows of Q; afterwards they are in shared memory, multiplied by the sign of
/// the scale, for the thread that copied them.
#[inline(always)]
pub(super) fn copy<T: Float16, const CHUNKS: usize>(
    p: &SparseFlashParams,
    work: WorkTile,
    stage: Stage<CHUNKS>,
) {
    let chunks = ThreadChunks::<CHUNKS>::of(stage.warp.warp_lane);
    chunks.copy_queries(stage.q, &p.q, work);
    gpu::cp_async_commit_group();
    if !scale::is_positive(p.scale_log2) {
        gpu::cp_async_wait_group::<0>();
        chunks.map_pairs(stage.q, BLOCK, |pair| {
            scale::times_sign::<T>(pair, p.scale_log2)
        });
    }
}

/// Writes the warp's rows of O, each times its factor, and their log-sum-exps: both are `finished`.
#[inline(always)]
pub(super) fn write<T: Float16, const CHUNKS: usize>(
    p: &SparseFlashParams,
    work: WorkTile,
    first_row: u32,
    output: &mut Accumulator<STRIPS, CHUNKS>,
    finished: &[[(f32, f32); 2]; STRIPS],
) {
    let lane = gpu::laneid();
    output.scale_rows(&finished.map(|halves| halves.map(|(factor, _)| factor)));
    for (s, strip) in output.elements.iter().enumerate() {
        for half in 0..2 {
            let [row, column] = MmaM16N8K16::c(lane, 2 * half as u32);
            let row = first_row + s as u32 * STRIP_ROWS + row as u32;
            if !work.rows.has(row) {
                continue;
            }
            if lane.is_multiple_of(4) {
                gpu::st_global(work.lse(p, row), finished[s][half].1);
            }
            if p.output_f32 != 0 {
                let to = work.token::<f32>(&p.o, row);
                for (tile, x) in strip.iter().enumerate() {
                    let to = to.add((8 * tile + column) as u64);
                    gpu::st_global_v2(to, [x[2 * half], x[2 * half + 1]]);
                }
            } else {
                let to = work.token::<u16>(&p.o, row);
                for (tile, x) in strip.iter().enumerate() {
                    let to = to.add((8 * tile + column) as u64);
                    gpu::st_global(to.cast(), pack_averages::<T>(x[2 * half], x[2 * half + 1]));
                }
            }
        }
    }
}
