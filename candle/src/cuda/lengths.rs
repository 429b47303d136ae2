//! Lengths and page numbers in device memory, which nobody reads on the host.

use candle_core::cuda_backend::cudarc::driver::{
    CudaSlice, CudaStream, DevicePtr, DeviceRepr, SyncOnDrop,
};
use candle_core::{CudaDevice, DType, Layout, Result, Storage, StorageRef, Tensor, bail};
use sample_attention::pipeline::DeviceMemory;

/// A tensor of u32 or i32.
pub(super) struct Integers<'a> {
    name: &'static str,
    storage: StorageRef<'a>,
    layout: &'a Layout,
}

impl<'a> Integers<'a> {
    pub(super) fn new(name: &'static str, tensor: &'a Tensor) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        let row = layout.stride().last().copied();
        if row.is_some_and(|stride| stride != 1) && layout.dims().last() != Some(&1) {
            bail!("the last dimension of {name} must be contiguous: call contiguous() on it")
        }
        Ok(Integers {
            name,
            storage,
            layout,
        })
    }

    /// Where they lie; the guard says that the stream uses them, when it goes.
    pub(super) fn memory<'b>(
        &'b self,
        device: &CudaDevice,
        stream: &'b CudaStream,
    ) -> Result<(DeviceMemory, SyncOnDrop<'b>)> {
        let Storage::Cuda(storage) = &*self.storage else {
            bail!(
                "{} must be on the device of q, which is a CUDA device",
                self.name
            )
        };
        if storage.device.id() != device.id() {
            bail!("{} must be on the device of q", self.name)
        }
        let start = self.layout.start_offset();
        match candle_core::backend::BackendStorage::dtype(storage) {
            DType::U32 => Ok(from(storage.as_cuda_slice::<u32>()?, start, stream)),
            DType::I32 => Ok(from(storage.as_cuda_slice::<i32>()?, start, stream)),
            other => bail!("{} must be u32 or i32, and is {other:?}", self.name),
        }
    }

    /// Entries from one row to the next, of two dimensions.
    pub(super) fn row_stride(&self) -> Result<u32> {
        match (self.layout.dims(), self.layout.stride()) {
            (&[_, _], &[row, _]) => u32::try_from(row).map_err(candle_core::Error::wrap),
            (dims, _) => bail!(
                "{} has shape {dims:?}: it must be [sequences, most pages of one]",
                self.name
            ),
        }
    }
}

fn from<'a, T: DeviceRepr>(
    slice: &'a CudaSlice<T>,
    start: usize,
    stream: &'a CudaStream,
) -> (DeviceMemory, SyncOnDrop<'a>) {
    let (address, guard) = slice.device_ptr(stream);
    let offset = start * size_of::<T>();
    let memory = DeviceMemory {
        address: address + offset as u64,
        bytes: (slice.num_bytes() - offset) as u64,
    };
    (memory, guard)
}
