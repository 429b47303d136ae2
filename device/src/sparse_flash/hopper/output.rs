//! What a consumer warp writes for its rows.

use super::super::work::WorkTile;
use super::HopperParams;
use super::lane_rows::{LaneRows, scale_rows};
use super::shared::Memory;
use crate::gpu::{self, Global, Shared};
use crate::tile::warpgroup::HeadDim;
use crate::tile::{Float16, WARP, pack_averages};

/// Writes the rows' O, each times its factor, and their log-sum-exps: both are `finished`. Output in 16 bits goes through shared memory, the warp's own rows of it, so that each
/// row is written 16 bytes a lane.
#[inline(always)]
pub(super) fn write<T: Float16, D: HeadDim>(
    p: &HopperParams,
    lane_rows: LaneRows,
    work: WorkTile,
    finished: [(f32, f32); 2],
    output: &mut D::Output,
) {
    scale_rows(output.as_mut(), finished.map(|(factor, _)| factor));
    write_lse(p, lane_rows, work, finished.map(|(_, lse)| lse));
    if p.attention.output_f32 != 0 {
        write_f32::<D>(p, lane_rows, work, output);
        return;
    }
    let staged = StagedRows::<D>::of_warp(lane_rows);
    // The rows of the work tile before have been read.
    gpu::bar_warp_sync(WARP);
    staged.store::<T>(output);
    gpu::bar_warp_sync(WARP);
    let chunks = D::DIM / 8;
    for step in 0..16 * chunks / 32 {
        let index = step * 32 + lane_rows.lane;
        let (row, chunk) = (index / chunks, index % chunks);
        let words = gpu::ld_shared_v4(staged.chunk(row, chunk).cast::<u32>());
        let row = lane_rows.first_row + row;
        if work.rows.has(row) {
            let to: Global<u16> = work.token(&p.attention.o, row);
            gpu::st_global_v4(to.add(u64::from(chunk * 8)).cast::<u32>(), words);
        }
    }
}

#[inline(always)]
fn write_lse(p: &HopperParams, lane_rows: LaneRows, work: WorkTile, lse: [f32; 2]) {
    for (i, &lse) in lse.iter().enumerate() {
        let row = lane_rows.row() + 8 * i as u32;
        if lane_rows.lane.is_multiple_of(4) && work.rows.has(row) {
            gpu::st_global(work.lse(&p.attention, row), lse);
        }
    }
}

#[inline(always)]
fn write_f32<D: HeadDim>(
    p: &HopperParams,
    lane_rows: LaneRows,
    work: WorkTile,
    output: &D::Output,
) {
    // Not a loop, which would not unroll, and so put the output into memory.
    write_f32_row::<D, 0>(p, lane_rows, work, output);
    write_f32_row::<D, 1>(p, lane_rows, work, output);
}

/// Writes the thread's part of the upper or lower of its two rows.
#[inline(always)]
fn write_f32_row<D: HeadDim, const LOWER: usize>(
    p: &HopperParams,
    lane_rows: LaneRows,
    work: WorkTile,
    output: &D::Output,
) {
    let row = lane_rows.row() + 8 * LOWER as u32;
    if work.rows.has(row) {
        let to: Global<f32> = work.token(&p.attention.o, row);
        let to = to.add(u64::from(lane_rows.lane % 4 * 2));
        for (tile, x) in output.as_ref().chunks_exact(4).enumerate() {
            let pair = [x[2 * LOWER], x[2 * LOWER + 1]];
            gpu::st_global_v2(to.add(8 * tile as u64), pair);
        }
    }
}

/// The warp's 16 rows of the output in shared memory, their 16-byte chunks permuted so that neither way meets a bank twice.
#[derive(Clone, Copy)]
struct StagedRows<D> {
    first: Shared<u8>,
    dim: core::marker::PhantomData<D>,
}

impl<D: HeadDim> StagedRows<D> {
    #[inline(always)]
    fn of_warp(lane_rows: LaneRows) -> Self {
        Self {
            first: Memory::<D>::output().byte_add(lane_rows.first_row * D::DIM * 2),
            dim: core::marker::PhantomData,
        }
    }

    #[inline(always)]
    fn chunk(self, row: u32, chunk: u32) -> Shared<u8> {
        self.first
            .byte_add(row * D::DIM * 2 + ((chunk ^ row & 7) << 4))
    }

    /// Rounds and stores the warp's output.
    #[inline(always)]
    fn store<T: Float16>(self, output: &D::Output) {
        let lane = gpu::laneid();
        for (pair, x) in output.as_ref().chunks_exact(8).enumerate() {
            let registers = [
                pack_averages::<T>(x[0], x[1]),
                pack_averages::<T>(x[2], x[3]),
                pack_averages::<T>(x[4], x[5]),
                pack_averages::<T>(x[6], x[7]),
            ];
            // Upper left, lower left, upper right, lower right 8 × 8 of 16 columns.
            let row = self.chunk(lane % 16, 2 * pair as u32 + lane / 16);
            gpu::stmatrix_x4(row, registers);
        }
    }
}
