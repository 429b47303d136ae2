//! The query side: which rows a block has, and what is written for them.

use super::record::Task;
use super::stage::{Stage, ThreadChunks};
use super::{STRIPS, SparseFlashParams, THREADS, WARP_ROWS, query_tiles};
use crate::gpu::{self, Global, fragment::MmaM16N8K16};
use crate::params::BLOCK;
use crate::tile::{Accumulator, Float16, OnlineSoftmax, STRIP_ROWS};

/// The rows of a query block: row `r` of the block is query token `first_token + r`.
#[derive(Clone, Copy)]
pub(super) struct QueryRows {
    /// Negative where the block begins before the first query.
    first_token: i32,
    q_len: u32,
}

impl QueryRows {
    #[inline(always)]
    pub fn new(p: &SparseFlashParams, query_block: u32) -> Self {
        Self {
            first_token: (query_block * BLOCK) as i32 - p.sizes.first_position(),
            q_len: p.sizes.q_len,
        }
    }

    /// The query token of a row; at or past `q_len` where the row has none.
    #[inline(always)]
    fn token(self, row: u32) -> u32 {
        (self.first_token + row as i32) as u32
    }

    /// Whether one of a warp's rows, from `first_row` on, has a token.
    #[inline(always)]
    pub fn any_of_warp(self, first_row: u32) -> bool {
        let first = self.first_token + first_row as i32;
        first < self.q_len as i32 && first + (WARP_ROWS as i32) > 0
    }

    /// Copies the block's rows of Q; afterwards they are in shared memory, multiplied by the sign of
    /// the scale, for the thread that copied them.
    #[inline(always)]
    pub fn copy<const CHUNKS: usize>(
        self,
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
            self.first_token,
            self.q_len,
        );
        gpu::cp_async_commit_group();
        if p.scale_log2 < 0.0 {
            gpu::cp_async_wait_group::<0>();
            chunks.negate(stage.q, BLOCK);
        }
    }

    /// Writes the warp's rows of O and their log-sum-exps.
    #[inline(always)]
    pub fn write<T: Float16, const CHUNKS: usize>(
        self,
        p: &SparseFlashParams,
        task: Task,
        first_row: u32,
        output: &mut Accumulator<STRIPS, CHUNKS>,
        softmax: &OnlineSoftmax<STRIPS>,
        scale_log2: f32,
    ) {
        let lane = gpu::laneid();
        let rows = softmax.finish(scale_log2);
        let head = u64::from(task.batch * p.sizes.q_heads + task.head);
        output.scale_rows(&rows.map(|halves| halves.map(|(factor, _)| factor)));
        for (s, strip) in output.elements.iter().enumerate() {
            for half in 0..2 {
                let [row, column] = MmaM16N8K16::c(lane, 2 * half as u32);
                let token = self.token(first_row + s as u32 * STRIP_ROWS + row as u32);
                if token >= self.q_len {
                    continue;
                }
                if lane.is_multiple_of(4) {
                    let lse = p.lse.add(head * u64::from(self.q_len) + u64::from(token));
                    gpu::st_global(lse, rows[s][half].1);
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
                        gpu::st_global(to.cast(), T::pack(x[2 * half], x[2 * half + 1]));
                    }
                }
            }
        }
    }
}

/// For blocks of threads after those of the query blocks: zero and −∞ for rows that see nothing.
#[inline(always)]
pub(super) fn write_blind_rows(p: &SparseFlashParams, batch: u32, head: u32, tile: u32) {
    let sizes = &p.sizes;
    let first = (tile - query_tiles(sizes)) * BLOCK;
    let rows = (sizes.blind_rows() - first).min(BLOCK);
    let lse = u64::from(batch * sizes.q_heads + head) * u64::from(sizes.q_len) + u64::from(first);
    if gpu::tid_x() < rows {
        let lse: Global<f32> = p.lse.add(lse + u64::from(gpu::tid_x()));
        gpu::st_global(lse, f32::NEG_INFINITY);
    }
    let row_bytes = sizes.head_dim * if p.output_f32 != 0 { 4 } else { 2 };
    let mut byte = gpu::tid_x() * 16;
    while byte < rows * row_bytes {
        let token = first + byte / row_bytes;
        let row: Global<u8> = if p.output_f32 != 0 {
            p.o.token::<f32>(batch, head, token).cast()
        } else {
            p.o.token::<u16>(batch, head, token).cast()
        };
        gpu::st_global_v4(row.byte_add(u64::from(byte % row_bytes)).cast(), [0u32; 4]);
        byte += THREADS * 16;
    }
}
