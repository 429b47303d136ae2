//! The driver's functions that cust lacks, or whose results it does not tell apart.
//!
//! They are declared here once more, with an integer for a result: the enumeration in cust's bindings is that of CUDA 11.5, and a
//! later driver may return codes that it does not have. The library to link is cust's.

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::marker::PhantomData;

use crate::error::{CudaError, DriverCode};

macro_rules! opaque {
    ($($(#[$meta:meta])* $name:ident,)*) => {
        $(
            $(#[$meta])*
            #[repr(transparent)]
            #[derive(Clone, Copy, PartialEq, Eq)]
            pub(super) struct $name(pub(super) *mut c_void);

            // SAFETY: the driver's handles may be used from any thread.
            unsafe impl Send for $name {}
            // SAFETY: as above.
            unsafe impl Sync for $name {}
        )*
    };
}

opaque! {
    /// `CUcontext`.
    RawContext,
    /// `CUmodule`.
    RawModule,
    /// `CUfunction`.
    RawFunction,
    /// `CUevent`.
    RawEvent,
}

/// `CU_JIT_ERROR_LOG_BUFFER`.
pub(super) const JIT_ERROR_LOG_BUFFER: c_uint = 5;
/// `CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES`.
pub(super) const JIT_ERROR_LOG_BUFFER_SIZE_BYTES: c_uint = 6;
/// `CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN`.
pub(super) const DEVICE_MAX_SHARED_BYTES_OPT_IN: c_uint = 97;
/// `CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES`.
pub(super) const FUNC_SHARED_SIZE_BYTES: c_uint = 1;
/// `CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES`.
pub(super) const FUNC_MAX_DYNAMIC_SHARED_SIZE_BYTES: c_uint = 8;
/// `CU_POINTER_ATTRIBUTE_MEMORY_TYPE`.
pub(super) const POINTER_MEMORY_TYPE: c_uint = 2;
/// `CU_POINTER_ATTRIBUTE_IS_MANAGED`.
pub(super) const POINTER_IS_MANAGED: c_uint = 8;
/// `CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL`.
pub(super) const POINTER_DEVICE_ORDINAL: c_uint = 9;
/// `CU_MEMORYTYPE_DEVICE`.
pub(super) const MEMORY_TYPE_DEVICE: c_uint = 2;
/// `CU_STREAM_NON_BLOCKING`: never waits for the legacy default stream.
pub(super) const STREAM_NON_BLOCKING: c_uint = 1;

/// `CUresult`.
type Code = u32;
type Address = u64;
/// `CUstream`.
type RawStream = *mut c_void;

unsafe extern "C" {
    pub(super) fn cuInit(flags: c_uint) -> Code;
    pub(super) fn cuDriverGetVersion(version: *mut c_int) -> Code;
    pub(super) fn cuDeviceGetCount(count: *mut c_int) -> Code;
    pub(super) fn cuDeviceGetAttribute(value: *mut c_int, attribute: c_uint, device: c_int)
    -> Code;
    fn cuCtxPushCurrent_v2(context: RawContext) -> Code;
    fn cuCtxPopCurrent_v2(context: *mut RawContext) -> Code;
    pub(super) fn cuModuleLoadDataEx(
        module: *mut RawModule,
        image: *const c_void,
        options: c_uint,
        keys: *mut c_uint,
        values: *mut *mut c_void,
    ) -> Code;
    pub(super) fn cuModuleUnload(module: RawModule) -> Code;
    pub(super) fn cuModuleGetFunction(
        function: *mut RawFunction,
        module: RawModule,
        name: *const c_char,
    ) -> Code;
    pub(super) fn cuFuncGetAttribute(
        value: *mut c_int,
        attribute: c_uint,
        function: RawFunction,
    ) -> Code;
    pub(super) fn cuFuncSetAttribute(
        function: RawFunction,
        attribute: c_uint,
        value: c_int,
    ) -> Code;
    pub(super) fn cuLaunchKernel(
        function: RawFunction,
        grid_x: c_uint,
        grid_y: c_uint,
        grid_z: c_uint,
        block_x: c_uint,
        block_y: c_uint,
        block_z: c_uint,
        shared_bytes: c_uint,
        stream: RawStream,
        params: *mut *mut c_void,
        extra: *mut *mut c_void,
    ) -> Code;
    pub(super) fn cuStreamCreate(stream: *mut RawStream, flags: c_uint) -> Code;
    pub(super) fn cuStreamDestroy_v2(stream: RawStream) -> Code;
    pub(super) fn cuStreamSynchronize(stream: RawStream) -> Code;
    pub(super) fn cuEventCreate(event: *mut RawEvent, flags: c_uint) -> Code;
    pub(super) fn cuEventDestroy_v2(event: RawEvent) -> Code;
    pub(super) fn cuEventRecord(event: RawEvent, stream: RawStream) -> Code;
    pub(super) fn cuEventSynchronize(event: RawEvent) -> Code;
    pub(super) fn cuEventElapsedTime(
        milliseconds: *mut f32,
        start: RawEvent,
        end: RawEvent,
    ) -> Code;
    pub(super) fn cuMemAlloc_v2(address: *mut Address, bytes: usize) -> Code;
    pub(super) fn cuMemFree_v2(address: Address) -> Code;
    pub(super) fn cuMemsetD8Async(
        address: Address,
        value: u8,
        bytes: usize,
        stream: RawStream,
    ) -> Code;
    pub(super) fn cuMemcpyHtoDAsync_v2(
        to: Address,
        from: *const c_void,
        bytes: usize,
        stream: RawStream,
    ) -> Code;
    pub(super) fn cuMemcpyDtoHAsync_v2(
        to: *mut c_void,
        from: Address,
        bytes: usize,
        stream: RawStream,
    ) -> Code;
    pub(super) fn cuPointerGetAttribute(
        value: *mut c_void,
        attribute: c_uint,
        address: Address,
    ) -> Code;
    pub(super) fn cuGetProcAddress(
        name: *const c_char,
        function: *mut *mut c_void,
        cuda_version: c_int,
        flags: u64,
    ) -> Code;
}

/// Nothing, or why the driver's function `call` failed.
pub(super) fn check(call: &'static str, code: Code) -> Result<(), CudaError> {
    match code {
        0 => Ok(()),
        code => Err(CudaError::of(call, DriverCode(code))),
    }
}

/// A context that is this thread's current one for as long as the value lives; then the one before it is again.
pub(super) struct Current<'a> {
    /// The stack of contexts is the thread's.
    here: PhantomData<(&'a (), *const ())>,
}

impl<'a> Current<'a> {
    /// `_alive` is whatever keeps the context alive.
    pub(super) fn new<T>(_alive: &'a T, context: RawContext) -> Result<Self, CudaError> {
        // SAFETY: the context is alive.
        check("cuCtxPushCurrent", unsafe { cuCtxPushCurrent_v2(context) })?;
        Ok(Current { here: PhantomData })
    }
}

impl Drop for Current<'_> {
    fn drop(&mut self) {
        let mut popped = RawContext(std::ptr::null_mut());
        // SAFETY: `new` pushed what this pops. An error leaves the stack as it is, and nothing to do about it.
        unsafe { cuCtxPopCurrent_v2(&raw mut popped) };
    }
}
