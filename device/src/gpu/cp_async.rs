//! Asynchronous copies from global to shared memory, a few bytes a thread.
//!
//! A thread's copies land when that thread has waited for them; a barrier then shows them to the
//! others.

use super::address::{Global, Shared};
#[cfg(all(not(target_arch = "nvptx64"), feature = "emulator"))]
use super::emu::cp_async as emu;

/// Copies 16 bytes past the L1 cache. Both addresses are multiples of 16.
///
/// # PTX
/// `cp.async.cg.shared.global [to], [from], 16;`
/// # Hardware support
/// sm_80 and later.
#[track_caller]
#[inline(always)]
pub fn cp_async_cg_16<T>(to: Shared<T>, from: Global<T>) {
    on! {
        gpu => {
            // SAFETY: the addresses are valid by the launch's contract.
            unsafe {
                core::arch::asm!("cp.async.cg.shared.global [{t}], [{f}], 16;", t = in(reg32) to.address(),
                    f = in(reg64) from.address(), options(nostack));
            }
        }
        emulator => { emu::copy("cp.async.cg.shared.global", to.address(), from.address(), 16, 16) }
    }
}

/// Writes 16 bytes: the first `source_bytes` (0 to 16) are copied, the rest are zero. With 0,
/// nothing is read and `from` may be any address.
///
/// # PTX
/// `cp.async.cg.shared.global [to], [from], 16, source_bytes;`
/// # Hardware support
/// sm_80 and later.
#[track_caller]
#[inline(always)]
pub fn cp_async_cg_16_zfill<T>(to: Shared<T>, from: Global<T>, source_bytes: u32) {
    on! {
        gpu => {
            // SAFETY: the addresses are valid by the launch's contract.
            unsafe {
                core::arch::asm!("cp.async.cg.shared.global [{t}], [{f}], 16, {n};", t = in(reg32) to.address(),
                    f = in(reg64) from.address(), n = in(reg32) source_bytes, options(nostack));
            }
        }
        emulator => { emu::copy("cp.async.cg.shared.global", to.address(), from.address(), 16, source_bytes) }
    }
}

/// Copies 4 bytes. Both addresses are multiples of 4.
///
/// # PTX
/// `cp.async.ca.shared.global [to], [from], 4;`
/// # Hardware support
/// sm_80 and later.
#[track_caller]
#[inline(always)]
pub fn cp_async_ca_4<T>(to: Shared<T>, from: Global<T>) {
    on! {
        gpu => {
            // SAFETY: the addresses are valid by the launch's contract.
            unsafe {
                core::arch::asm!("cp.async.ca.shared.global [{t}], [{f}], 4;", t = in(reg32) to.address(),
                    f = in(reg64) from.address(), options(nostack));
            }
        }
        emulator => { emu::copy("cp.async.ca.shared.global", to.address(), from.address(), 4, 4) }
    }
}

/// Makes a group of the thread's copies since the last commit, even of none.
///
/// # PTX
/// `cp.async.commit_group;`
/// # Hardware support
/// sm_80 and later.
#[track_caller]
#[inline(always)]
pub fn cp_async_commit_group() {
    on! {
        gpu => {
            // SAFETY: no operands.
            unsafe { core::arch::asm!("cp.async.commit_group;", options(nostack)) }
        }
        emulator => { emu::commit_group() }
    }
}

/// Waits until at most `PENDING` of the thread's latest groups are in flight.
///
/// # PTX
/// `cp.async.wait_group PENDING;`
/// # Hardware support
/// sm_80 and later.
#[track_caller]
#[inline(always)]
pub fn cp_async_wait_group<const PENDING: u32>() {
    on! {
        gpu => {
            // SAFETY: no memory operands.
            unsafe { core::arch::asm!("cp.async.wait_group {n};", n = const PENDING, options(nostack)) }
        }
        emulator => { emu::wait_group(PENDING) }
    }
}

/// Waits for all copies of the thread, committed or not.
///
/// # PTX
/// `cp.async.wait_all;`
/// # Hardware support
/// sm_80 and later.
#[track_caller]
#[inline(always)]
pub fn cp_async_wait_all() {
    on! {
        gpu => {
            // SAFETY: no operands.
            unsafe { core::arch::asm!("cp.async.wait_all;", options(nostack)) }
        }
        emulator => { emu::wait_all() }
    }
}
