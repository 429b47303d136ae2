//! Global and shared memory: every access is resolved to a named object, or diagnosed.

use std::panic::Location;
use std::sync::atomic::{
    AtomicU8, AtomicU16, AtomicU32, AtomicU64,
    Ordering::{Relaxed, SeqCst},
};

use super::block::{At, Block, spin, with};
use super::diagnosis::FaultKind;
use crate::gpu::Word;

/// Address bits of the offset inside a global buffer: buffers lie a terabyte apart.
const OFFSET_BITS: u32 = 40;

/// Shared addresses start here, not at 0, so that a null address is out of bounds. A multiple of
/// 1024, as the strictest swizzle wants.
pub(in super::super) const SHARED_BASE: u32 = 1024;

struct Allocation {
    name: String,
    bytes: u64,
    words: Box<[AtomicU64]>,
}

/// The buffers of a device. Bytes are atomics, accessed relaxed: blocks on other CPUs may race on
/// them, as they may on a GPU.
#[derive(Default)]
pub(super) struct GlobalMemory {
    allocations: Vec<Allocation>,
}

/// Reads a word as one relaxed atomic access.
///
/// # Safety
/// `at` is valid for reads of `T`, aligned for it, and only accessed atomically meanwhile.
#[inline(always)]
unsafe fn load_word<T: Word>(at: *mut u8) -> T {
    // SAFETY: the caller's contract; the atomic types have the size and alignment of their words.
    let bits = unsafe {
        match size_of::<T>() {
            1 => u64::from(AtomicU8::from_ptr(at).load(Relaxed)),
            2 => u64::from(AtomicU16::from_ptr(at.cast()).load(Relaxed)),
            4 => u64::from(AtomicU32::from_ptr(at.cast()).load(Relaxed)),
            _ => AtomicU64::from_ptr(at.cast()).load(Relaxed),
        }
    };
    T::from_bits64(bits)
}

/// Writes a word as one relaxed atomic access.
///
/// # Safety
/// `at` is valid for writes of `T`, aligned for it, and only accessed atomically meanwhile.
#[inline(always)]
unsafe fn store_word<T: Word>(at: *mut u8, value: T) {
    let bits = value.to_bits64();
    // SAFETY: the caller's contract; the atomic types have the size and alignment of their words.
    unsafe {
        match size_of::<T>() {
            1 => AtomicU8::from_ptr(at).store(bits as u8, Relaxed),
            2 => AtomicU16::from_ptr(at.cast()).store(bits as u16, Relaxed),
            4 => AtomicU32::from_ptr(at.cast()).store(bits as u32, Relaxed),
            _ => AtomicU64::from_ptr(at.cast()).store(bits, Relaxed),
        }
    }
}

impl GlobalMemory {
    /// A new buffer, every bit one; returns its address.
    pub(super) fn allocate(&mut self, name: &str, bytes: usize) -> u64 {
        assert!(
            (bytes as u64) < 1 << OFFSET_BITS,
            "a buffer is below a terabyte"
        );
        self.allocations.push(Allocation {
            name: name.to_owned(),
            bytes: bytes as u64,
            words: (0..bytes.div_ceil(8))
                .map(|_| AtomicU64::new(u64::MAX))
                .collect(),
        });
        (self.allocations.len() as u64) << OFFSET_BITS
    }

    /// The host memory behind `bytes` bytes at `address`, if one buffer holds them all.
    #[inline(always)]
    pub(super) fn resolve(&self, address: u64, bytes: u64) -> Option<*mut u8> {
        let index = (address >> OFFSET_BITS).wrapping_sub(1) as usize;
        let allocation = self.allocations.get(index)?;
        let offset = address & ((1 << OFFSET_BITS) - 1);
        if offset + bytes > allocation.bytes {
            return None;
        }
        let base = allocation.words.as_ptr().cast::<u8>().cast_mut();
        // SAFETY: the offset is inside the allocation, by the check above.
        Some(unsafe { base.add(offset as usize) })
    }

    pub(super) fn write<T: Word>(&self, base: u64, data: &[T]) {
        let bytes = size_of_val(data) as u64;
        let to = self
            .resolve(base, bytes)
            .expect("the buffer is of this device");
        for (i, &value) in data.iter().enumerate() {
            // SAFETY: `resolve` checked the whole range; buffers are 8-byte aligned.
            unsafe { store_word(to.add(i * size_of::<T>()), value) };
        }
    }

    pub(super) fn read<T: Word>(&self, base: u64, len: usize) -> Vec<T> {
        let from = self
            .resolve(base, (len * size_of::<T>()) as u64)
            .expect("the buffer is of this device");
        (0..len)
            // SAFETY: `resolve` checked the whole range; buffers are 8-byte aligned.
            .map(|i| unsafe { load_word(from.add(i * size_of::<T>())) })
            .collect()
    }

    /// Where an address lies, in words.
    fn place(&self, address: u64) -> String {
        let near = |allocation: &Allocation, index: usize| {
            let base = (index as u64 + 1) << OFFSET_BITS;
            let distance = i128::from(address) - i128::from(base);
            let (name, bytes) = (&allocation.name, allocation.bytes);
            if distance < 0 {
                format!("{} bytes before buffer `{name}` ({bytes} bytes)", -distance)
            } else {
                format!("byte {distance} of buffer `{name}` ({bytes} bytes)")
            }
        };
        let nearest = self
            .allocations
            .iter()
            .enumerate()
            .min_by_key(|(index, allocation)| {
                let base = (*index as u64 + 1) << OFFSET_BITS;
                address
                    .abs_diff(base)
                    .min(address.abs_diff(base + allocation.bytes))
            });
        match nearest {
            _ if address < 1 << (OFFSET_BITS - 1) => {
                format!("{address:#x}, which is null or nearly so")
            }
            Some((index, allocation)) => near(allocation, index),
            None => format!("{address:#x}, and the device has no buffer"),
        }
    }
}

/// The dynamic shared memory of a block.
pub(super) struct SharedMemory {
    words: Vec<u64>,
    bytes: u32,
}

impl SharedMemory {
    /// `bytes` bytes, every bit one.
    pub(super) fn new(bytes: u32) -> Self {
        Self {
            words: vec![u64::MAX; bytes.div_ceil(8) as usize],
            bytes,
        }
    }

    pub(super) fn bytes(&self) -> u32 {
        self.bytes
    }

    /// The host memory behind `bytes` bytes at `address`, if they are all inside.
    #[inline(always)]
    pub(super) fn resolve(&mut self, address: u32, bytes: u32) -> Option<*mut u8> {
        let offset = u64::from(address.checked_sub(SHARED_BASE)?);
        if offset + u64::from(bytes) > u64::from(self.bytes) {
            return None;
        }
        // SAFETY: the offset is inside the vector, by the check above.
        Some(unsafe { self.words.as_mut_ptr().cast::<u8>().add(offset as usize) })
    }
}

/// What an access does, for bounds messages and race detection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Access {
    Read,
    Write,
    Atomic,
}

impl Block {
    /// Resolves a global access of the running thread.
    #[inline(always)]
    pub(super) fn global(
        &mut self,
        address: u64,
        bytes: u32,
        align: u32,
        op: &'static str,
        at: At,
    ) -> *mut u8 {
        // SAFETY: the device outlives the launch.
        let memory = unsafe { &*self.memory };
        match memory.resolve(address, u64::from(bytes)) {
            Some(host) if address.is_multiple_of(u64::from(align)) => host,
            _ => self.bad_global(address, bytes, align, op, at),
        }
    }

    #[cold]
    fn bad_global(&mut self, address: u64, bytes: u32, align: u32, op: &'static str, at: At) -> ! {
        // SAFETY: as in `global`.
        let memory = unsafe { &*self.memory };
        let place = memory.place(address);
        if memory.resolve(address, u64::from(bytes)).is_none() {
            self.fail(
                FaultKind::OutOfBounds,
                at,
                format!("`{op}` of {bytes} bytes is out of bounds: it starts at {place}"),
            );
        }
        self.fail(
            FaultKind::Misaligned,
            at,
            format!(
                "`{op}` is misaligned: it needs a multiple of {align} bytes, but starts at {place}"
            ),
        )
    }

    /// Resolves a shared access of the running thread, without looking for races.
    #[inline(always)]
    pub(super) fn shared(
        &mut self,
        address: u32,
        bytes: u32,
        align: u32,
        op: &'static str,
        at: At,
    ) -> *mut u8 {
        match self.shared.resolve(address, bytes) {
            Some(host) if address.is_multiple_of(align) => host,
            _ => self.bad_shared(address, bytes, align, op, at),
        }
    }

    #[cold]
    fn bad_shared(&mut self, address: u32, bytes: u32, align: u32, op: &'static str, at: At) -> ! {
        let total = self.shared.bytes();
        let offset = i64::from(address) - i64::from(SHARED_BASE);
        if self.shared.resolve(address, bytes).is_none() {
            self.fail(
                FaultKind::OutOfBounds,
                at,
                format!(
                    "`{op}` of {bytes} bytes is out of bounds: it starts at byte {offset} of the {total} bytes of \
                     shared memory that the launch asked for"
                ),
            );
        }
        self.fail(
            FaultKind::Misaligned,
            at,
            format!(
                "`{op}` is misaligned: it needs a multiple of {align} bytes, but starts at byte {offset} of shared \
                 memory (address {address:#x})"
            ),
        )
    }

    /// Resolves a shared access of the running thread, and checks that nothing races with it.
    #[inline(always)]
    pub(super) fn shared_access(
        &mut self,
        address: u32,
        bytes: u32,
        access: Access,
        op: &'static str,
        at: At,
    ) -> *mut u8 {
        let host = self.shared(address, bytes, bytes, op, at);
        self.note_access(address, bytes, access, op, at);
        host
    }
}

#[inline]
#[track_caller]
pub(in super::super) fn load_global<T: Word, const N: usize>(
    address: u64,
    op: &'static str,
) -> [T; N] {
    let at = Location::caller();
    let bytes = (size_of::<T>() * N) as u32;
    with(|block| {
        let host = block.global(address, bytes, bytes, op, at);
        // SAFETY: `global` checked the whole access.
        std::array::from_fn(|i| unsafe { load_word(host.add(i * size_of::<T>())) })
    })
}

#[inline]
#[track_caller]
pub(in super::super) fn store_global<T: Word, const N: usize>(
    address: u64,
    values: [T; N],
    op: &'static str,
) {
    let at = Location::caller();
    let bytes = (size_of::<T>() * N) as u32;
    with(|block| {
        let host = block.global(address, bytes, bytes, op, at);
        for (i, value) in values.into_iter().enumerate() {
            // SAFETY: `global` checked the whole access.
            unsafe { store_word(host.add(i * size_of::<T>()), value) };
        }
    });
}

/// A load that a kernel may spin on: other threads of the block run before it.
#[track_caller]
pub(in super::super) fn poll_global<T: Word>(address: u64, op: &'static str) -> T {
    let at = Location::caller();
    spin(at);
    with(|block| {
        let bytes = size_of::<T>() as u32;
        let host = block.global(address, bytes, bytes, op, at);
        std::sync::atomic::fence(SeqCst);
        // SAFETY: `global` checked the access.
        unsafe { load_word(host) }
    })
}

#[inline]
#[track_caller]
pub(in super::super) fn load_shared<T: Word, const N: usize>(
    address: u32,
    op: &'static str,
) -> [T; N] {
    let at = Location::caller();
    let bytes = (size_of::<T>() * N) as u32;
    with(|block| {
        let host = block.shared_access(address, bytes, Access::Read, op, at);
        // SAFETY: `shared_access` checked the whole access.
        std::array::from_fn(|i| unsafe { load_word(host.add(i * size_of::<T>())) })
    })
}

#[inline]
#[track_caller]
pub(in super::super) fn store_shared<T: Word, const N: usize>(
    address: u32,
    values: [T; N],
    op: &'static str,
) {
    let at = Location::caller();
    let bytes = (size_of::<T>() * N) as u32;
    with(|block| {
        let host = block.shared_access(address, bytes, Access::Write, op, at);
        for (i, value) in values.into_iter().enumerate() {
            // SAFETY: `shared_access` checked the whole access.
            unsafe { store_word(host.add(i * size_of::<T>()), value) };
        }
    });
}

/// Reads, modifies and writes 32 bits at `host` as one step, and returns what was there.
fn modify32(host: *mut u8, f: impl Fn(u32) -> u32) -> u32 {
    // SAFETY: the caller resolved four aligned bytes, which are only accessed atomically.
    let cell = unsafe { AtomicU32::from_ptr(host.cast()) };
    match cell.fetch_update(SeqCst, SeqCst, |old| Some(f(old))) {
        Ok(old) | Err(old) => old,
    }
}

/// As [`modify32`], for 64 bits.
fn modify64(host: *mut u8, f: impl Fn(u64) -> u64) -> u64 {
    // SAFETY: the caller resolved eight aligned bytes, which are only accessed atomically.
    let cell = unsafe { AtomicU64::from_ptr(host.cast()) };
    match cell.fetch_update(SeqCst, SeqCst, |old| Some(f(old))) {
        Ok(old) | Err(old) => old,
    }
}

#[track_caller]
pub(in super::super) fn atomic_global32(
    address: u64,
    op: &'static str,
    f: impl Fn(u32) -> u32,
) -> u32 {
    let at = Location::caller();
    with(|block| modify32(block.global(address, 4, 4, op, at), f))
}

#[track_caller]
pub(in super::super) fn atomic_global64(
    address: u64,
    op: &'static str,
    f: impl Fn(u64) -> u64,
) -> u64 {
    let at = Location::caller();
    with(|block| modify64(block.global(address, 8, 8, op, at), f))
}

#[track_caller]
pub(in super::super) fn atomic_shared32(
    address: u32,
    op: &'static str,
    f: impl Fn(u32) -> u32,
) -> u32 {
    let at = Location::caller();
    with(|block| modify32(block.shared_access(address, 4, Access::Atomic, op, at), f))
}

#[track_caller]
pub(in super::super) fn atomic_shared64(
    address: u32,
    op: &'static str,
    f: impl Fn(u64) -> u64,
) -> u64 {
    let at = Location::caller();
    with(|block| modify64(block.shared_access(address, 8, Access::Atomic, op, at), f))
}
