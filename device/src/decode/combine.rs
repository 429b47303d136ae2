//! The second launch: merges the splits of every row, in order.

use super::kernel::{Merged, RowPlace};
use super::params::{DecodeParams, THREADS};
use crate::gpu;
use crate::tile::{Bf16, F16, Float16};

/// A warp has a row; each lane has four columns, of head_dim 64 only half of the lanes have any.
#[inline(always)]
fn combine<T: Float16>(p: &DecodeParams) {
    let attention = &p.attention;
    let index = gpu::ctaid_x() * (THREADS / 32) + gpu::tid_x() / 32;
    let column = gpu::laneid() * 4;
    if column >= attention.head_dim {
        return;
    }
    let Some(place) = RowPlace::of(attention, index) else {
        return;
    };
    let splits = p.splits.count;
    let first = place.index * u64::from(splits);
    let sums = p.partial_sums.add(2 * first);
    let values = p
        .partial_o
        .add(first * u64::from(attention.head_dim) + u64::from(column));
    let mut merged = Merged::EMPTY;
    let mut split = 0;
    while split < splits {
        let [reference, _] = gpu::ld_global_v2(sums.add((2 * split).into()));
        merged.reference = gpu::max_f32(merged.reference, reference);
        split += 1;
    }
    split = 0;
    while split < splits {
        let [reference, sum] = gpu::ld_global_v2(sums.add((2 * split).into()));
        // Empty splits have written no values. A NaN is a sum too.
        let of_split = if sum != 0.0 {
            let first = u64::from(split) * u64::from(attention.head_dim);
            gpu::ld_global_v4(values.add(first))
        } else {
            [0.0; 4]
        };
        merged.add::<T>(attention, (reference, sum), of_split);
        split += 1;
    }
    merged.write::<T>(attention, place, column);
}

crate::entry! {
    /// Merges splits into O of `bf16` or `f32`.
    COMBINE_BF16, decode_combine_bf16 = combine::<Bf16>, DecodeParams
}
crate::entry! {
    /// Merges splits into O of `f16` or `f32`.
    COMBINE_F16, decode_combine_f16 = combine::<F16>, DecodeParams
}
