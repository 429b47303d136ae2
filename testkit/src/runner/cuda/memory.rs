//! Device memory between red zones, and tensors in it.

use sample_attention::cuda::{Buffer, Device};
use sample_attention::pipeline::{DeviceMemory, DeviceTensor};
use sample_attention::{Dtype, Result, TensorView, TensorViewMut};

/// Bytes before and after what a run is given: more than a vector access, and a multiple of what allocations are aligned to.
const RED_ZONE_BYTES: usize = 1024;

/// Bytes of the red zones round what is read: NaN in every float format, so that it shows in a result.
const READ: u8 = 0xff;

/// Bytes of the red zones round what is written: not what kernels fill memory with.
pub(super) const WRITTEN: u8 = 0xa5;

/// Bytes of a device between red zones.
pub(super) struct Zoned<'a> {
    name: &'static str,
    red: u8,
    buffer: Buffer<'a>,
    bytes: usize,
}

impl<'a> Zoned<'a> {
    pub(super) fn upload(
        device: &'a Device,
        name: &'static str,
        red: u8,
        data: &[u8],
    ) -> Result<Self> {
        let mut buffer = device.alloc((data.len() + 2 * RED_ZONE_BYTES) as u64)?;
        buffer.fill(red)?;
        buffer.write(RED_ZONE_BYTES as u64, data)?;
        Ok(Zoned {
            name,
            red,
            buffer,
            bytes: data.len(),
        })
    }

    pub(super) fn memory(&self) -> DeviceMemory {
        self.buffer.part(RED_ZONE_BYTES as u64, self.bytes as u64)
    }

    /// What lies between the red zones, which must be whole.
    pub(super) fn download(&self) -> Result<Vec<u8>> {
        let mut all = vec![0; self.bytes + 2 * RED_ZONE_BYTES];
        self.buffer.read(0, &mut all)?;
        let end = RED_ZONE_BYTES + self.bytes;
        let around = (0..RED_ZONE_BYTES).chain(end..all.len());
        if let Some(at) = around.into_iter().find(|&at| all[at] != self.red) {
            let offset = at as i64 - RED_ZONE_BYTES as i64;
            panic!(
                "byte {offset} of {}, which has {}, was written",
                self.name, self.bytes
            );
        }
        all.truncate(end);
        all.drain(..RED_ZONE_BYTES);
        Ok(all)
    }
}

/// A tensor of a device between red zones: as the host's lies, gaps included, where the kernels can take it so; else its rows
/// one after the other.
pub(super) struct ZonedTensor<'a> {
    memory: Zoned<'a>,
    uploaded: Vec<u8>,
    dtype: Dtype,
    shape: [usize; 4],
    strides: [usize; 4],
}

impl<'a> ZonedTensor<'a> {
    pub(super) fn upload(
        device: &'a Device,
        name: &'static str,
        view: &TensorView<'_>,
    ) -> Result<Self> {
        let place = (view.dtype(), view.shape(), view.strides());
        Self::of_bytes(device, name, READ, place, view.as_bytes())
    }

    /// With what the host's memory holds, so that what a run leaves unwritten stays so.
    pub(super) fn upload_output(
        device: &'a Device,
        name: &'static str,
        view: &mut TensorViewMut<'_>,
    ) -> Result<Self> {
        let place = (view.dtype(), view.shape(), view.strides());
        Self::of_bytes(device, name, WRITTEN, place, view.as_bytes_mut())
    }

    fn of_bytes(
        device: &'a Device,
        name: &'static str,
        red: u8,
        (dtype, shape, strides): (Dtype, [usize; 4], [usize; 4]),
        bytes: &[u8],
    ) -> Result<Self> {
        let (uploaded, strides) = if rows_are_aligned(dtype, shape, strides) {
            (bytes.to_vec(), strides)
        } else {
            let rows = rows(dtype, shape, strides).flat_map(|row| &bytes[row]);
            (rows.copied().collect(), packed(shape))
        };
        Ok(ZonedTensor {
            memory: Zoned::upload(device, name, red, &uploaded)?,
            uploaded,
            dtype,
            shape,
            strides,
        })
    }

    pub(super) fn tensor(&self) -> Result<DeviceTensor> {
        DeviceTensor::new(self.memory.memory(), self.dtype, self.shape, self.strides)
    }

    pub(super) fn assert_unchanged(&self) -> Result<()> {
        let now = self.memory.download()?;
        assert!(now == self.uploaded, "{} was written", self.memory.name);
        Ok(())
    }

    /// Copies what the run left, gaps included where the device has them.
    pub(super) fn download(&self, to: &mut TensorViewMut<'_>) -> Result<()> {
        let from = self.memory.download()?;
        let (shape, strides) = (to.shape(), to.strides());
        let to = to.as_bytes_mut();
        if strides == self.strides {
            to.copy_from_slice(&from);
            return Ok(());
        }
        let rows_of = |strides| rows(self.dtype, shape, strides);
        for (from_row, to_row) in rows_of(self.strides).zip(rows_of(strides)) {
            to[to_row].copy_from_slice(&from[from_row]);
        }
        Ok(())
    }
}

/// Whether the kernels take rows where they lie, if the first is aligned.
fn rows_are_aligned(dtype: Dtype, shape: [usize; 4], strides: [usize; 4]) -> bool {
    (0..3).all(|d| shape[d] == 1 || (strides[d] * dtype.bytes()).is_multiple_of(16))
}

fn packed([_, heads, tokens, dim]: [usize; 4]) -> [usize; 4] {
    [heads * tokens * dim, tokens * dim, dim, 1]
}

/// The bytes of every row, in logical order.
fn rows(
    dtype: Dtype,
    [batch, heads, tokens, dim]: [usize; 4],
    strides: [usize; 4],
) -> impl Iterator<Item = std::ops::Range<usize>> {
    (0..batch * heads * tokens).map(move |row| {
        let place = [row / tokens / heads, row / tokens % heads, row % tokens];
        let first: usize = place
            .iter()
            .zip(strides)
            .map(|(x, stride)| x * stride)
            .sum();
        first * dtype.bytes()..(first + dim) * dtype.bytes()
    })
}
