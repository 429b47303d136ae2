//! Shuffles, votes and reductions among the lanes of a warp.
//!
//! `mask` names the lanes that take part: each must execute the instruction with the same mask,
//! and be in it. None of these orders memory but [`bar_warp_sync`].

use super::address::Word32;
#[cfg(all(not(target_arch = "nvptx64"), feature = "emulator"))]
use super::emu::warp as emu;

/// Every lane of a warp, as a mask.
pub const FULL_MASK: u32 = u32::MAX;

/// Waits for the lanes of `mask`, and orders their memory accesses before and after.
///
/// # PTX
/// `bar.warp.sync mask;`
/// # Hardware support
/// sm_30 and later.
#[track_caller]
#[inline(always)]
pub fn bar_warp_sync(mask: u32) {
    on! {
        gpu => {
            // SAFETY: a barrier; no memory operand.
            unsafe { core::arch::asm!("bar.warp.sync {m};", m = in(reg32) mask, options(nostack)) }
        }
        emulator => { emu::bar_warp_sync(mask) }
    }
}

/// The value of lane `lane` (modulo 32).
///
/// # PTX
/// `shfl.sync.idx.b32 d, value, lane, 0x1f, mask;`
/// # Hardware support
/// sm_30 and later.
#[track_caller]
#[inline(always)]
pub fn shfl_sync_idx<T: Word32>(mask: u32, value: T, lane: u32) -> T {
    let bits = value.to_bits64() as u32;
    let result: u32 = on! {
        gpu => {{
            let result: u32;
            // SAFETY: moves registers between lanes.
            unsafe {
                core::arch::asm!("shfl.sync.idx.b32 {d}, {v}, {o}, 0x1f, {m};", d = out(reg32) result, v = in(reg32) bits,
                    o = in(reg32) lane, m = in(reg32) mask, options(nomem, nostack));
            }
            result
        }}
        emulator => { emu::shfl("shfl.sync.idx.b32", mask, bits, emu::Source::Index(lane)) }
    };
    T::from_bits64(u64::from(result))
}

/// The value of the lane whose number differs in the bits of `lane_mask`.
///
/// # PTX
/// `shfl.sync.bfly.b32 d, value, lane_mask, 0x1f, mask;`
/// # Hardware support
/// sm_30 and later.
#[track_caller]
#[inline(always)]
pub fn shfl_sync_bfly<T: Word32>(mask: u32, value: T, lane_mask: u32) -> T {
    let bits = value.to_bits64() as u32;
    let result: u32 = on! {
        gpu => {{
            let result: u32;
            // SAFETY: moves registers between lanes.
            unsafe {
                core::arch::asm!("shfl.sync.bfly.b32 {d}, {v}, {o}, 0x1f, {m};", d = out(reg32) result, v = in(reg32) bits,
                    o = in(reg32) lane_mask, m = in(reg32) mask, options(nomem, nostack));
            }
            result
        }}
        emulator => { emu::shfl("shfl.sync.bfly.b32", mask, bits, emu::Source::Xor(lane_mask)) }
    };
    T::from_bits64(u64::from(result))
}

/// The value of the lane `delta` below, or the lane's own where there is none.
///
/// # PTX
/// `shfl.sync.up.b32 d, value, delta, 0, mask;`
/// # Hardware support
/// sm_30 and later.
#[track_caller]
#[inline(always)]
pub fn shfl_sync_up<T: Word32>(mask: u32, value: T, delta: u32) -> T {
    let bits = value.to_bits64() as u32;
    let result: u32 = on! {
        gpu => {{
            let result: u32;
            // SAFETY: moves registers between lanes.
            unsafe {
                core::arch::asm!("shfl.sync.up.b32 {d}, {v}, {o}, 0, {m};", d = out(reg32) result, v = in(reg32) bits,
                    o = in(reg32) delta, m = in(reg32) mask, options(nomem, nostack));
            }
            result
        }}
        emulator => { emu::shfl("shfl.sync.up.b32", mask, bits, emu::Source::Up(delta)) }
    };
    T::from_bits64(u64::from(result))
}

/// The value of the lane `delta` above, or the lane's own where there is none.
///
/// # PTX
/// `shfl.sync.down.b32 d, value, delta, 0x1f, mask;`
/// # Hardware support
/// sm_30 and later.
#[track_caller]
#[inline(always)]
pub fn shfl_sync_down<T: Word32>(mask: u32, value: T, delta: u32) -> T {
    let bits = value.to_bits64() as u32;
    let result: u32 = on! {
        gpu => {{
            let result: u32;
            // SAFETY: moves registers between lanes.
            unsafe {
                core::arch::asm!("shfl.sync.down.b32 {d}, {v}, {o}, 0x1f, {m};", d = out(reg32) result, v = in(reg32) bits,
                    o = in(reg32) delta, m = in(reg32) mask, options(nomem, nostack));
            }
            result
        }}
        emulator => { emu::shfl("shfl.sync.down.b32", mask, bits, emu::Source::Down(delta)) }
    };
    T::from_bits64(u64::from(result))
}

/// Whether the predicate holds for any lane of `mask`.
///
/// # PTX
/// `vote.sync.any.pred q, p, mask;`
/// # Hardware support
/// sm_30 and later.
#[track_caller]
#[inline(always)]
pub fn vote_sync_any(mask: u32, predicate: bool) -> bool {
    on! {
        gpu => {
            let result: u32;
            // SAFETY: exchanges predicates between lanes.
            unsafe {
                core::arch::asm!("{{ .reg .pred p, q; setp.ne.u32 p, {p}, 0; vote.sync.any.pred q, p, {m}; selp.u32 {d}, 1, 0, q; }}",
                    d = out(reg32) result, p = in(reg32) u32::from(predicate), m = in(reg32) mask, options(nomem, nostack));
            }
            result != 0
        }
        emulator => { emu::ballot("vote.sync.any", mask, predicate) != 0 }
    }
}

/// Whether the predicate holds for every lane of `mask`.
///
/// # PTX
/// `vote.sync.all.pred q, p, mask;`
/// # Hardware support
/// sm_30 and later.
#[track_caller]
#[inline(always)]
pub fn vote_sync_all(mask: u32, predicate: bool) -> bool {
    on! {
        gpu => {
            let result: u32;
            // SAFETY: exchanges predicates between lanes.
            unsafe {
                core::arch::asm!("{{ .reg .pred p, q; setp.ne.u32 p, {p}, 0; vote.sync.all.pred q, p, {m}; selp.u32 {d}, 1, 0, q; }}",
                    d = out(reg32) result, p = in(reg32) u32::from(predicate), m = in(reg32) mask, options(nomem, nostack));
            }
            result != 0
        }
        emulator => { emu::ballot("vote.sync.all", mask, predicate) == mask }
    }
}

/// The lanes of `mask` whose predicate holds.
///
/// # PTX
/// `vote.sync.ballot.b32 d, p, mask;`
/// # Hardware support
/// sm_30 and later.
#[track_caller]
#[inline(always)]
pub fn vote_sync_ballot(mask: u32, predicate: bool) -> u32 {
    on! {
        gpu => {
            let result: u32;
            // SAFETY: exchanges predicates between lanes.
            unsafe {
                core::arch::asm!("{{ .reg .pred p; setp.ne.u32 p, {p}, 0; vote.sync.ballot.b32 {d}, p, {m}; }}",
                    d = out(reg32) result, p = in(reg32) u32::from(predicate), m = in(reg32) mask, options(nomem, nostack));
            }
            result
        }
        emulator => { emu::ballot("vote.sync.ballot", mask, predicate) }
    }
}

/// The lanes of `mask` that hold the same value as this one.
///
/// # PTX
/// `match.any.sync.b32 d, value, mask;`
/// # Hardware support
/// sm_70 and later.
#[track_caller]
#[inline(always)]
pub fn match_any_sync(mask: u32, value: u32) -> u32 {
    on! {
        gpu => {
            let result: u32;
            // SAFETY: compares registers between lanes.
            unsafe {
                core::arch::asm!("match.any.sync.b32 {d}, {v}, {m};", d = out(reg32) result, v = in(reg32) value,
                    m = in(reg32) mask, options(nomem, nostack));
            }
            result
        }
        emulator => { emu::match_any(mask, value) }
    }
}

/// Whether this lane is the one of `mask` that the hardware elects; the same on every call.
///
/// # PTX
/// `elect.sync _|p, mask;`
/// # Hardware support
/// sm_90 and later.
#[track_caller]
#[inline(always)]
pub fn elect_sync(mask: u32) -> bool {
    on! {
        gpu => {
            let result: u32;
            // SAFETY: elects a lane; no operand but the mask.
            unsafe {
                core::arch::asm!("{{ .reg .pred p; elect.sync _|p, {m}; selp.u32 {d}, 1, 0, p; }}",
                    d = out(reg32) result, m = in(reg32) mask, options(nomem, nostack));
            }
            result != 0
        }
        emulator => { emu::elect(mask) }
    }
}

/// Reductions by `redux.sync`.
macro_rules! redux {
    ($($(#[$doc:meta])* $name:ident = $instruction:literal, $combine:expr;)*) => {$(
        $(#[$doc])*
        ///
        /// # PTX
        #[doc = concat!("`", $instruction, " d, value, mask;`")]
        /// # Hardware support
        /// sm_80 and later.
        #[track_caller]
        #[inline(always)]
        pub fn $name(mask: u32, value: u32) -> u32 {
            on! {
                gpu => {
                    let result: u32;
                    // SAFETY: combines registers of lanes.
                    unsafe {
                        core::arch::asm!(concat!($instruction, " {d}, {v}, {m};"), d = out(reg32) result,
                            v = in(reg32) value, m = in(reg32) mask, options(nomem, nostack));
                    }
                    result
                }
                emulator => { emu::redux($instruction, mask, value, $combine) }
            }
        }
    )*};
}

redux! {
    /// The sum over the lanes of `mask`, modulo 2^32.
    redux_sync_add_u32 = "redux.sync.add.u32", u32::wrapping_add;
    /// The least value among the lanes of `mask`.
    redux_sync_min_u32 = "redux.sync.min.u32", u32::min;
    /// The greatest value among the lanes of `mask`.
    redux_sync_max_u32 = "redux.sync.max.u32", u32::max;
    /// The bits that every lane of `mask` has.
    redux_sync_and_b32 = "redux.sync.and.b32", |x, y| x & y;
    /// The bits that any lane of `mask` has.
    redux_sync_or_b32 = "redux.sync.or.b32", |x, y| x | y;
    /// The bits that an odd number of lanes of `mask` has.
    redux_sync_xor_b32 = "redux.sync.xor.b32", |x, y| x ^ y;
}
