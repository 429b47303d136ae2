//! Memory of a device, and streams, for whoever has neither from another library: set-up, examples and tests.

use std::ffi::c_void;

use super::Device;
use super::driver::{self, check};
use super::{StreamRef, copies};
use crate::error::Result;
use crate::pipeline::DeviceMemory;

/// Bytes of a device, freed when dropped.
#[derive(Debug)]
pub struct Buffer<'a> {
    device: &'a Device,
    memory: DeviceMemory,
}

impl Device {
    /// Allocates bytes, at a multiple of 256; what they hold is anything.
    ///
    /// # Errors
    /// [`OutOfMemory`](crate::CudaError::OutOfMemory), and whatever else the driver says.
    pub fn alloc(&self, bytes: u64) -> Result<Buffer<'_>> {
        let _current = self.current()?;
        let mut address = 0;
        // SAFETY: the pointer is to live memory. The driver refuses to allocate nothing.
        check("cuMemAlloc", unsafe {
            driver::cuMemAlloc_v2(&raw mut address, bytes.max(1) as usize)
        })?;
        Ok(Buffer {
            device: self,
            memory: DeviceMemory { address, bytes },
        })
    }

    /// Makes a stream, which never waits for the legacy default stream.
    ///
    /// # Errors
    /// Whatever the driver says.
    pub fn stream(&self) -> Result<Stream<'_>> {
        let _current = self.current()?;
        Ok(Stream {
            device: self,
            raw: copies::new_stream()?,
        })
    }
}

impl Buffer<'_> {
    /// Address and length.
    pub fn memory(&self) -> DeviceMemory {
        self.memory
    }

    /// Part of it.
    ///
    /// # Panics
    /// If that reaches beyond the end.
    pub fn part(&self, offset_bytes: u64, bytes: u64) -> DeviceMemory {
        let end = offset_bytes.checked_add(bytes);
        assert!(
            end.is_some_and(|end| end <= self.memory.bytes),
            "{bytes} bytes from {offset_bytes} on are not in a buffer of {}",
            self.memory.bytes
        );
        DeviceMemory {
            address: self.memory.address + offset_bytes,
            bytes,
        }
    }

    /// Sets every byte, and waits until that is done. Whoever launched something on the buffer has waited for it.
    ///
    /// # Errors
    /// Whatever went wrong on the device.
    pub fn fill(&mut self, value: u8) -> Result<()> {
        let _current = self.device.current()?;
        // SAFETY: the memory is this buffer's, and nothing runs that uses it, as the contract of every launch says.
        Ok(unsafe { copies::fill(self.device.copies(), self.memory, value) }?)
    }

    /// Writes bytes from an offset on, and waits until they are there. Whoever launched something on the buffer has waited
    /// for it.
    ///
    /// # Errors
    /// Whatever went wrong on the device.
    ///
    /// # Panics
    /// If they reach beyond the end.
    pub fn write(&mut self, offset_bytes: u64, from: &[u8]) -> Result<()> {
        let to = self.part(offset_bytes, from.len() as u64);
        let _current = self.device.current()?;
        // SAFETY: the memory is this buffer's, and nothing runs that uses it, as the contract of every launch says.
        Ok(unsafe { copies::write(self.device.copies(), to.address, from) }?)
    }

    /// Reads bytes from an offset on, and waits for them. Whoever launched something that writes them has waited for it.
    ///
    /// # Errors
    /// Whatever went wrong on the device.
    ///
    /// # Panics
    /// If they reach beyond the end.
    pub fn read(&self, offset_bytes: u64, to: &mut [u8]) -> Result<()> {
        let from = self.part(offset_bytes, to.len() as u64);
        let _current = self.device.current()?;
        // SAFETY: the memory is this buffer's, and nothing runs that writes it, as the contract of every launch says.
        Ok(unsafe { copies::read(self.device.copies(), from.address, to) }?)
    }
}

impl Drop for Buffer<'_> {
    fn drop(&mut self) {
        if let Ok(_current) = self.device.current() {
            // SAFETY: the memory is this buffer's; whoever launched on it promised to wait. The driver waits as well.
            unsafe { driver::cuMemFree_v2(self.memory.address) };
        }
    }
}

impl From<&Buffer<'_>> for DeviceMemory {
    fn from(buffer: &Buffer<'_>) -> Self {
        buffer.memory
    }
}

/// A stream of a device, destroyed when dropped.
#[derive(Debug)]
pub struct Stream<'a> {
    device: &'a Device,
    raw: *mut c_void,
}

// SAFETY: the driver's streams may be used from any thread.
unsafe impl Send for Stream<'_> {}
// SAFETY: as above.
unsafe impl Sync for Stream<'_> {}

impl Stream<'_> {
    /// Waits for everything in it.
    ///
    /// # Errors
    /// Whatever went wrong on the device.
    pub fn synchronize(&self) -> Result<()> {
        let _current = self.device.current()?;
        Ok(copies::wait(StreamRef::from(self))?)
    }

    /// The driver's pointer (`CUstream`), valid as long as the stream.
    pub fn as_raw(&self) -> *mut c_void {
        self.raw
    }
}

impl Drop for Stream<'_> {
    fn drop(&mut self) {
        if let Ok(_current) = self.device.current() {
            // SAFETY: the stream is this value's. The driver keeps it until what it holds has run.
            unsafe { driver::cuStreamDestroy_v2(self.raw) };
        }
    }
}

impl<T: cust::memory::DeviceCopy> From<&cust::memory::DeviceSlice<T>> for DeviceMemory {
    fn from(slice: &cust::memory::DeviceSlice<T>) -> Self {
        DeviceMemory {
            address: slice.as_device_ptr().as_raw(),
            bytes: (slice.len() * size_of::<T>()) as u64,
        }
    }
}

impl<T: cust::memory::DeviceCopy> From<&cust::memory::DeviceBuffer<T>> for DeviceMemory {
    fn from(buffer: &cust::memory::DeviceBuffer<T>) -> Self {
        buffer.as_slice().into()
    }
}
