//! Copies between host and device, in the order of a stream.
//!
//! No copy here waits for more than its stream: waiting for the whole context would break a capture on another thread.

use std::ffi::c_void;

use super::driver::{self, check};
use super::stream::StreamRef;
use crate::error::CudaError;
use crate::pipeline::DeviceMemory;

/// A stream of the current context, which never waits for the legacy default stream.
pub(super) fn new_stream() -> Result<*mut c_void, CudaError> {
    let mut stream = std::ptr::null_mut();
    // SAFETY: the pointer is to live memory.
    check("cuStreamCreate", unsafe {
        driver::cuStreamCreate(&raw mut stream, driver::STREAM_NON_BLOCKING)
    })?;
    Ok(stream)
}

/// Sets every byte, and waits until that is done.
///
/// # Safety
/// They are memory of the current context, and the stream is of it.
pub(super) unsafe fn fill(
    stream: StreamRef<'_>,
    memory: DeviceMemory,
    value: u8,
) -> Result<(), CudaError> {
    let DeviceMemory { address, bytes } = memory;
    // SAFETY: the caller's contract.
    check("cuMemsetD8Async", unsafe {
        driver::cuMemsetD8Async(address, value, bytes as usize, stream.as_raw())
    })?;
    wait(stream)
}

/// Copies `to.len()` bytes from `address` on, and waits for them.
///
/// # Safety
/// They are memory of the current context, and the stream is of it.
pub(super) unsafe fn read(
    stream: StreamRef<'_>,
    address: u64,
    to: &mut [u8],
) -> Result<(), CudaError> {
    let (to, bytes) = (to.as_mut_ptr().cast(), to.len());
    // SAFETY: the caller's contract; the host's memory outlives the copy, which is waited for.
    check("cuMemcpyDtoHAsync", unsafe {
        driver::cuMemcpyDtoHAsync_v2(to, address, bytes, stream.as_raw())
    })?;
    wait(stream)
}

/// Copies `from` to `address`, and waits until it is there.
///
/// # Safety
/// As [`read`].
pub(super) unsafe fn write(
    stream: StreamRef<'_>,
    address: u64,
    from: &[u8],
) -> Result<(), CudaError> {
    let (from, bytes) = (from.as_ptr().cast(), from.len());
    // SAFETY: the caller's contract; the host's memory outlives the copy, which is waited for.
    check("cuMemcpyHtoDAsync", unsafe {
        driver::cuMemcpyHtoDAsync_v2(address, from, bytes, stream.as_raw())
    })?;
    wait(stream)
}

/// Waits for everything in the stream.
pub(super) fn wait(stream: StreamRef<'_>) -> Result<(), CudaError> {
    // SAFETY: the stream is alive.
    check("cuStreamSynchronize", unsafe {
        driver::cuStreamSynchronize(stream.as_raw())
    })
}
