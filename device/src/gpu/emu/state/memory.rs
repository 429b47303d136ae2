//! Global and shared memory: addresses, and the host memory behind them.

use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::gpu::bits::Bits;

/// Address bits of the offset inside a global buffer: buffers lie a terabyte apart.
const OFFSET_BITS: u32 = 40;

/// Shared addresses start here, not at 0, so that a null address is out of bounds. A multiple of
/// 1024, as the strictest swizzle requires.
pub const SHARED_BASE: u32 = 1024;

struct Allocation {
    name: String,
    bytes: u64,
    words: Box<[AtomicU64]>,
}

/// The buffers of a device. Bytes are atomics, accessed relaxed: CTAs on other CPUs may race on
/// them, as they may on a GPU.
#[derive(Default)]
pub struct GlobalMemory {
    allocations: Vec<Allocation>,
}

/// Reads a word as one relaxed atomic access.
///
/// # Safety
/// `at` is valid for reads of `T`, aligned for it, and only accessed atomically meanwhile.
#[inline(always)]
pub unsafe fn load_word<T: Bits>(at: *mut u8) -> T {
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
pub unsafe fn store_word<T: Bits>(at: *mut u8, value: T) {
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

/// The buffer of a global address, by number, and the offset in it.
#[inline(always)]
pub fn split(address: u64) -> (usize, u64) {
    let index = (address >> OFFSET_BITS).wrapping_sub(1) as usize;
    (index, address & ((1 << OFFSET_BITS) - 1))
}

impl GlobalMemory {
    /// A new buffer, every bit one; returns its address.
    pub fn allocate(&mut self, name: &str, bytes: usize) -> u64 {
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

    /// Bytes of all buffers.
    pub fn bytes(&self) -> u64 {
        self.allocations.iter().map(|buffer| buffer.bytes).sum()
    }

    /// The host memory behind `bytes` bytes at `address`, if one buffer holds them all.
    #[inline(always)]
    pub fn resolve(&self, address: u64, bytes: u64) -> Option<*mut u8> {
        let (index, offset) = split(address);
        let allocation = self.allocations.get(index)?;
        if offset + bytes > allocation.bytes {
            return None;
        }
        let base = allocation.words.as_ptr().cast::<u8>().cast_mut();
        // SAFETY: the offset is inside the allocation, by the check above.
        Some(unsafe { base.add(offset as usize) })
    }

    pub fn write<T: Bits>(&self, base: u64, data: &[T]) {
        let bytes = size_of_val(data) as u64;
        let to = self
            .resolve(base, bytes)
            .expect("the buffer is of this device");
        for (i, &value) in data.iter().enumerate() {
            // SAFETY: `resolve` checked the whole range; buffers are 8-byte aligned.
            unsafe { store_word(to.add(i * size_of::<T>()), value) };
        }
    }

    pub fn read<T: Bits>(&self, base: u64, len: usize) -> Vec<T> {
        let from = self
            .resolve(base, (len * size_of::<T>()) as u64)
            .expect("the buffer is of this device");
        (0..len)
            // SAFETY: `resolve` checked the whole range; buffers are 8-byte aligned.
            .map(|i| unsafe { load_word(from.add(i * size_of::<T>())) })
            .collect()
    }

    /// Where an address lies, in words.
    pub fn place(&self, address: u64) -> String {
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

/// The dynamic shared memory of a CTA.
pub struct SharedMemory {
    words: Vec<u64>,
    bytes: u32,
}

impl SharedMemory {
    /// `bytes` bytes, every bit one.
    pub fn new(bytes: u32) -> Self {
        Self {
            words: vec![u64::MAX; bytes.div_ceil(8) as usize],
            bytes,
        }
    }

    pub fn bytes(&self) -> u32 {
        self.bytes
    }

    /// The host memory behind `bytes` bytes at `address`, if they are all inside.
    #[inline(always)]
    pub fn resolve(&mut self, address: u32, bytes: u32) -> Option<*mut u8> {
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
pub enum Access {
    Read,
    Write,
    Atomic,
}

/// Copies from global to shared memory.
///
/// # Safety
/// `from` is valid for `bytes` bytes that are accessed atomically, `to` for as many of the CTA's.
pub unsafe fn copy_in(from: *const u8, to: *mut u8, bytes: u32) {
    let bytes = bytes as usize;
    if from.addr().is_multiple_of(4) && bytes.is_multiple_of(4) {
        for i in (0..bytes).step_by(4) {
            // SAFETY: the caller's contract.
            unsafe {
                let word = AtomicU32::from_ptr(from.add(i).cast_mut().cast()).load(Relaxed);
                to.add(i).cast::<u32>().write_unaligned(word);
            }
        }
        return;
    }
    for i in 0..bytes {
        // SAFETY: the caller's contract.
        unsafe {
            let byte = AtomicU8::from_ptr(from.add(i).cast_mut()).load(Relaxed);
            to.add(i).write(byte);
        }
    }
}

/// Copies from shared to global memory.
///
/// # Safety
/// `to` is valid for `bytes` bytes that are accessed atomically, `from` for as many of the CTA's.
pub unsafe fn copy_out(from: *const u8, to: *mut u8, bytes: u32) {
    let bytes = bytes as usize;
    if to.addr().is_multiple_of(4) && bytes.is_multiple_of(4) {
        for i in (0..bytes).step_by(4) {
            // SAFETY: the caller's contract.
            unsafe {
                let word = from.add(i).cast::<u32>().read_unaligned();
                AtomicU32::from_ptr(to.add(i).cast()).store(word, Relaxed);
            }
        }
        return;
    }
    for i in 0..bytes {
        // SAFETY: the caller's contract.
        unsafe { AtomicU8::from_ptr(to.add(i)).store(from.add(i).read(), Relaxed) };
    }
}
