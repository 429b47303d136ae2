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
pub(super) struct Footprint {
    /// `None` once they are more than the address space has.
    end: Option<usize>,
}

impl Footprint {
    pub(super) fn new() -> Self {
        Footprint { end: Some(0) }
    }

    /// Room for `count` times `len` elements in one piece.
    pub(super) fn take<T>(&mut self, len: usize, count: usize) {
        let bytes = len
            .checked_mul(count)
            .and_then(|len| len.checked_mul(size_of::<T>()));
        self.append(bytes);
    }

    /// Room for what `one` counted, `count` times, at least once.
    pub(super) fn repeat(&mut self, one: &Footprint, count: usize) {
        let rest = one.end.and_then(|end| {
            end.checked_next_multiple_of(ALIGNMENT)?
                .checked_mul(count - 1)
        });
        self.append(rest);
        self.append(one.end);
    }

    fn append(&mut self, bytes: Option<usize>) {
        let start = self
            .end
            .and_then(|end| end.checked_next_multiple_of(ALIGNMENT));
        self.end = start
            .zip(bytes)
            .and_then(|(start, bytes)| start.checked_add(bytes));
    }

    /// Bytes in any alignment; `None` where no allocation has so many.
    pub(super) fn bytes(&self) -> Option<usize> {
        let bytes = self.end?.checked_add(ALIGNMENT - 1)?;
        (bytes <= isize::MAX as usize).then_some(bytes)
    }
}
