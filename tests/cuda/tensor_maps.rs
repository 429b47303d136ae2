//! Tensor maps as the driver encodes them. That the hardware reads through them what it should, every test of Hopper's kernels
//! shows.

use sample_attention::cuda::Device;
use sample_attention::pipeline::{Target, TensorMapLayout};
use sample_attention::{CudaError, Error};
use sample_attention_device::gpu::Swizzle;

use crate::support::{device, skip};

/// The keys of 8 heads of 1000 tokens, in tiles of 64 elements by 128 tokens.
const LAYOUT: TensorMapLayout = TensorMapLayout {
    base: 1 << 32,
    element_bytes: 2,
    rank: 3,
    dims: [128, 1000, 8, 0, 0],
    strides_bytes: [256, 256_000, 0, 0],
    box_dims: [64, 128, 1, 0, 0],
    swizzle: Swizzle::Bytes128,
};

fn hopper() -> Option<&'static Device> {
    let device = device()?;
    if device.target() != Target::Sm90a {
        skip(format_args!("{} has no tensor maps", device.name()));
        return None;
    }
    Some(device)
}

#[test]
fn whatever_a_copy_depends_on_is_in_the_map() {
    let Some(device) = hopper() else { return };
    let encode = |layout: TensorMapLayout| *device.tensor_map(&layout).unwrap().words();
    let map = encode(LAYOUT);
    assert_eq!(map, encode(LAYOUT), "the same layout, the same map");
    for other in [
        TensorMapLayout {
            base: LAYOUT.base + 16,
            ..LAYOUT
        },
        TensorMapLayout {
            dims: [128, 1001, 8, 0, 0],
            ..LAYOUT
        },
        TensorMapLayout {
            strides_bytes: [272, 256_000, 0, 0],
            ..LAYOUT
        },
        TensorMapLayout {
            box_dims: [64, 64, 1, 0, 0],
            ..LAYOUT
        },
        TensorMapLayout {
            swizzle: Swizzle::None,
            ..LAYOUT
        },
        // Beyond 2^31 elements.
        TensorMapLayout {
            strides_bytes: [256, 1 << 33, 0, 0],
            ..LAYOUT
        },
    ] {
        assert_ne!(map, encode(other), "{other:?}");
    }
    let beyond_the_rank = TensorMapLayout {
        dims: [128, 1000, 8, 7, 7],
        ..LAYOUT
    };
    assert_eq!(map, encode(beyond_the_rank));
}

#[test]
fn a_map_that_the_hardware_cannot_have_is_refused_in_words() {
    let Some(device) = hopper() else { return };
    for (layout, words) in [
        (TensorMapLayout { base: 8, ..LAYOUT }, "16 bytes"),
        (
            TensorMapLayout {
                strides_bytes: [8, 256_000, 0, 0],
                ..LAYOUT
            },
            "stride",
        ),
        (TensorMapLayout { rank: 6, ..LAYOUT }, "dimensions"),
        (
            TensorMapLayout {
                box_dims: [128, 128, 1, 0, 0],
                ..LAYOUT
            },
            "swizzled box",
        ),
    ] {
        let error = device.tensor_map(&layout).map(drop).unwrap_err();
        let is_map = matches!(&error, Error::Cuda(CudaError::TensorMap { .. }));
        assert!(is_map && error.to_string().contains(words), "{error}");
    }
}
