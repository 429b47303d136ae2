//! `mbarrier`: barriers in shared memory that count arrivals and the bytes of bulk copies.
//!
//! An mbarrier is 8 bytes, aligned to 8. Phases are numbered from 0; a phase completes when its
//! arrivals and its expected bytes are there. A waiter names a phase by its parity: waiting for
//! parity 1 on a fresh mbarrier returns at once, as the phase "before the first" is complete.

use super::address::Shared;
#[cfg(all(not(target_arch = "nvptx64"), feature = "emulator"))]
use super::emu::mbarrier as emu;

/// Makes an mbarrier whose phases take `count` arrivals. A barrier, after
/// [`fence_mbarrier_init`](super::fence_mbarrier_init), hands it to the other threads.
///
/// # PTX
/// `mbarrier.init.shared::cta.b64 [mbarrier], count;`
/// # Hardware support
/// sm_80 and later.
#[track_caller]
#[inline(always)]
pub fn mbarrier_init(mbarrier: Shared<u64>, count: u32) {
    on! {
        gpu => {
            // SAFETY: the address is valid by the launch's contract.
            unsafe {
                core::arch::asm!("mbarrier.init.shared.b64 [{a}], {n};", a = in(reg32) mbarrier.address(), n = in(reg32) count, options(nostack));
            }
        }
        emulator => { emu::init(mbarrier.address(), count) }
    }
}

/// Ends an mbarrier: its 8 bytes are ordinary memory again.
///
/// # PTX
/// `mbarrier.inval.shared::cta.b64 [mbarrier];`
/// # Hardware support
/// sm_80 and later.
#[track_caller]
#[inline(always)]
pub fn mbarrier_inval(mbarrier: Shared<u64>) {
    on! {
        gpu => {
            // SAFETY: the address is valid by the launch's contract.
            unsafe {
                core::arch::asm!("mbarrier.inval.shared.b64 [{a}];", a = in(reg32) mbarrier.address(), options(nostack));
            }
        }
        emulator => { emu::inval(mbarrier.address()) }
    }
}

/// Arrives once. Releases this thread's memory accesses to the threads that wait.
///
/// # PTX
/// `mbarrier.arrive.shared::cta.b64 _, [mbarrier];`
/// # Hardware support
/// sm_80 and later.
#[track_caller]
#[inline(always)]
pub fn mbarrier_arrive(mbarrier: Shared<u64>) {
    on! {
        gpu => {
            // SAFETY: the address is valid by the launch's contract.
            unsafe {
                core::arch::asm!("{{ .reg .b64 state; mbarrier.arrive.shared.b64 state, [{a}]; }}", a = in(reg32) mbarrier.address(), options(nostack));
            }
        }
        emulator => { emu::arrive("mbarrier.arrive", mbarrier.address(), 0, 1) }
    }
}

/// Arrives `count` times, at least once, as for other threads that have met this one.
///
/// # PTX
/// `mbarrier.arrive.shared::cta.b64 _, [mbarrier], count;`
/// # Hardware support
/// sm_90 and later.
#[track_caller]
#[inline(always)]
pub fn mbarrier_arrive_count(mbarrier: Shared<u64>, count: u32) {
    on! {
        gpu => {
            // SAFETY: the address is valid by the launch's contract.
            unsafe {
                core::arch::asm!("mbarrier.arrive.shared::cta.b64 _, [{a}], {n};", a = in(reg32) mbarrier.address(), n = in(reg32) count, options(nostack));
            }
        }
        emulator => { emu::arrive("mbarrier.arrive", mbarrier.address(), 0, count) }
    }
}

/// Arrives once, and makes the phase expect `bytes` more bytes from bulk copies.
///
/// # PTX
/// `mbarrier.arrive.expect_tx.shared::cta.b64 _, [mbarrier], bytes;`
/// # Hardware support
/// sm_90 and later.
#[track_caller]
#[inline(always)]
pub fn mbarrier_arrive_expect_tx(mbarrier: Shared<u64>, bytes: u32) {
    on! {
        gpu => {
            // SAFETY: the address is valid by the launch's contract.
            unsafe {
                core::arch::asm!("mbarrier.arrive.expect_tx.shared::cta.b64 _, [{a}], {n};", a = in(reg32) mbarrier.address(), n = in(reg32) bytes, options(nostack));
            }
        }
        emulator => { emu::arrive("mbarrier.arrive.expect_tx", mbarrier.address(), bytes, 1) }
    }
}

/// Makes the phase expect `bytes` more bytes from bulk copies, without arriving.
///
/// # PTX
/// `mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [mbarrier], bytes;`
/// # Hardware support
/// sm_90 and later.
#[track_caller]
#[inline(always)]
pub fn mbarrier_expect_tx(mbarrier: Shared<u64>, bytes: u32) {
    on! {
        gpu => {
            // SAFETY: the address is valid by the launch's contract.
            unsafe {
                core::arch::asm!("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [{a}], {n};", a = in(reg32) mbarrier.address(), n = in(reg32) bytes, options(nostack));
            }
        }
        emulator => { emu::arrive("mbarrier.expect_tx", mbarrier.address(), bytes, 0) }
    }
}

/// Waits until the phase with this parity, 0 or 1, has completed. Flip the parity after each wait:
/// the emulator takes a second wait for the same phase by the same thread for a mistake.
///
/// # PTX
/// `mbarrier.try_wait.parity.shared::cta.b64 p, [mbarrier], parity;` in a loop.
/// # Hardware support
/// sm_90 and later.
#[track_caller]
#[inline(always)]
#[allow(
    named_asm_labels,
    reason = "PTX labels are local to their braces, and PTX has no numeric ones"
)]
pub fn mbarrier_wait_parity(mbarrier: Shared<u64>, parity: u32) {
    on! {
        gpu => {
            // SAFETY: the address is valid by the launch's contract.
            unsafe {
                core::arch::asm!("{{ .reg .pred p; LW: mbarrier.try_wait.parity.shared::cta.b64 p, [{a}], {p}; @p bra LD; bra LW; LD: }}", a = in(reg32) mbarrier.address(), p = in(reg32) parity, options(nostack));
            }
        }
        emulator => { emu::wait(mbarrier.address(), parity) }
    }
}

/// Arrives once when all `cp.async` copies that this thread has issued have landed. The arrival is
/// one of the mbarrier's count.
///
/// # PTX
/// `cp.async.mbarrier.arrive.noinc.shared::cta.b64 [mbarrier];`
/// # Hardware support
/// sm_80 and later.
#[track_caller]
#[inline(always)]
pub fn cp_async_mbarrier_arrive_noinc(mbarrier: Shared<u64>) {
    on! {
        gpu => {
            // SAFETY: the address is valid by the launch's contract.
            unsafe {
                core::arch::asm!("cp.async.mbarrier.arrive.noinc.shared.b64 [{a}];", a = in(reg32) mbarrier.address(), options(nostack));
            }
        }
        emulator => { emu::arrive_after_copies(mbarrier.address()) }
    }
}

/// Whether the phase with this parity, 0 or 1, has completed; does not wait.
///
/// # PTX
/// `mbarrier.test_wait.parity.shared::cta.b64 p, [mbarrier], parity;`
/// # Hardware support
/// sm_80 and later, from PTX 7.1 on.
#[track_caller]
#[inline(always)]
pub fn mbarrier_test_wait_parity(mbarrier: Shared<u64>, parity: u32) -> bool {
    on! {
        gpu => {
            let done: u32;
            // SAFETY: the address is valid by the launch's contract.
            unsafe {
                core::arch::asm!("{{ .reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [{a}], {p}; selp.u32 {d}, 1, 0, p; }}",
                    d = out(reg32) done, a = in(reg32) mbarrier.address(), p = in(reg32) parity, options(nostack));
            }
            done != 0
        }
        emulator => { emu::test_wait(mbarrier.address(), parity) }
    }
}
