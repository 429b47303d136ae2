//! Attention of few queries over many keys: generation, speculative checks, a question after a cached document.
//!
//! Such a launch is bound by the reading of keys and values. Rows of all query heads that read the same key/value head are packed
//! into one tile, so that keys are read once, and keys are split over CTAs, so that all multiprocessors read.
//!
//! ```text
//! decode:   a CTA = (split of the keys, row tile of a key/value head, sequence)
//!     Q <- the tile's rows: row r is query r / group, query head r mod group of the key/value head
//!     ring of stages <- tiles of 64 keys and their values
//!     for each tile of the split:
//!         wait for it; barrier; begin the copies of the tile that takes the place of the one before
//!         S = Q·Kᵀ, mask;  P = online softmax of S;  O = O·rescale + P·V
//!     merge the warps' (O, maximum, sum), in order;  O / sum and lse, or the split's (O, maximum, sum) to the workspace
//! combine:  a warp = one row of one query head
//!     merge the splits' (O, maximum, sum), in order;  O / sum, lse = max + ln sum
//! ```
//!
//! With a sparse mask each query head has lists of its own: a row tile is then one of a query head, its rows are of one query block,
//! and what is split is the way through its lists. See `walk`.
//!
//! # Who does what
//! Four warps. With up to 16 rows, each takes 16 of a tile's 64 keys for all rows; with up to 64 rows, each takes 16 rows and all
//! keys. All threads copy, 16 bytes at a time with `cp.async`, zero after the last key.
//!
//! # Bits
//! Splits and warps are merged in a fixed order: repeats have the same bits. The bits depend on where keys are split. With
//! [`Splits::even`] that follows from the bounds of the batch; with [`Splits::of_tiles`] from a sequence's own length alone.
//!
//! # NaN and infinity in values
//! Rows of a tile of keys after a sequence's last are zero. Where rows of a tile see different keys, which is in a causal sequence's
//! last tiles, elements that are not finite are taken out of the values and added by themselves to the rows that see them.
//!
//! # Shape contract
//! [`DecodeParams`] says what each address must hold; [`launch_shape`] and [`combine_shape`] the launches, the second only where
//! there is more than one split. head_dim is 64 or 128, and must be the entry's. A mask that is not dense has lists for all query
//! tiles.

pub mod combine;
mod kernel;
mod params;
mod poison;
mod row_tile;
mod stage;
mod walk;

use crate::launch::LaunchShape;
use crate::tile::{Bf16, F16};

pub use params::{BLOCKS_PER_SM, DecodeParams, NARROW_ROWS, Splits, THREADS, TILE_KEYS, WIDE_ROWS};
use params::{heads, row_tiles};

/// The launch of the kernel whose tile has [`Splits::tile_rows`] rows.
pub const fn launch_shape(p: &DecodeParams) -> LaunchShape {
    let attention = &p.attention;
    let rows = p.splits.tile_rows(attention);
    LaunchShape {
        grid: [
            p.splits.count,
            heads(attention) * row_tiles(attention, rows),
            attention.sequences.count,
        ],
        block: [THREADS, 1, 1],
        shared_bytes: stage::shared_bytes(attention, rows),
    }
}

/// The launch that merges splits: a warp for each row of each query head.
pub const fn combine_shape(p: &DecodeParams) -> LaunchShape {
    let rows = p.attention.sequences.total_q * p.attention.q_heads;
    LaunchShape::linear(rows.div_ceil(THREADS / 32), THREADS, 0)
}

macro_rules! entries {
    ($($constant:ident, $name:ident, $element:ident, $chunks:literal, $key_tiles:literal, $doc:literal;)*) => {$(
        crate::entry! {
            #[doc = $doc]
            $constant, $name = kernel::decode::<$element, $chunks, $key_tiles>, DecodeParams
        }
    )*};
}

entries! {
    BF16_D64_M16, decode_bf16_d64_m16, Bf16, 8, 2, "Up to 16 rows in `bf16` with head_dim 64.";
    BF16_D64_M64, decode_bf16_d64_m64, Bf16, 8, 8, "64 rows in `bf16` with head_dim 64.";
    BF16_D128_M16, decode_bf16_d128_m16, Bf16, 16, 2, "Up to 16 rows in `bf16` with head_dim 128.";
    BF16_D128_M64, decode_bf16_d128_m64, Bf16, 16, 8, "64 rows in `bf16` with head_dim 128.";
    F16_D64_M16, decode_f16_d64_m16, F16, 8, 2, "Up to 16 rows in `f16` with head_dim 64.";
    F16_D64_M64, decode_f16_d64_m64, F16, 8, 8, "64 rows in `f16` with head_dim 64.";
    F16_D128_M16, decode_f16_d128_m16, F16, 16, 2, "Up to 16 rows in `f16` with head_dim 128.";
    F16_D128_M64, decode_f16_d128_m64, F16, 16, 8, "64 rows in `f16` with head_dim 128.";
}
