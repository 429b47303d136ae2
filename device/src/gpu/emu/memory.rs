//! Accesses to global and shared memory: each is resolved to a named object, or diagnosed.

use std::panic::Location;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};

pub(in super::super) use super::state::memory::SHARED_BASE;
use super::state::memory::{Access, load_word, split, store_word};
use super::state::{At, Cta, FaultKind, spin, with};
use crate::gpu::bits::Bits;

impl Cta {
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

    /// As [`Self::global`], for a write: perhaps the CTA's first to a line, which is progress.
    #[inline(always)]
    pub(super) fn global_write(
        &mut self,
        address: u64,
        bytes: u32,
        align: u32,
        op: &'static str,
        at: At,
    ) -> *mut u8 {
        let host = self.global(address, bytes, align, op, at);
        let (buffer, offset) = split(address);
        self.progress.wrote(buffer, offset, bytes.into());
        host
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
pub(in super::super) fn load_global<T: Bits, const N: usize>(
    address: u64,
    op: &'static str,
) -> [T; N] {
    let at = Location::caller();
    let bytes = (size_of::<T>() * N) as u32;
    with(|cta| {
        let host = cta.global(address, bytes, bytes, op, at);
        // SAFETY: `global` checked the whole access.
        std::array::from_fn(|i| unsafe { load_word(host.add(i * size_of::<T>())) })
    })
}

#[inline]
#[track_caller]
pub(in super::super) fn store_global<T: Bits, const N: usize>(
    address: u64,
    values: [T; N],
    op: &'static str,
) {
    let at = Location::caller();
    let bytes = (size_of::<T>() * N) as u32;
    with(|cta| {
        let host = cta.global_write(address, bytes, bytes, op, at);
        for (i, value) in values.into_iter().enumerate() {
            // SAFETY: `global` checked the whole access.
            unsafe { store_word(host.add(i * size_of::<T>()), value) };
        }
    });
}

/// A load that a kernel may spin on: other threads of the CTA run before it.
#[track_caller]
pub(in super::super) fn poll_global<T: Bits>(address: u64, op: &'static str) -> T {
    let at = Location::caller();
    spin(at);
    with(|cta| {
        let bytes = size_of::<T>() as u32;
        let host = cta.global(address, bytes, bytes, op, at);
        std::sync::atomic::fence(SeqCst);
        // SAFETY: `global` checked the access.
        unsafe { load_word(host) }
    })
}

#[inline]
#[track_caller]
pub(in super::super) fn load_shared<T: Bits, const N: usize>(
    address: u32,
    op: &'static str,
) -> [T; N] {
    let at = Location::caller();
    let bytes = (size_of::<T>() * N) as u32;
    with(|cta| {
        let host = cta.shared_access(address, bytes, Access::Read, op, at);
        // SAFETY: `shared_access` checked the whole access.
        std::array::from_fn(|i| unsafe { load_word(host.add(i * size_of::<T>())) })
    })
}

#[inline]
#[track_caller]
pub(in super::super) fn store_shared<T: Bits, const N: usize>(
    address: u32,
    values: [T; N],
    op: &'static str,
) {
    let at = Location::caller();
    let bytes = (size_of::<T>() * N) as u32;
    with(|cta| {
        let host = cta.shared_access(address, bytes, Access::Write, op, at);
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
    with(|cta| modify32(cta.global_write(address, 4, 4, op, at), f))
}

#[track_caller]
pub(in super::super) fn atomic_global64(
    address: u64,
    op: &'static str,
    f: impl Fn(u64) -> u64,
) -> u64 {
    let at = Location::caller();
    with(|cta| modify64(cta.global_write(address, 8, 8, op, at), f))
}

#[track_caller]
pub(in super::super) fn atomic_shared32(
    address: u32,
    op: &'static str,
    f: impl Fn(u32) -> u32,
) -> u32 {
    let at = Location::caller();
    with(|cta| modify32(cta.shared_access(address, 4, Access::Atomic, op, at), f))
}

#[track_caller]
pub(in super::super) fn atomic_shared64(
    address: u32,
    op: &'static str,
    f: impl Fn(u64) -> u64,
) -> u64 {
    let at = Location::caller();
    with(|cta| modify64(cta.shared_access(address, 8, Access::Atomic, op, at), f))
}
