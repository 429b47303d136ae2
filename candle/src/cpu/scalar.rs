//! The element types that both crates know.

use std::mem::MaybeUninit;

use candle_core::WithDType;
use half::{bf16, f16};
use sample_attention::{Element, TensorView, TensorViewMut};

use crate::view::View;

/// f32, f16 and bf16.
pub(super) trait Scalar: WithDType + Element {
    /// 0.
    const NOUGHT: Self;

    /// A view of memory that holds no values yet; shape and strides as in [`View`].
    fn output(
        data: &mut [MaybeUninit<Self>],
        shape: [usize; 4],
        strides: [usize; 4],
    ) -> sample_attention::Result<TensorViewMut<'_>>;
}

macro_rules! scalar {
    ($($type:ty: $nought:expr),*) => {$(
        impl Scalar for $type {
            const NOUGHT: Self = $nought;

            fn output(
                data: &mut [MaybeUninit<Self>],
                shape: [usize; 4],
                strides: [usize; 4],
            ) -> sample_attention::Result<TensorViewMut<'_>> {
                TensorViewMut::new(data, shape, strides)
            }
        }
    )*};
}
scalar!(f32: 0.0, f16: f16::ZERO, bf16: bf16::ZERO);

/// The elements that a view names, of a whole storage.
pub(super) fn input<'a, T: Scalar>(
    storage: &'a [T],
    view: &View,
) -> sample_attention::Result<TensorView<'a>> {
    TensorView::new(
        storage.get(view.start..).unwrap_or_default(),
        view.shape,
        view.strides,
    )
}
