//! Products of a warpgroup: 64 rows of queries in registers by tiles of 128 keys or values in shared memory.
//!
//! Tiles lie as bulk tensor copies lay them down: 128 rows in 128-byte swizzled pieces of 64 columns, one behind the other.

use super::WARP;
use super::float16::{Bf16, F16, Float16};
use super::scale;
use super::swizzled::SwizzledTile;
use crate::abi::KvTensor;
use crate::gpu::{
    self, Accumulators, Global, KMajor, MnMajor, Shared, Swizzle, TensorMap, TensorMapLayout, Walk,
};
use crate::params::TensorArg;

/// Threads of a warpgroup.
pub const WARPGROUP: u32 = 128;

/// Rows of a tile.
pub const TILE_ROWS: u32 = 128;

/// Rows of the queries of one product, where they are in shared memory.
pub const GROUP_ROWS: u32 = 64;

/// Columns of a piece: 128 bytes.
pub const PIECE_COLUMNS: u32 = 64;

/// Bytes of a piece of a tile.
pub const PIECE_BYTES: u32 = TILE_ROWS * 128;

/// Whether a block of one producer and otherwise consumer warpgroups has the registers that `setmaxnreg` moves about: no more than it was
/// launched with, all that a multiprocessor has in steps of 8 a thread. Where they are too few, the last warpgroup waits for ever.
pub const fn warpgroups_fit(threads: u32, of_producer: u32, of_consumer: u32) -> bool {
    let at_launch = 65_536 / threads / 8 * 8;
    let consumers = threads / WARPGROUP - 1;
    of_producer + consumers * of_consumer <= threads / WARPGROUP * at_launch
}

/// The tensor map of Q, or of strided K or V: `[batch, heads, tokens]` tokens of `head_dim` elements, in boxes of 128 tokens by 64
/// columns.
pub const fn map_layout(
    tensor: &TensorArg,
    head_dim: u32,
    batch_heads_tokens: [u32; 3],
) -> TensorMapLayout {
    boxes(tensor, head_dim, batch_heads_tokens, TILE_ROWS)
}

/// The tensor map of K or V: as [`map_layout`], or, where they are paged, `[pages, kv_heads, page tokens]` tokens in boxes of a page by
/// 64 columns.
pub const fn kv_map_layout(
    tensor: &KvTensor,
    head_dim: u32,
    batch_heads_tokens: [u32; 3],
) -> TensorMapLayout {
    let rows = if tensor.is_paged() {
        1 << tensor.page_log2
    } else {
        TILE_ROWS
    };
    boxes(&tensor.rows, head_dim, batch_heads_tokens, rows)
}

const fn boxes(
    tensor: &TensorArg,
    head_dim: u32,
    [batch, heads, tokens]: [u32; 3],
    rows: u32,
) -> TensorMapLayout {
    // A stride over a single element is never taken, and may be anything in the caller's description.
    const fn stride_bytes(elements: u64, count: u32) -> u64 {
        if count > 1 { 2 * elements } else { 16 }
    }
    TensorMapLayout {
        base: tensor.address.address(),
        element_bytes: 2,
        rank: 4,
        dims: [
            head_dim as u64,
            tokens as u64,
            heads as u64,
            batch as u64,
            0,
        ],
        strides_bytes: [
            stride_bytes(tensor.stride_token, tokens),
            stride_bytes(tensor.stride_head, heads),
            stride_bytes(tensor.stride_batch, batch),
            0,
        ],
        box_dims: [PIECE_COLUMNS, rows, 1, 1, 0],
        swizzle: Swizzle::Bytes128,
    }
}

/// Copies a tile through a map of [`map_layout`]: 128 tokens of a head, from `[token, head, batch]` on; zero where there is no token. One
/// thread calls it, and the mbarrier counts [`HeadDim::TILE_BYTES`].
#[inline(always)]
#[track_caller]
pub fn copy_tile<D: HeadDim>(
    to: Shared<u8>,
    map: &TensorMap,
    [token, head, batch]: [i32; 3],
    full: Shared<u64>,
) {
    for piece in 0..D::PIECES {
        let to = to.byte_add(piece * PIECE_BYTES);
        let column = (piece * PIECE_COLUMNS) as i32;
        gpu::cp_async_bulk_tensor_4d_shared_global(to, map, [column, token, head, batch], full);
    }
}

/// The scores of a thread's two rows. Element i is in row `(i >> 1) & 1` of the two, and column `(i >> 2) · 8 + (i & 1)` from the
/// lane's first.
pub type Scores = [f32; 64];

/// Weights as the A operand of their product with values: four registers for 16 keys.
pub type Weights = [[u32; 4]; 8];

/// A head_dim, with what a thread holds for it: queries as A operands, and output.
pub trait HeadDim: Copy {
    /// Elements of a head.
    const DIM: u32;
    /// Pieces of a tile.
    const PIECES: u32 = Self::DIM / PIECE_COLUMNS;
    /// Bytes of a tile.
    const TILE_BYTES: u32 = Self::PIECES * PIECE_BYTES;
    /// A operands, four registers for 16 columns.
    type Queries: Copy + AsRef<[[u32; 4]]> + AsMut<[[u32; 4]]>;
    /// Accumulators, placed as in [`Scores`].
    type Output: Copy + AsRef<[f32]> + AsMut<[f32]> + Accumulators;
}

/// head_dim 64.
#[derive(Clone, Copy)]
pub struct D64;

/// head_dim 128.
#[derive(Clone, Copy)]
pub struct D128;

impl HeadDim for D64 {
    const DIM: u32 = 64;
    type Queries = [[u32; 4]; 4];
    type Output = [f32; 32];
}

impl HeadDim for D128 {
    const DIM: u32 = 128;
    type Queries = [[u32; 4]; 8];
    type Output = [f32; 64];
}

/// The products in one element type. They return at once; see [`gpu::wgmma_wait_group`].
pub trait Products<T: Float16>: HeadDim {
    /// queries · keysᵀ.
    fn scores(queries: &Self::Queries, keys: Shared<u8>) -> Scores;

    /// The same with the queries in shared memory, a tile of [`GROUP_ROWS`] rows: for who has no registers for them.
    fn scores_of_group(queries: Shared<u8>, keys: Shared<u8>) -> Scores;

    /// output += weights · values.
    fn add_values(output: &mut Self::Output, weights: &Weights, values: Shared<u8>);
}

macro_rules! products {
    ($($element:ident, $dim:ident, $scores:ident, $shared:ident, $values:ident;)*) => {$(
        impl Products<$element> for $dim {
            #[inline(always)]
            #[track_caller]
            fn scores(queries: &Self::Queries, keys: Shared<u8>) -> Scores {
                gpu::$scores::<KMajor<TILE_ROWS>>(queries, KMajor::<TILE_ROWS>::descriptor(keys))
            }

            #[inline(always)]
            #[track_caller]
            fn scores_of_group(queries: Shared<u8>, keys: Shared<u8>) -> Scores {
                gpu::$shared::<KMajor<GROUP_ROWS>, KMajor<TILE_ROWS>>(
                    KMajor::<GROUP_ROWS>::descriptor(queries),
                    KMajor::<TILE_ROWS>::descriptor(keys),
                )
            }

            #[inline(always)]
            #[track_caller]
            fn add_values(output: &mut Self::Output, weights: &Weights, values: Shared<u8>) {
                let values = MnMajor::<TILE_ROWS>::descriptor(values);
                gpu::$values::<MnMajor<TILE_ROWS>>(output, weights, values);
            }
        }
    )*};
}

products! {
    Bf16, D64, wgmma_m64n128k16x4_f32_bf16_rs_zero,
        wgmma_m64n128k16x4_f32_bf16_ss_zero, wgmma_m64n64k16x8_f32_bf16_rs;
    Bf16, D128, wgmma_m64n128k16x8_f32_bf16_rs_zero,
        wgmma_m64n128k16x8_f32_bf16_ss_zero, wgmma_m64n128k16x8_f32_bf16_rs;
    F16, D64, wgmma_m64n128k16x4_f32_f16_rs_zero,
        wgmma_m64n128k16x4_f32_f16_ss_zero, wgmma_m64n64k16x8_f32_f16_rs;
    F16, D128, wgmma_m64n128k16x8_f32_f16_rs_zero,
        wgmma_m64n128k16x8_f32_f16_ss_zero, wgmma_m64n128k16x8_f32_f16_rs;
}

/// The warp's 16 rows, from `first_row` on, of a tile of queries.
#[inline(always)]
#[track_caller]
pub fn load_queries<D: HeadDim>(tile: Shared<u8>, first_row: u32, lane: u32) -> D::Queries {
    // SAFETY: an array of integers, for which zero bits are the number 0. (As an array expression it would be a loop that keeps
    // it in local memory.)
    let mut queries: D::Queries = unsafe { core::mem::zeroed() };
    for (step, registers) in queries.as_mut().iter_mut().enumerate() {
        let piece = tile.byte_add(step as u32 / 4 * PIECE_BYTES);
        let rows = SwizzledTile::<8>::new(piece).columns_first(first_row, lane);
        *registers = gpu::ldmatrix_x4(rows.block(0, step as u32 % 4));
    }
    queries
}

/// Copies a warp's 16 rows into a tile of [`GROUP_ROWS`] rows, from its row `first_row` on, times the sign of a scale. `row` says where in
/// memory a row begins. The product takes them after a fence of the async proxy.
#[inline(always)]
#[track_caller]
pub fn copy_rows<T: Float16, D: HeadDim>(
    tile: Shared<u8>,
    first_row: u32,
    scale_log2: f32,
    row: impl Fn(u32) -> Global<u16>,
) {
    let chunks = D::DIM / 8;
    let flip = scale::flipped_signs(scale_log2);
    let chunk_of = |step: u32| {
        let index = step * 32 + gpu::laneid();
        let (in_warp, chunk) = (index / chunks, index % chunks);
        let piece = tile.byte_add(chunk / 8 * GROUP_ROWS * 128);
        let to = SwizzledTile::<8>::new(piece).chunk(first_row + in_warp, chunk % 8);
        (in_warp, chunk, to.cast::<u32>())
    };
    for step in 0..16 * chunks / 32 {
        let (in_warp, chunk, to) = chunk_of(step);
        let words = gpu::ld_global_nc_v4(row(in_warp).add(u64::from(chunk * 8)).cast::<u32>());
        gpu::st_shared_v4(to, words.map(|pair| pair ^ flip));
    }
    if scale_log2 == 0.0 {
        // A second time, so that it takes no registers from those that have a scale.
        for step in 0..16 * chunks / 32 {
            let (_, _, to) = chunk_of(step);
            gpu::st_shared_v4(to, gpu::ld_shared_v4(to).map(scale::times_zero::<T>));
        }
    }
}

/// Weights rounded to 16 bits.
#[inline(always)]
pub fn pack<T: Float16>(weights: &Scores) -> Weights {
    // SAFETY: an array of integers, as above.
    let mut packed: Weights = unsafe { core::mem::zeroed() };
    for (step, registers) in packed.iter_mut().enumerate() {
        for (i, pair) in registers.iter_mut().enumerate() {
            let at = 8 * step + 2 * i;
            *pair = T::pack(weights[at], weights[at + 1]);
        }
    }
    packed
}

/// The maximum of each of a lane's two rows, over the four lanes that share them. A NaN is no maximum.
#[inline(always)]
pub fn maxima(scores: &Scores) -> [f32; 2] {
    let mut maxima = [[f32::NEG_INFINITY; 2]; 2];
    for (i, &score) in scores.iter().enumerate() {
        let maximum = &mut maxima[i >> 1 & 1][i & 1];
        *maximum = gpu::max_f32(*maximum, score);
    }
    maxima.map(|[even, odd]| {
        let mut maximum = gpu::max_f32(even, odd);
        maximum = gpu::max_f32(maximum, gpu::shfl_sync_bfly(WARP, maximum, 1));
        gpu::max_f32(maximum, gpu::shfl_sync_bfly(WARP, maximum, 2))
    })
}

/// Sets the scores of what is not seen to −∞, whatever they were. `last` is the last column that each of the lane's two rows sees,
/// counted from the lane's first column: −1 or less for none.
#[inline(always)]
pub fn mask(scores: &mut Scores, last: [i32; 2]) {
    for (i, score) in scores.iter_mut().enumerate() {
        // A constant against a register: nothing else stays alive.
        if ((i >> 2) * 8 + (i & 1)) as i32 > last[i >> 1 & 1] {
            *score = f32::NEG_INFINITY;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::Global;

    #[test]
    fn hardware_takes_any_stride_of_dimensions_of_size_one() {
        let k = TensorArg {
            address: Global::from_address(1 << 20),
            stride_batch: 0,
            stride_head: 1,
            stride_token: u64::MAX / 2,
        };
        assert_eq!(map_layout(&k, 128, [1; 3]).check(), Ok(()));
        assert!(map_layout(&k, 128, [1, 1, 2]).check().is_err());
    }

    #[test]
    fn a_tile_is_whole_boxes() {
        fn check<D: HeadDim>() {
            let k = TensorArg::contiguous::<u16>(Global::from_address(1 << 20), 1, 1000, D::DIM);
            let layout = map_layout(&k, D::DIM, [1, 1, 1000]);
            assert_eq!(layout.check(), Ok(()));
            assert_eq!(D::PIECES * layout.box_bytes(), D::TILE_BYTES);
        }
        check::<D64>();
        check::<D128>();
    }
}
