//! What the launches take, and how keys are split: worked out from the bounds of a batch alone.

use crate::gpu::Global;
use crate::sparse_flash::SparseFlashParams;

/// Threads of a block: four warps.
pub const THREADS: u32 = 128;

/// Keys of a tile.
pub const TILE_KEYS: u32 = 64;

/// Blocks that a multiprocessor holds.
pub const BLOCKS_PER_SM: u32 = 2;

/// Rows of the narrow kernel's tile, and of the wide one's.
pub const NARROW_ROWS: u32 = 16;
/// See [`NARROW_ROWS`].
pub const WIDE_ROWS: u32 = 64;

/// Tiles of keys below which a split is not worth a block of its own.
const LEAST_TILES: u32 = 4;

/// The parameters of both launches.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DecodeParams {
    /// Tensors, sequences, scale, and mask.
    pub attention: SparseFlashParams,
    /// How keys are split.
    pub splits: Splits,
    /// `f32` \[total_q, q_heads, splits, head_dim\]: weighted sums of values. Not used with one split.
    pub partial_o: Global<f32>,
    /// `f32` \[total_q, q_heads, splits, 2\]: greatest score, a raw product, and sum of the weights relative to it. Not used with one split.
    pub partial_sums: Global<f32>,
}

/// How the keys of each row tile are split.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Splits {
    /// Splits, some of which may be empty.
    pub count: u32,
    /// Tiles of each; 0 where each sequence's tiles are shared out evenly.
    pub tiles: u32,
}

impl Splits {
    /// Splits that fill `multiprocessors`, from the bounds of the batch alone. A sequence's bits depend on them.
    pub const fn even(p: &SparseFlashParams, multiprocessors: u32) -> Self {
        let tiles = p.sequences.max_k.div_ceil(TILE_KEYS);
        let work = p.sequences.count * heads(p) * row_tiles(p, tile_rows(p));
        let slots = multiprocessors * BLOCKS_PER_SM;
        let most = if tiles / LEAST_TILES > slots {
            slots
        } else {
            tiles / LEAST_TILES
        };
        // The share of the slots that have work, in thousandths, over all rounds of blocks: the least count near the best one, and as
        // many more as fit into the only round.
        let (mut best, mut count) = (0, 1);
        while count <= most {
            let share = slots_in_use(work * count, slots);
            best = if share > best { share } else { best };
            count += 1;
        }
        count = 1;
        while count < most && slots_in_use(work * count, slots) * 25 < best * 24 {
            count += 1;
        }
        while count < most && work * (count + 1) <= slots {
            count += 1;
        }
        Self { count, tiles: 0 }
    }

    /// Splits of `tiles` tiles of [`TILE_KEYS`] keys: a sequence's bits do not depend on the rest of the batch.
    pub const fn of_tiles(p: &SparseFlashParams, tiles: u32) -> Self {
        let all = p.sequences.max_k.div_ceil(TILE_KEYS);
        let count = all.div_ceil(tiles);
        Self {
            count: if count == 0 { 1 } else { count },
            tiles,
        }
    }

    /// Rows of the tile of the kernel that a launch takes: [`NARROW_ROWS`] or [`WIDE_ROWS`]. The two add up in different orders, so
    /// that splits of a fixed size always take the wide one.
    pub const fn tile_rows(&self, p: &SparseFlashParams) -> u32 {
        if self.tiles == 0 {
            tile_rows(p)
        } else {
            WIDE_ROWS
        }
    }

    /// First and end tile of a split of `all` tiles.
    #[inline(always)]
    pub(super) fn range(&self, split: u32, all: u32) -> (u32, u32) {
        let each = if self.tiles == 0 {
            all.div_ceil(self.count)
        } else {
            self.tiles
        };
        ((split * each).min(all), (split * each + each).min(all))
    }

    /// Elements of [`DecodeParams::partial_o`].
    pub const fn partial_o_len(&self, p: &SparseFlashParams) -> u64 {
        self.partial_sums_len(p) / 2 * p.head_dim as u64
    }

    /// Elements of [`DecodeParams::partial_sums`].
    pub const fn partial_sums_len(&self, p: &SparseFlashParams) -> u64 {
        if self.count == 1 {
            0
        } else {
            2 * p.sequences.total_q as u64 * p.q_heads as u64 * self.count as u64
        }
    }
}

const fn slots_in_use(blocks: u32, slots: u32) -> u32 {
    if blocks == 0 {
        return 0;
    }
    let rounds = blocks.div_ceil(slots) as u64;
    (blocks as u64 * 1000 / (rounds * slots as u64)) as u32
}

/// Query heads of a row tile: all that read one key/value head, or one where each has lists of its own.
#[inline(always)]
pub(super) const fn group(p: &SparseFlashParams) -> u32 {
    if p.mask.is_dense() {
        p.q_heads / p.kv_heads
    } else {
        1
    }
}

/// Heads that have row tiles of their own.
#[inline(always)]
pub(super) const fn heads(p: &SparseFlashParams) -> u32 {
    if p.mask.is_dense() {
        p.kv_heads
    } else {
        p.q_heads
    }
}

/// Rows of the narrowest tile that holds a sequence's rows, as far as one does.
const fn tile_rows(p: &SparseFlashParams) -> u32 {
    if p.sequences.max_q * group(p) <= NARROW_ROWS {
        NARROW_ROWS
    } else {
        WIDE_ROWS
    }
}

/// Row tiles of the longest sequence.
pub(super) const fn row_tiles(p: &SparseFlashParams, tile_rows: u32) -> u32 {
    // With lists, tiles begin at multiples of their rows' number, counted from key position 0.
    let unaligned = if p.mask.is_dense() { 0 } else { 1 };
    let tiles = (p.sequences.max_q * group(p)).div_ceil(tile_rows) + unaligned;
    if tiles == 0 { 1 } else { tiles }
}
