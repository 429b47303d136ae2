//! The sixteen named barriers of a CTA.
//!
//! Warps arrive whole: every form here is `.aligned`. Barrier 0 is the one that whole CTAs use.

#[cfg(all(not(target_arch = "nvptx64"), feature = "emulator"))]
use super::emu::barrier::{Combine, arrive};

/// Waits until every thread of the CTA is at barrier `id`. Orders all memory accesses of the
/// CTA before it with all after it.
///
/// # PTX
/// `bar.sync id;`
/// # Hardware support
/// All.
#[track_caller]
#[inline(always)]
pub fn bar_sync(id: u32) {
    on! {
        gpu => {
            // SAFETY: a barrier has no operands that could be invalid but its number.
            unsafe { core::arch::asm!("bar.sync {id};", id = in(reg32) id, options(nostack)) }
        }
        emulator => { arrive("bar.sync", id, None, true, Combine::Nothing, false); }
    }
}

/// Waits until `threads` threads, a multiple of 32, have arrived at barrier `id`, here or in
/// [`bar_arrive`].
///
/// # PTX
/// `bar.sync id, threads;`
/// # Hardware support
/// All.
#[track_caller]
#[inline(always)]
pub fn bar_sync_count(id: u32, threads: u32) {
    on! {
        gpu => {
            // SAFETY: as in `bar_sync`.
            unsafe { core::arch::asm!("bar.sync {id}, {n};", id = in(reg32) id, n = in(reg32) threads, options(nostack)) }
        }
        emulator => { arrive("bar.sync", id, Some(threads), true, Combine::Nothing, false); }
    }
}

/// Arrives at barrier `id` for `threads` threads without waiting.
///
/// # PTX
/// `bar.arrive id, threads;`
/// # Hardware support
/// All.
#[track_caller]
#[inline(always)]
pub fn bar_arrive(id: u32, threads: u32) {
    on! {
        gpu => {
            // SAFETY: as in `bar_sync`.
            unsafe { core::arch::asm!("bar.arrive {id}, {n};", id = in(reg32) id, n = in(reg32) threads, options(nostack)) }
        }
        emulator => { arrive("bar.arrive", id, Some(threads), false, Combine::Nothing, false); }
    }
}

/// [`bar_sync`], returning for how many threads of the CTA the predicate holds.
///
/// # PTX
/// `bar.red.popc.u32 d, id, p;`
/// # Hardware support
/// All.
#[track_caller]
#[inline(always)]
pub fn bar_red_popc(id: u32, predicate: bool) -> u32 {
    on! {
        gpu => {
            let count: u32;
            // SAFETY: as in `bar_sync`.
            unsafe {
                core::arch::asm!("{{ .reg .pred p; setp.ne.u32 p, {p}, 0; bar.red.popc.u32 {d}, {id}, p; }}",
                    d = out(reg32) count, id = in(reg32) id, p = in(reg32) u32::from(predicate), options(nostack));
            }
            count
        }
        emulator => { arrive("bar.red.popc", id, None, true, Combine::Popc, predicate) }
    }
}

/// [`bar_sync`], returning whether the predicate holds for every thread of the CTA.
///
/// # PTX
/// `bar.red.and.pred q, id, p;`
/// # Hardware support
/// All.
#[track_caller]
#[inline(always)]
pub fn bar_red_and(id: u32, predicate: bool) -> bool {
    on! {
        gpu => {
            let all: u32;
            // SAFETY: as in `bar_sync`.
            unsafe {
                core::arch::asm!("{{ .reg .pred p, q; setp.ne.u32 p, {p}, 0; bar.red.and.pred q, {id}, p; selp.u32 {d}, 1, 0, q; }}",
                    d = out(reg32) all, id = in(reg32) id, p = in(reg32) u32::from(predicate), options(nostack));
            }
            all != 0
        }
        emulator => { arrive("bar.red.and", id, None, true, Combine::And, predicate) != 0 }
    }
}

/// [`bar_sync`], returning whether the predicate holds for any thread of the CTA.
///
/// # PTX
/// `bar.red.or.pred q, id, p;`
/// # Hardware support
/// All.
#[track_caller]
#[inline(always)]
pub fn bar_red_or(id: u32, predicate: bool) -> bool {
    on! {
        gpu => {
            let any: u32;
            // SAFETY: as in `bar_sync`.
            unsafe {
                core::arch::asm!("{{ .reg .pred p, q; setp.ne.u32 p, {p}, 0; bar.red.or.pred q, {id}, p; selp.u32 {d}, 1, 0, q; }}",
                    d = out(reg32) any, id = in(reg32) id, p = in(reg32) u32::from(predicate), options(nostack));
            }
            any != 0
        }
        emulator => { arrive("bar.red.or", id, None, true, Combine::Or, predicate) != 0 }
    }
}

/// [`bar_sync_count`], returning whether the predicate holds for any of the `threads` threads.
///
/// # PTX
/// `bar.red.or.pred q, id, threads, p;`
/// # Hardware support
/// All.
#[track_caller]
#[inline(always)]
pub fn bar_red_or_count(id: u32, threads: u32, predicate: bool) -> bool {
    on! {
        gpu => {
            let any: u32;
            // SAFETY: as in `bar_sync`.
            unsafe {
                core::arch::asm!("{{ .reg .pred p, q; setp.ne.u32 p, {p}, 0; bar.red.or.pred q, {id}, {n}, p; selp.u32 {d}, 1, 0, q; }}",
                    d = out(reg32) any, id = in(reg32) id, n = in(reg32) threads, p = in(reg32) u32::from(predicate), options(nostack));
            }
            any != 0
        }
        emulator => { arrive("bar.red.or", id, Some(threads), true, Combine::Or, predicate) != 0 }
    }
}
