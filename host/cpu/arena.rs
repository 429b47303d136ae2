//! Carving typed buffers out of the caller's bytes.

use bytemuck::AnyBitPattern;
use bytemuck::NoUninit;

/// Every buffer starts at a multiple of this: a cache line, and the alignment of the widest vectors.
pub(super) const ALIGNMENT: usize = 64;

/// Bytes that are handed out front to back.
pub(super) struct Arena<'a>(&'a mut [u8]);

impl<'a> Arena<'a> {
    pub(super) fn new(bytes: &'a mut [u8]) -> Self {
        Arena(bytes)
    }

    /// The next `len` elements, with whatever the bytes hold; `None` where they do not suffice.
    pub(super) fn take<T: AnyBitPattern + NoUninit>(&mut self, len: usize) -> Option<&'a mut [T]> {
        const { assert!(align_of::<T>() <= ALIGNMENT) };
        let padding = self.0.as_ptr().align_offset(ALIGNMENT);
        self.0.split_off_mut(..padding)?;
        let bytes = self.0.split_off_mut(..len.checked_mul(size_of::<T>())?)?;
        Some(bytemuck::cast_slice_mut(bytes))
    }
}

/// Counts the bytes that the same calls on an [`Arena`] need, wherever its bytes start.
#[derive(Default)]
pub(super) struct Footprint(usize);

impl Footprint {
    pub(super) fn take<T>(&mut self, len: usize) {
        self.0 = self.0.next_multiple_of(ALIGNMENT) + len * size_of::<T>();
    }

    pub(super) fn bytes(&self) -> usize {
        self.0 + ALIGNMENT - 1
    }
}
