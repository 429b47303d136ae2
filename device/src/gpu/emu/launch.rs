//! Emulated devices, their buffers, and what a launch is.

use std::marker::PhantomData;

use super::state::Mode;
use super::state::memory::GlobalMemory;
use crate::gpu::{Global, Word};

/// The shape of a launch.
#[derive(Debug, Clone, Copy)]
pub struct Launch {
    pub(super) grid: [u32; 3],
    pub(super) block: [u32; 3],
    pub(super) shared_bytes: u32,
    pub(super) mode: Mode,
}

impl Launch {
    /// `grid` CTAs of `block` threads, without shared memory, in fast mode.
    pub const fn new(grid: [u32; 3], block: [u32; 3]) -> Self {
        Self {
            grid,
            block,
            shared_bytes: 0,
            mode: Mode::Fast,
        }
    }

    /// With `bytes` of dynamic shared memory.
    pub const fn shared_bytes(self, bytes: u32) -> Self {
        Self {
            shared_bytes: bytes,
            ..self
        }
    }

    /// In another mode.
    pub const fn mode(self, mode: Mode) -> Self {
        Self { mode, ..self }
    }
}

/// A buffer in the global memory of a [`Gpu`].
#[derive(Debug)]
pub struct Buffer<T> {
    base: u64,
    len: usize,
    element: PhantomData<T>,
}

impl<T> Clone for Buffer<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Buffer<T> {}

impl<T> Buffer<T> {
    /// The address of the first element, for a kernel's parameters.
    pub fn address(&self) -> Global<T> {
        Global::from_address(self.base)
    }

    /// How many elements it holds.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds no element.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// `len` elements of another type, from `offset_bytes` bytes on: how a host reads and writes its own regions of one
    /// allocation. Kernels are held to the whole allocation.
    ///
    /// # Panics
    /// If they do not lie inside the buffer, or are not aligned there.
    pub fn part<U>(&self, offset_bytes: u64, len: usize) -> Buffer<U> {
        let end = offset_bytes + (len * size_of::<U>()) as u64;
        assert!(
            end <= (self.len * size_of::<T>()) as u64,
            "the part ends at byte {end}, after the buffer"
        );
        assert!(
            (self.base + offset_bytes).is_multiple_of(align_of::<U>() as u64),
            "the part is not aligned"
        );
        Buffer {
            base: self.base + offset_bytes,
            len,
            element: PhantomData,
        }
    }
}

/// An emulated device: its global memory, and launches on it.
#[derive(Default)]
pub struct Gpu {
    pub(super) memory: GlobalMemory,
}

impl Gpu {
    /// A device with empty memory.
    pub fn new() -> Self {
        Self::default()
    }

    /// A buffer of `len` elements that nothing has written: every bit is one, so that floats read
    /// as NaN. `name` is what diagnoses call it.
    pub fn alloc<T: Word>(&mut self, name: &str, len: usize) -> Buffer<T> {
        Buffer {
            base: self.memory.allocate(name, len * size_of::<T>()),
            len,
            element: PhantomData,
        }
    }

    /// A buffer that holds a copy of `data`.
    pub fn upload<T: Word>(&mut self, name: &str, data: &[T]) -> Buffer<T> {
        let buffer = self.alloc(name, data.len());
        self.write(&buffer, data);
        buffer
    }

    /// Overwrites the whole buffer.
    ///
    /// # Panics
    /// If `data` is not as long as the buffer, or the buffer is of another device.
    pub fn write<T: Word>(&mut self, buffer: &Buffer<T>, data: &[T]) {
        assert_eq!(data.len(), buffer.len, "a write covers the whole buffer");
        self.memory.write(buffer.base, data);
    }

    /// A copy of the buffer.
    ///
    /// # Panics
    /// If the buffer is of another device.
    pub fn read<T: Word>(&self, buffer: &Buffer<T>) -> Vec<T> {
        self.memory.read(buffer.base, buffer.len)
    }
}
