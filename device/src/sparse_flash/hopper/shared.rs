//! Shared memory of a block: tiles, barriers, and what is told about both.
//!
//! ```text
//! Q | K[0] K[1] … | V[0] V[1] … | O on its way out | barriers | info of each stage | work tiles | contexts and queues | bitmap of listed blocks
//! ```

use core::marker::PhantomData;

use super::super::SparseFlashParams;
use super::super::gathered::queue_keys;
use super::super::warp_context::WarpContext;
use super::super::warp_lane::{WarpLane, WarpMemory};
use super::super::work::{Keys, QueryRows, WorkTile};
use super::CONSUMERS;
use crate::gpu::{self, Shared};
use crate::tile::WARP;
use crate::tile::warpgroup::{HeadDim, TILE_ROWS};

/// Warps that produce and that consume.
const PRODUCER_WARPS: u32 = 4;
const CONSUMER_WARPS: u32 = 4 * CONSUMERS;

/// Stages that K and V each have. At head_dim 128 two fill the memory; at 64 there is room for twice as many, whose copies are half as
/// long.
const fn stages(dim: u32) -> u32 {
    if dim > 64 { 2 } else { 4 }
}

const MAX_STAGES: u32 = stages(64);

const BARRIERS_BYTES: u32 = 8 * Barrier::COUNT;
const TILE_INFO_BYTES: u32 = 4 * MAX_STAGES;
const WORK_WORDS: u32 = 12;
/// Two slots.
const WORK_BYTES: u32 = 2 * 4 * WORK_WORDS;
const PRODUCER_BYTES: u32 = WarpContext::BYTES + 4 * queue_keys(TILE_ROWS);

/// The query head of a work tile that is none.
const NO_HEAD: u32 = u32::MAX;

/// Where a full and an empty barrier hand something over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Barrier {
    /// The work tile and its Q. One arrival, with the copies' bytes.
    QFull,
    /// Everyone has read the work tile, and the consumers Q: eight consumer warps, and the producer warps that did not write it.
    QEmpty,
    /// K of a stage and its info. Four producer warps, one of them with the copies' bytes.
    KFull(u32),
    /// Eight consumer warps have multiplied it.
    KEmpty(u32),
    /// V of a stage: as K.
    VFull(u32),
    /// All consumer threads have done with it: a warp arrives as one, or each lane for what it has read by itself.
    VEmpty(u32),
}

impl Barrier {
    const COUNT: u32 = 2 + 4 * MAX_STAGES;

    #[inline(always)]
    const fn index(self) -> u32 {
        match self {
            Self::QFull => 0,
            Self::QEmpty => 1,
            Self::KFull(stage) => 2 + 4 * stage,
            Self::KEmpty(stage) => 3 + 4 * stage,
            Self::VFull(stage) => 4 + 4 * stage,
            Self::VEmpty(stage) => 5 + 4 * stage,
        }
    }

    /// Arrivals that complete a phase.
    const fn arrivals(self) -> u32 {
        match self {
            Self::QFull => 1,
            Self::QEmpty => CONSUMER_WARPS + PRODUCER_WARPS - 1,
            Self::KFull(_) | Self::VFull(_) => PRODUCER_WARPS,
            Self::KEmpty(_) => CONSUMER_WARPS,
            Self::VEmpty(_) => 32 * CONSUMER_WARPS,
        }
    }
}

/// A stage of K and V, and the parity of the phase that fills it. Producers and consumers take the same turns.
#[derive(Clone, Copy)]
pub(super) struct PipelineState {
    pub stage: u32,
    pub parity: u32,
}

impl PipelineState {
    pub const FIRST: Self = Self {
        stage: 0,
        parity: 0,
    };

    /// The same, through a shuffle: the compiler then knows that the stage is the whole warp's, and keeps the addresses of its tiles in
    /// uniform registers, which products take their descriptors from.
    #[inline(always)]
    pub fn of_warp(self) -> Self {
        Self {
            stage: gpu::shfl_sync_idx(WARP, self.stage, 0),
            ..self
        }
    }

    /// The stage before this one.
    #[inline(always)]
    pub fn stage_before<D: HeadDim>(self) -> u32 {
        if self.stage == 0 {
            stages(D::DIM) - 1
        } else {
            self.stage - 1
        }
    }

    #[inline(always)]
    pub fn next<D: HeadDim>(self) -> Self {
        if self.stage + 1 == stages(D::DIM) {
            Self {
                stage: 0,
                parity: self.parity ^ 1,
            }
        } else {
            Self {
                stage: self.stage + 1,
                ..self
            }
        }
    }
}

/// What consumers need to know of a tile.
#[derive(Clone, Copy)]
pub(super) struct TileInfo {
    bits: u32,
}

impl TileInfo {
    const DIAGONAL: u32 = 1 << 8;
    const LAST: u32 = 1 << 9;

    #[inline(always)]
    pub const fn new(keys: u32, own: bool, last: bool) -> Self {
        let own = if own { Self::DIAGONAL } else { 0 };
        let last = if last { Self::LAST } else { 0 };
        Self {
            bits: keys | own | last,
        }
    }

    /// Keys of the tile, 0 to 128; what follows them is zero. 0 where a work tile has none at all.
    #[inline(always)]
    pub const fn keys(self) -> u32 {
        self.bits & 0xff
    }

    /// Whether it is the diagonal key block of a causal problem: row r of the query block sees the keys up to r.
    #[inline(always)]
    pub const fn is_diagonal(self) -> bool {
        self.bits & Self::DIAGONAL != 0
    }

    /// Whether the work tile ends with it.
    #[inline(always)]
    pub const fn is_last(self) -> bool {
        self.bits & Self::LAST != 0
    }

    /// Lane 0's. The whole warp calls it.
    #[inline(always)]
    pub fn of_warp(self) -> Self {
        Self {
            bits: gpu::shfl_sync_idx(WARP, self.bits, 0),
        }
    }

    /// Whether a row may not see all 128 keys.
    #[inline(always)]
    pub const fn is_partial(self) -> bool {
        self.is_diagonal() || self.keys() < TILE_ROWS
    }
}

/// Words that lane 0 reads for all of its warp: so the lane that arrives when the words are wanted no more is the one that has read them.
#[inline(always)]
fn read_once<const N: usize>(words: impl Fn() -> [u32; N]) -> [u32; N] {
    let mut read = [0; N];
    if gpu::laneid() == 0 {
        read = words();
    }
    read.map(|word| gpu::shfl_sync_idx(WARP, word, 0))
}

#[inline(always)]
const fn rows([batch, start, first, end]: [u32; 4]) -> QueryRows {
    QueryRows {
        batch,
        start,
        first: first as i32,
        end,
    }
}

#[inline(always)]
const fn work_tile(names: [u32; 4], of_rows: [u32; 4], keys: [u32; 4]) -> WorkTile {
    let [q_head, kv_head, number, query_block] = names;
    let [sequence, start, len, _] = keys;
    WorkTile {
        q_head,
        kv_head,
        number,
        query_block,
        rows: rows(of_rows),
        keys: Keys {
            sequence,
            start,
            len,
        },
    }
}

/// The block's shared memory.
pub(super) struct Memory<D> {
    dim: PhantomData<D>,
}

/// Bytes of a launch.
pub(super) const fn bytes(p: &SparseFlashParams) -> u32 {
    let tile_bytes = TILE_ROWS * p.head_dim * 2;
    let bitmap_bytes = p.sequences.max_key_blocks().div_ceil(32) * 4;
    (2 + 2 * stages(p.head_dim)) * tile_bytes
        + BARRIERS_BYTES
        + TILE_INFO_BYTES
        + WORK_BYTES
        + PRODUCER_WARPS * PRODUCER_BYTES
        + bitmap_bytes
}

impl<D: HeadDim> Memory<D> {
    const STAGES: u32 = stages(D::DIM);
    const BARRIERS: u32 = (2 + 2 * Self::STAGES) * D::TILE_BYTES;
    const TILE_INFO: u32 = Self::BARRIERS + BARRIERS_BYTES;
    const WORK: u32 = Self::TILE_INFO + TILE_INFO_BYTES;
    const PRODUCERS: u32 = Self::WORK + WORK_BYTES;
    const BITMAP: u32 = Self::PRODUCERS + PRODUCER_WARPS * PRODUCER_BYTES;

    #[inline(always)]
    fn at(offset: u32) -> Shared<u8> {
        gpu::dynamic_shared().byte_add(offset)
    }

    #[inline(always)]
    pub fn q() -> Shared<u8> {
        Self::at(0)
    }

    #[inline(always)]
    pub fn k(stage: u32) -> Shared<u8> {
        Self::at((1 + stage) * D::TILE_BYTES)
    }

    #[inline(always)]
    pub fn v(stage: u32) -> Shared<u8> {
        Self::at((1 + Self::STAGES + stage) * D::TILE_BYTES)
    }

    /// The query block's output in 16 bits.
    #[inline(always)]
    pub fn output() -> Shared<u8> {
        Self::at((1 + 2 * Self::STAGES) * D::TILE_BYTES)
    }

    #[inline(always)]
    pub fn barrier(barrier: Barrier) -> Shared<u64> {
        Self::at(Self::BARRIERS).cast().add(barrier.index())
    }

    #[inline(always)]
    fn info(stage: u32) -> Shared<u32> {
        Self::at(Self::TILE_INFO).cast().add(stage)
    }

    /// Tells the consumers what a stage holds. One thread calls it.
    #[inline(always)]
    pub fn write_tile_info(stage: u32, info: TileInfo) {
        gpu::st_shared(Self::info(stage), info.bits);
    }

    /// What a stage holds, in lane 0 alone: [`TileInfo::of_warp`] tells the others, once the load had time.
    #[inline(always)]
    pub fn load_tile_info(stage: u32) -> TileInfo {
        let mut bits = 0;
        if gpu::laneid() == 0 {
            bits = gpu::ld_shared(Self::info(stage));
        }
        TileInfo { bits }
    }

    #[inline(always)]
    fn work(slot: u32) -> Shared<u32> {
        Self::at(Self::WORK).cast().add(slot * WORK_WORDS)
    }

    /// Tells the block its next work tile; `None` that there is none. `slot` is the parity of [`Barrier::QFull`]: what lies there is
    /// overwritten when everyone has read the work tile after it.
    #[inline(always)]
    pub fn write_work(slot: u32, work: Option<&WorkTile>) {
        let to = Self::work(slot);
        let Some(work) = work else {
            gpu::st_shared(to, NO_HEAD);
            return;
        };
        let WorkTile { rows, keys, .. } = work;
        let names = [work.q_head, work.kv_head, work.number, work.query_block];
        gpu::st_shared_v4(to, names);
        let rows = [rows.batch, rows.start, rows.first as u32, rows.end];
        gpu::st_shared_v4(to.add(4), rows);
        gpu::st_shared_v4(to.add(8), [keys.sequence, keys.start, keys.len, 0]);
    }

    /// Whether the block was told a work tile. The whole warp calls it.
    #[inline(always)]
    pub fn has_work(slot: u32) -> bool {
        let [q_head] = read_once(|| [gpu::ld_shared(Self::work(slot))]);
        q_head != NO_HEAD
    }

    /// The rows of the work tile that the block was told. The whole warp calls it.
    #[inline(always)]
    pub fn read_rows(slot: u32) -> QueryRows {
        rows(read_once(|| gpu::ld_shared_v4(Self::work(slot).add(4))))
    }

    /// The work tile that the block was told. The whole warp calls it.
    #[inline(always)]
    pub fn read_work(slot: u32) -> WorkTile {
        let from = Self::work(slot);
        let names = read_once(|| gpu::ld_shared_v4(from));
        let rows = read_once(|| gpu::ld_shared_v4(from.add(4)));
        work_tile(names, rows, read_once(|| gpu::ld_shared_v4(from.add(8))))
    }

    /// The same. One lane calls it.
    #[inline(always)]
    pub fn work_of_slot(slot: u32) -> WorkTile {
        let from = Self::work(slot);
        let [names, rows, keys] = [0, 4, 8].map(|word| gpu::ld_shared_v4(from.add(word)));
        work_tile(names, rows, keys)
    }

    /// What a producer warp has for its walk.
    #[inline(always)]
    pub fn of_producer(warp_lane: WarpLane) -> WarpMemory {
        let own = Self::at(Self::PRODUCERS + warp_lane.warp * PRODUCER_BYTES);
        WarpMemory {
            warp_lane,
            context: WarpContext::new(own),
            queue: own.byte_add(WarpContext::BYTES).cast(),
            listed: Self::at(Self::BITMAP).cast(),
        }
    }

    /// Makes the barriers. All threads of the block call it, and use none before a barrier of the block.
    #[inline(always)]
    pub fn initialise() {
        if gpu::tid_x() == 0 {
            let mut stage = 0;
            Self::initialise_barrier(Barrier::QFull);
            Self::initialise_barrier(Barrier::QEmpty);
            while stage < Self::STAGES {
                Self::initialise_barrier(Barrier::KFull(stage));
                Self::initialise_barrier(Barrier::KEmpty(stage));
                Self::initialise_barrier(Barrier::VFull(stage));
                Self::initialise_barrier(Barrier::VEmpty(stage));
                stage += 1;
            }
            gpu::fence_mbarrier_init();
        }
    }

    #[inline(always)]
    fn initialise_barrier(barrier: Barrier) {
        gpu::mbarrier_init(Self::barrier(barrier), barrier.arrivals());
    }

    /// Waits for the phase of this parity.
    #[inline(always)]
    #[track_caller]
    pub fn wait(barrier: Barrier, parity: u32) {
        gpu::mbarrier_wait_parity(Self::barrier(barrier), parity);
    }

    /// One arrival for the warp, once all of its lanes are here.
    #[inline(always)]
    #[track_caller]
    pub fn arrive_warp(barrier: Barrier) {
        gpu::bar_warp_sync(WARP);
        if gpu::laneid() == 0 {
            gpu::mbarrier_arrive(Self::barrier(barrier));
        }
    }

    /// All arrivals of a consumer warp at [`Barrier::VEmpty`]: lane 0's for all, or `each` lane's own.
    #[inline(always)]
    #[track_caller]
    pub fn release_values(stage: u32, each: bool) {
        let barrier = Self::barrier(Barrier::VEmpty(stage));
        if each {
            gpu::mbarrier_arrive(barrier);
        } else {
            gpu::bar_warp_sync(WARP);
            if gpu::laneid() == 0 {
                gpu::mbarrier_arrive_count(barrier, 32);
            }
        }
    }
}
