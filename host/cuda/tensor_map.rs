//! Tensor maps, encoded by the driver.
//!
//! `cuTensorMapEncodeTiled` came with CUDA 12.0, after cust's bindings, so it is looked up by its name.

use std::ffi::{c_int, c_uint, c_void};
use std::sync::OnceLock;

use sample_attention_device::gpu::{TensorMap, TensorMapLayout};

use super::driver;
use super::module::driver_version;
use crate::error::{CudaError, DriverCode};

/// `cuTensorMapEncodeTiled`.
type EncodeTiled = unsafe extern "C" fn(
    map: *mut Encoded,
    data_type: c_uint,
    rank: c_uint,
    address: *mut c_void,
    dims: *const u64,
    strides_bytes: *const u64,
    box_dims: *const c_uint,
    element_strides: *const c_uint,
    interleave: c_uint,
    swizzle: c_uint,
    l2_promotion: c_uint,
    out_of_bounds: c_uint,
) -> u32;

/// `CUtensorMap`, which the driver wants at a multiple of 64 bytes.
#[repr(C, align(64))]
struct Encoded([u64; 16]);

/// CUDA version of the function's signature.
const CUDA_12_0: c_int = 12_000;
/// `CU_TENSOR_MAP_INTERLEAVE_NONE`.
const NOT_INTERLEAVED: c_uint = 0;
/// `CU_TENSOR_MAP_L2_PROMOTION_L2_256B`.
const L2_256_BYTES: c_uint = 3;
/// `CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE`: zeros.
const ZEROS: c_uint = 0;

/// The driver's encoder, looked up at its first use.
#[derive(Default)]
pub(super) struct Encoder {
    function: OnceLock<Result<EncodeTiled, CudaError>>,
}

impl Encoder {
    /// Encodes a layout.
    pub(super) fn encode(&self, layout: &TensorMapLayout) -> Result<TensorMap, CudaError> {
        layout.check().map_err(refused)?;
        let function = self.function.get_or_init(look_up).clone()?;
        // `CU_TENSOR_MAP_DATA_TYPE_UINT8`, 16, 32 and 64: what is copied is bits, of whatever type.
        let data_type = match layout.element_bytes {
            1 => 0,
            2 => 1,
            4 => 2,
            _ => 4,
        };
        let element_strides = [1; 5];
        let mut map = Encoded([0; 16]);
        // SAFETY: the map is writable; the arrays have as many elements as the rank asks for, at most 5
        // (4 strides). The address is not read.
        let code = unsafe {
            function(
                &raw mut map,
                data_type,
                layout.rank,
                std::ptr::with_exposed_provenance_mut(layout.base as usize),
                layout.dims.as_ptr(),
                layout.strides_bytes.as_ptr(),
                layout.box_dims.as_ptr(),
                element_strides.as_ptr(),
                NOT_INTERLEAVED,
                layout.swizzle as c_uint,
                L2_256_BYTES,
                ZEROS,
            )
        };
        match DriverCode(code) {
            DriverCode(0) => Ok(TensorMap::from_words(map.0)),
            DriverCode::INVALID_VALUE => {
                Err(refused(&format!("the driver does not take {layout:?}")))
            }
            code => Err(CudaError::of("cuTensorMapEncodeTiled", code)),
        }
    }
}

fn refused(reason: &str) -> CudaError {
    CudaError::TensorMap {
        reason: reason.to_owned(),
    }
}

fn look_up() -> Result<EncodeTiled, CudaError> {
    let mut function = std::ptr::null_mut();
    // SAFETY: the name ends in a NUL, and the pointer is to live memory.
    let code = unsafe {
        driver::cuGetProcAddress(
            c"cuTensorMapEncodeTiled".as_ptr(),
            &raw mut function,
            CUDA_12_0,
            0,
        )
    };
    if code != 0 || function.is_null() {
        let [major, minor] = driver_version()?;
        return Err(refused(&format!(
            "the driver is of CUDA {major}.{minor}, and tensor maps came with 12.0 (release 525): install a newer one"
        )));
    }
    // SAFETY: the driver's function of that name and version has this signature.
    Ok(unsafe { std::mem::transmute::<*mut c_void, EncodeTiled>(function) })
}
