//! Tensor maps, which the kernels for Hopper read their tiles through, encoded by the driver.

use std::ffi::c_void;

use candle_core::cuda_backend::cudarc::driver::{DriverError, sys};
use sample_attention::pipeline::{TensorMap, TensorMapLayout};

/// Encodes a layout. The address is not read.
pub(super) fn encode(layout: &TensorMapLayout) -> Result<TensorMap, DriverError> {
    let swizzle = match layout.swizzle as u32 {
        0 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_NONE,
        1 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_32B,
        2 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_64B,
        _ => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
    };
    let address: *mut c_void = std::ptr::with_exposed_provenance_mut(layout.base as usize);
    let mut map = sys::CUtensorMap { opaque: [0; 16] };
    // SAFETY: the map is writable; the arrays have 5 elements (4 strides), as many as the largest rank asks for.
    let code = unsafe {
        sys::cuTensorMapEncodeTiled(
            &raw mut map,
            // Bits are copied, of either 16-bit type.
            sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_UINT16,
            layout.rank,
            address,
            layout.dims.as_ptr(),
            layout.strides_bytes.as_ptr(),
            layout.box_dims.as_ptr(),
            [1; 5].as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            swizzle,
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            // Zeros.
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    };
    code.result()?;
    Ok(TensorMap::from_words(map.opaque))
}
