//! The caller's tensors in the emulated device's memory, and back.

use std::mem::MaybeUninit;

use half::{bf16, f16};
use sample_attention_device::gpu::emu::{Buffer, Gpu};
use sample_attention_device::params::TensorArg;

use crate::error::{Error, Result};
use crate::problem::Dtype;
use crate::tensor::{Layout, Slice, SliceMut, TensorView, TensorViewMut};

/// Copies an input: as it lies where the kernels can take it so, else row after row.
pub(super) fn upload(
    gpu: &mut Gpu,
    name: &'static str,
    view: &TensorView<'_>,
) -> Result<TensorArg> {
    let bits: &[u16] = match view.data() {
        Slice::F16(data) => bytemuck::cast_slice(data),
        Slice::Bf16(data) => bytemuck::cast_slice(data),
        Slice::F32(_) => return Err(Error::KernelDtype { dtype: Dtype::F32 }),
    };
    let layout = view.layout();
    let place = Place::of(layout);
    let buffer = if place.is_packed_copy {
        let dim = layout.shape[3];
        let rows = rows(layout.shape).map(|[batch, head, token]| {
            let row = layout.row(batch, head, token);
            &bits[row..row + dim]
        });
        gpu.upload(name, &rows.flatten().copied().collect::<Vec<u16>>())
    } else {
        gpu.upload(name, bits)
    };
    Ok(place.tensor(buffer.address().cast()))
}

/// Where a tensor's rows lie on the device.
#[derive(Clone, Copy)]
struct Place {
    /// Elements between sequences, heads and tokens.
    strides: [u64; 3],
    is_packed_copy: bool,
}

impl Place {
    fn of(layout: &Layout) -> Self {
        let [_, heads, tokens, dim] = layout.shape.map(|size| size as u64);
        match strides_in_place(layout) {
            Some(strides) => Place {
                strides,
                is_packed_copy: false,
            },
            None => Place {
                strides: [heads * tokens * dim, tokens * dim, dim],
                is_packed_copy: true,
            },
        }
    }

    fn tensor(&self, address: sample_attention_device::gpu::Global<u8>) -> TensorArg {
        let [stride_batch, stride_head, stride_token] = self.strides;
        TensorArg {
            address,
            stride_batch,
            stride_head,
            stride_token,
        }
    }

    fn row(&self, [batch, head, token]: [usize; 3]) -> usize {
        let [stride_batch, stride_head, stride_token] = self.strides.map(|stride| stride as usize);
        batch * stride_batch + head * stride_head + token * stride_token
    }

    /// Elements from the first to the last.
    fn len(&self, [batch, heads, tokens, dim]: [usize; 4]) -> usize {
        self.row([batch - 1, heads - 1, tokens - 1]) + dim
    }
}

/// Elements between sequences, heads and tokens of a view whose rows the kernels can take where they lie: at multiples of 16
/// bytes, if the first element is at one. `None` where the rows have to be copied first.
fn strides_in_place(layout: &Layout) -> Option<[u64; 3]> {
    let mut strides = [0; 3];
    for (dimension, to) in strides.iter_mut().enumerate() {
        // A stride over a single element is never taken.
        if layout.shape[dimension] > 1 {
            let stride = layout.strides[dimension];
            *to = stride.is_multiple_of(8).then_some(stride as u64)?;
        }
    }
    Some(strides)
}

/// Index of every row of a tensor.
fn rows([batch, heads, tokens, _]: [usize; 4]) -> impl Iterator<Item = [usize; 3]> {
    (0..batch * heads * tokens)
        .map(move |row| [row / tokens / heads, row / tokens % heads, row % tokens])
}

/// Memory for O, strided as the caller's where the kernels can write it so.
pub(super) struct OutputMemory {
    place: Place,
    buffer: OutputBuffer,
}

enum OutputBuffer {
    F32(Buffer<f32>),
    Float16(Buffer<u16>),
}

impl OutputMemory {
    pub(super) fn new(gpu: &mut Gpu, o: &mut TensorViewMut<'_>) -> Self {
        let is_f32 = o.dtype() == Dtype::F32;
        let (_, layout) = o.parts();
        let place = Place::of(layout);
        let len = place.len(layout.shape);
        let buffer = if is_f32 {
            OutputBuffer::F32(gpu.alloc("o", len))
        } else {
            OutputBuffer::Float16(gpu.alloc("o", len))
        };
        OutputMemory { place, buffer }
    }

    pub(super) fn tensor(&self) -> TensorArg {
        self.place.tensor(match self.buffer {
            OutputBuffer::F32(buffer) => buffer.address().cast(),
            OutputBuffer::Float16(buffer) => buffer.address().cast(),
        })
    }

    /// Copies the rows to the caller's.
    pub(super) fn download(&self, gpu: &Gpu, o: &mut TensorViewMut<'_>) {
        let (data, layout) = o.parts();
        match (data, &self.buffer) {
            (SliceMut::F32(to), OutputBuffer::F32(buffer)) => {
                self.copy_rows(&gpu.read(buffer), to, layout);
            }
            (SliceMut::F16(to), OutputBuffer::Float16(buffer)) => {
                let values = gpu.read(buffer).into_iter().map(f16::from_bits);
                self.copy_rows(&values.collect::<Vec<f16>>(), to, layout);
            }
            (SliceMut::Bf16(to), OutputBuffer::Float16(buffer)) => {
                let values = gpu.read(buffer).into_iter().map(bf16::from_bits);
                self.copy_rows(&values.collect::<Vec<bf16>>(), to, layout);
            }
            _ => unreachable!("the memory was made for this output"),
        }
    }

    fn copy_rows<T: Copy>(&self, from: &[T], to: &mut [MaybeUninit<T>], layout: &Layout) {
        let dim = layout.shape[3];
        for row in rows(layout.shape) {
            let [batch, head, token] = row;
            let to_row = layout.row(batch, head, token);
            let from_row = self.place.row(row);
            let from = &from[from_row..from_row + dim];
            for (to, &from) in to[to_row..to_row + dim].iter_mut().zip(from) {
                to.write(from);
            }
        }
    }
}
