//! What is copied in and written out for the rows of a query block.

use super::super::SparseFlashParams;
use super::super::query::QueryRows;
use super::super::record::Task;
use super::STRIPS;
use super::stage::{Stage, ThreadChunks};
use crate::gpu::{self, fragment::MmaM16N8K16};
use crate::params::BLOCK;
use crate::tile::{Accumulator, Float16, STRIP_ROWS, pack_averages, scale};

/// Copies the block's rows of Q; afterwards they are in shared memory, multiplied by the sign of
/// the scale, for the thread that copied them.
#[inline(always)]
pub(super) fn copy<T: Float16, const CHUNKS: usize>(
    rows: QueryRows,
    p: &SparseFlashParams,
    task: Task,
    stage: Stage<CHUNKS>,
) {
    let chunks = ThreadChunks::<CHUNKS>::of(stage.warp.place);
    let head = p.q.head(task.batch, task.head);
    chunks.copy_queries(
        stage.q,
        head,
        p.q.stride_token,
        rows.first_token,
        rows.q_len,
    );
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
    rows: QueryRows,
    p: &SparseFlashParams,
    task: Task,
    first_row: u32,
    output: &mut Accumulator<STRIPS, CHUNKS>,
    finished: &[[(f32, f32); 2]; STRIPS],
) {
    let lane = gpu::laneid();
    let head = u64::from(task.batch * p.sizes.q_heads + task.head);
    output.scale_rows(&finished.map(|halves| halves.map(|(factor, _)| factor)));
    for (s, strip) in output.elements.iter().enumerate() {
        for half in 0..2 {
            let [row, column] = MmaM16N8K16::c(lane, 2 * half as u32);
            let token = rows.token(first_row + s as u32 * STRIP_ROWS + row as u32);
            if token >= rows.q_len {
                continue;
            }
            if lane.is_multiple_of(4) {
                let lse = p.lse.add(head * u64::from(rows.q_len) + u64::from(token));
                gpu::st_global(lse, finished[s][half].1);
            }
            if p.output_f32 != 0 {
                let to = p.o.token::<f32>(task.batch, task.head, token);
                for (tile, x) in strip.iter().enumerate() {
                    let to = to.add((8 * tile + column) as u64);
                    gpu::st_global_v2(to, [x[2 * half], x[2 * half + 1]]);
                }
            } else {
                let to = p.o.token::<u16>(task.batch, task.head, token);
                for (tile, x) in strip.iter().enumerate() {
                    let to = to.add((8 * tile + column) as u64);
                    gpu::st_global(to.cast(), pack_averages::<T>(x[2 * half], x[2 * half + 1]));
                }
            }
        }
    }
}
