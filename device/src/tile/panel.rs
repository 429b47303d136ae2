//! Dot products of a *panel*, 128 rows that a block holds in registers, with *tiles* of 64 rows that stream through shared
//! memory: what sampling (queries held, keys streamed) and the reduction of keys (keys held, queries streamed) share.
//!
//! ```text
//! warp w holds rows 32·w .. 32·w + 32 of the panel as A fragments; every warp reads every tile as B fragments
//!
//! copies of tiles 0 and 1 begin
//! for each tile:
//!     wait for the thread's own copies of it; barrier   -> the tile is whole, and the tile before it is no longer read
//!     copies of the tile after the next begin, where the tile before it lay
//!     scores[32 rows of the warp][64] = rows · tileᵀ
//! ```
//!
//! One barrier a tile.
//!
//! Rows lie in shared memory without padding; the 16-byte chunk c of row r is at place c xor (r mod 8), so that the eight
//! rows of an 8 × 8 matrix meet different banks.

use core::marker::PhantomData;

use super::{Accumulator, Float16, SwizzledTile, WARP, scale};
use crate::gpu::{self, Global, Shared};
use crate::launch::{PANEL, PANEL_THREADS, STAGES, TILE, WARP_ROWS};

/// The products of a warp's 32 rows with a tile's rows.
pub type Scores = Accumulator<2, 8>;

/// Bytes of the shared memory that a panel and its tiles take.
pub const fn shared_bytes(head_dim: u32) -> u32 {
    STAGES * TILE * head_dim * 2
}

/// The warp's rows of the panel, and where tiles pass. `CHUNKS` is head_dim / 8.
pub struct Panel<T, const CHUNKS: usize> {
    /// A operands: by half of 16 rows and chunk of 8 columns.
    rows: [[[u32; 2]; CHUNKS]; 2],
    shared: Shared<u8>,
    element: PhantomData<T>,
}

impl<T: Float16, const CHUNKS: usize> Panel<T, CHUNKS> {
    const TILE_BYTES: u32 = TILE * SwizzledTile::<CHUNKS>::ROW_BYTES;

    /// Loads the panel whose row `r` lies at `source(r)`, through the block's shared memory from `shared` on. All threads of
    /// the block call it.
    #[inline(always)]
    pub fn load(shared: Shared<u8>, source: impl Fn(u32) -> Global<u16>) -> Self {
        Self::copy::<PANEL>(shared, source);
        gpu::cp_async_wait_all();
        gpu::bar_sync(0);
        let first_row = warp() * WARP_ROWS;
        let lane_rows = SwizzledTile::<CHUNKS>::new(shared).columns_first(first_row, gpu::laneid());
        // SAFETY: an array of integers, for which zero bits are the number 0. (As an array expression it would be a loop that
        // keeps it in local memory.)
        let mut rows: [[[u32; 2]; CHUNKS]; 2] = unsafe { core::mem::zeroed() };
        for (half, rows) in rows.iter_mut().enumerate() {
            for step in 0..CHUNKS / 2 {
                let [x, y, z, w] = gpu::ldmatrix_x4(lane_rows.block(16 * half as u32, step as u32));
                rows[2 * step] = [x, y];
                rows[2 * step + 1] = [z, w];
            }
        }
        // Tiles will lie where the panel lies.
        gpu::bar_sync(0);
        Panel {
            rows,
            shared,
            element: PhantomData,
        }
    }

    /// The panel with its rows multiplied by the sign of a scale.
    #[inline(always)]
    pub fn times_sign_of(mut self, scale_log2: f32) -> Self {
        if !scale::is_positive(scale_log2) {
            for pair in self.rows.as_flattened_mut().as_flattened_mut() {
                *pair = scale::times_sign::<T>(*pair, scale_log2);
            }
        }
        self
    }

    /// Calls `each(step, scores)` for every tile in order, in the warps for which `wants(step)`. Row `r` of the tile of a step
    /// lies at `source(step, r)`; `also(step, stage)` may add copies of its own. All threads of the block call it.
    #[inline(always)]
    pub fn stream(
        &self,
        steps: u32,
        source: impl Fn(u32, u32) -> Global<u16>,
        also: impl Fn(u32, u32),
        wants: impl Fn(u32) -> bool,
        mut each: impl FnMut(u32, u32, Scores),
    ) {
        self.copy_step(0, steps, 0, &source, &also);
        self.copy_step(1, steps, 1, &source, &also);
        let mut stage = 0;
        let mut step = 0;
        while step < steps {
            gpu::cp_async_wait_group::<1>();
            gpu::bar_sync(0);
            let free = if stage == 0 { 2 } else { stage - 1 };
            self.copy_step(step + 2, steps, free, &source, &also);
            if wants(step) {
                let scores = self.scores(self.shared.byte_add(stage * Self::TILE_BYTES));
                each(step, stage, scores);
            }
            stage = if stage == STAGES - 1 { 0 } else { stage + 1 };
            step += 1;
        }
    }

    /// Begins the copies of a step, if there is one. Not a closure, which could not be told to be inlined: outlined, it would take what
    /// it captures, parameters of the kernel among it, through local memory.
    #[inline(always)]
    fn copy_step(
        &self,
        step: u32,
        steps: u32,
        stage: u32,
        source: &impl Fn(u32, u32) -> Global<u16>,
        also: &impl Fn(u32, u32),
    ) {
        if step < steps {
            let to = self.shared.byte_add(stage * Self::TILE_BYTES);
            Self::copy::<TILE>(to, |row| source(step, row));
            also(step, stage);
        }
        // A group a step, even without copies, keeps the count of groups in flight.
        gpu::cp_async_commit_group();
    }

    /// The products of the warp's rows with the rows of a tile.
    #[inline(always)]
    fn scores(&self, tile: Shared<u8>) -> Scores {
        let lane_rows = SwizzledTile::<CHUNKS>::new(tile).rows_first(0, gpu::laneid());
        let mut scores = Scores::zero();
        for step in 0..CHUNKS / 2 {
            for pair in 0..4 {
                let [x, y, z, w] = gpu::ldmatrix_x4(lane_rows.block(16 * pair as u32, step as u32));
                for (scores, rows) in scores.elements.iter_mut().zip(&self.rows) {
                    let ([a0, a1], [a2, a3]) = (rows[2 * step], rows[2 * step + 1]);
                    let rows = [a0, a1, a2, a3];
                    scores[2 * pair] = T::mma(rows, [x, y], scores[2 * pair]);
                    scores[2 * pair + 1] = T::mma(rows, [z, w], scores[2 * pair + 1]);
                }
            }
        }
        scores
    }

    /// Begins the block's copies of `ROWS` rows to `to`.
    #[inline(always)]
    fn copy<const ROWS: u32>(to: Shared<u8>, source: impl Fn(u32) -> Global<u16>) {
        let chunks = CHUNKS as u32;
        let (first, chunk) = (gpu::tid_x() / chunks, gpu::tid_x() % chunks);
        let rows_at_once = PANEL_THREADS / chunks;
        for pass in 0..ROWS / rows_at_once {
            let row = first + pass * rows_at_once;
            let from = source(row).add(u64::from(chunk * 8));
            gpu::cp_async_cg_16(
                SwizzledTile::<CHUNKS>::new(to).chunk(row, chunk).cast(),
                from,
            );
        }
    }
}

/// The warp's number in its block. A shuffle, so that the compiler knows that a warp does not diverge where it is asked.
#[inline(always)]
pub fn warp() -> u32 {
    gpu::shfl_sync_idx(WARP, gpu::tid_x() / 32, 0)
}

/// The warp's row that element `[half][_][2·pair + _]` of [`Scores`] belongs to, for this lane: 0 to 31.
#[inline(always)]
pub fn row_in_warp(half: u32, pair: u32) -> u32 {
    half * 16 + pair * 8 + gpu::laneid() / 4
}

/// The first of this lane's two columns of each eight of [`Scores`].
#[inline(always)]
pub fn first_column() -> u32 {
    gpu::laneid() % 4 * 2
}
