//! `merge(o, lse; o, lse)`: attention over two disjoint sets of keys, from attention over each.
//!
//! ```text
//! a thread: four columns of one row of one head
//!     m = max(lse_a, lse_b);  a = e^(lse_a − m);  b = e^(lse_b − m)
//!     O = (a·O_a + b·O_b) / (a + b),  lse = m + ln(a + b)
//! ```
//!
//! A side whose lse is −∞ counts for nothing, whatever its O holds; if both are, O = 0 and lse = −∞.
//!
//! # Shape contract
//! [`MergeParams`]; [`launch_shape`].

use crate::abi::LseTensor;
use crate::gpu::{self, Global};
use crate::launch::LaunchShape;
use crate::params::TensorArg;
use crate::tile::{Bf16, F16, Float16};

/// Threads of a block.
pub const THREADS: u32 = 128;

/// What is merged. The result may lie where either side does.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct MergeParams {
    /// Attention over the keys of each side: \[batch, heads, rows, head_dim\] of the entry's type.
    pub o: [TensorArg; 2],
    /// Its natural log-sum-exp.
    pub lse: [LseTensor; 2],
    /// As `o`.
    pub merged_o: TensorArg,
    /// As `lse`.
    pub merged_lse: LseTensor,
    /// Sequences; 1 where they are packed.
    pub batch: u32,
    /// Query heads.
    pub heads: u32,
    /// Queries of a sequence, or of all where they are packed.
    pub rows: u32,
    /// Elements of a row: a multiple of 4, at most 512.
    pub head_dim: u32,
}

/// The launch: x counts groups of rows, y heads, z sequences.
pub const fn launch_shape(p: &MergeParams) -> LaunchShape {
    let rows_at_once = THREADS / (p.head_dim / 4);
    let blocks = p.rows.div_ceil(rows_at_once);
    LaunchShape {
        grid: [if blocks == 0 { 1 } else { blocks }, p.heads, p.batch],
        block: [THREADS, 1, 1],
        shared_bytes: 0,
    }
}

/// An element type of O.
trait Element {
    fn load(from: Global<u8>, column: u32) -> [f32; 4];
    fn store(to: Global<u8>, column: u32, values: [f32; 4]);
}

/// `f32`.
struct F32;

impl Element for F32 {
    #[inline(always)]
    fn load(from: Global<u8>, column: u32) -> [f32; 4] {
        gpu::ld_global_v4(from.cast::<f32>().add(column.into()))
    }

    #[inline(always)]
    fn store(to: Global<u8>, column: u32, values: [f32; 4]) {
        gpu::st_global_v4(to.cast::<f32>().add(column.into()), values);
    }
}

/// A 16-bit type.
impl<T: Float16> Element for T {
    #[inline(always)]
    fn load(from: Global<u8>, column: u32) -> [f32; 4] {
        let pairs: [u32; 2] = gpu::ld_global_v2(from.cast::<u16>().add(column.into()).cast());
        let [a, b] = pairs.map(|pair| [pair as u16, (pair >> 16) as u16].map(T::to_f32));
        [a[0], a[1], b[0], b[1]]
    }

    #[inline(always)]
    fn store(to: Global<u8>, column: u32, [a, b, c, d]: [f32; 4]) {
        let to = to.cast::<u16>().add(column.into()).cast::<u32>();
        gpu::st_global_v2(to, [T::pack(a, b), T::pack(c, d)]);
    }
}

#[inline(always)]
fn row_of(tensor: &TensorArg, bytes: u32, batch: u32, head: u32, row: u32) -> Global<u8> {
    let elements = u64::from(batch) * tensor.stride_batch
        + u64::from(head) * tensor.stride_head
        + u64::from(row) * tensor.stride_token;
    tensor.address.byte_add(elements * u64::from(bytes))
}

#[inline(always)]
fn lse_of(tensor: &LseTensor, batch: u32, head: u32, row: u32) -> Global<f32> {
    let at = u64::from(batch) * tensor.stride_batch + u64::from(head) * tensor.stride_head;
    tensor.address.add(at + u64::from(row))
}

#[inline(always)]
fn merge<E: Element, const BYTES: u32>(p: &MergeParams) {
    let threads_of_row = p.head_dim / 4;
    let rows_at_once = THREADS / threads_of_row;
    let (in_block, column) = (
        gpu::tid_x() / threads_of_row,
        gpu::tid_x() % threads_of_row * 4,
    );
    let row = gpu::ctaid_x() * rows_at_once + in_block;
    let (head, batch) = (gpu::ctaid_y(), gpu::ctaid_z());
    let exists = in_block < rows_at_once && row < p.rows;
    let mut lse = [f32::NEG_INFINITY; 2];
    if exists {
        for (lse, tensor) in lse.iter_mut().zip(&p.lse) {
            *lse = gpu::ld_global(lse_of(tensor, batch, head, row));
        }
    }
    // Everyone has read the log-sum-exps, where the result may lie.
    gpu::bar_sync(0);
    if !exists {
        return;
    }
    let greatest = gpu::max_f32(lse[0], lse[1]);
    let mut sum = 0.0;
    let mut merged = [0.0; 4];
    for (lse, tensor) in lse.iter().zip(&p.o) {
        if *lse != f32::NEG_INFINITY {
            let weight = gpu::ex2_approx_ftz_f32((lse - greatest) * core::f32::consts::LOG2_E);
            sum += weight;
            let values = E::load(row_of(tensor, BYTES, batch, head, row), column);
            for (x, value) in merged.iter_mut().zip(&values) {
                *x = gpu::fma_rn_f32(weight, *value, *x);
            }
        }
    }
    let mut of_row = f32::NEG_INFINITY;
    // A NaN is a sum too.
    if sum != 0.0 {
        let factor = gpu::rcp_approx_ftz_f32(sum);
        merged = merged.map(|x| x * factor);
        of_row = gpu::lg2_approx_ftz_f32(sum) * core::f32::consts::LN_2 + greatest;
    }
    if column == 0 {
        gpu::st_global(lse_of(&p.merged_lse, batch, head, row), of_row);
    }
    let to = row_of(&p.merged_o, BYTES, batch, head, row);
    E::store(to, column, merged);
}

crate::entry! {
    /// Merges O of `f32`.
    MERGE_F32, merge_f32 = merge::<F32, 4>, MergeParams
}
crate::entry! {
    /// Merges O of `bf16`.
    MERGE_BF16, merge_bf16 = merge::<Bf16, 2>, MergeParams
}
crate::entry! {
    /// Merges O of `f16`.
    MERGE_F16, merge_f16 = merge::<F16, 2>, MergeParams
}
