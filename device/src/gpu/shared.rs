//! Shared memory: where it begins, loads and stores of one, two and four registers, and atomics.

use super::address::{Shared, Word, Word32};

#[cfg(target_arch = "nvptx64")]
core::arch::global_asm!(".extern .shared .align 1024 .b8 dyn_smem[];");

/// The start of the CTA's dynamic shared memory, a multiple of 1024 bytes.
///
/// # PTX
/// `mov.u32 r, dyn_smem;`
/// # Hardware support
/// All.
#[inline(always)]
pub fn dynamic_shared() -> Shared<u8> {
    on! {
        gpu => {
            let address: u32;
            // SAFETY: takes the address of a symbol that `global_asm!` above declares.
            unsafe {
                core::arch::asm!("mov.u32 {a}, dyn_smem;", a = out(reg32) address, options(pure, nomem, nostack));
            }
            Shared::from_address(address)
        }
        emulator => { Shared::from_address(super::emu::memory::SHARED_BASE) }
    }
}

/// Loads one element.
///
/// # PTX
/// `ld.shared.b* d, [address];`
/// # Hardware support
/// All.
#[track_caller]
#[inline(always)]
pub fn ld_shared<T: Word>(address: Shared<T>) -> T {
    T::ld_shared(address.address())
}

/// Loads two elements; the address is a multiple of their size together.
///
/// # PTX
/// `ld.shared.v2.b* d, [address];`
/// # Hardware support
/// All.
#[track_caller]
#[inline(always)]
pub fn ld_shared_v2<T: Word>(address: Shared<T>) -> [T; 2] {
    T::ld_shared_x2(address.address())
}

/// Loads four elements; the address is a multiple of 16 bytes.
///
/// # PTX
/// `ld.shared.v4.b* d, [address];`
/// # Hardware support
/// All.
#[track_caller]
#[inline(always)]
pub fn ld_shared_v4<T: Word32>(address: Shared<T>) -> [T; 4] {
    T::ld_shared_x4(address.address())
}

/// Stores one element.
///
/// # PTX
/// `st.shared.b* [address], value;`
/// # Hardware support
/// All.
#[track_caller]
#[inline(always)]
pub fn st_shared<T: Word>(address: Shared<T>, value: T) {
    T::st_shared(address.address(), value);
}

/// Stores two elements; the address is a multiple of their size together.
///
/// # PTX
/// `st.shared.v2.b* [address], value;`
/// # Hardware support
/// All.
#[track_caller]
#[inline(always)]
pub fn st_shared_v2<T: Word>(address: Shared<T>, value: [T; 2]) {
    T::st_shared_x2(address.address(), value);
}

/// Stores four elements; the address is a multiple of 16 bytes.
///
/// # PTX
/// `st.shared.v4.b* [address], value;`
/// # Hardware support
/// All.
#[track_caller]
#[inline(always)]
pub fn st_shared_v4<T: Word32>(address: Shared<T>, value: [T; 4]) {
    T::st_shared_x4(address.address(), value);
}

/// Atomic operations, relaxed, that return what was there.
macro_rules! atomics {
    ($($(#[$doc:meta])* $name:ident($t:ty, $class:ident, $emulated:ident) = $instruction:literal, $combine:expr;)*) => {$(
        $(#[$doc])*
        ///
        /// # PTX
        #[doc = concat!("`", $instruction, " d, [address], value;`")]
        /// # Hardware support
        /// All.
        #[track_caller]
        #[inline(always)]
        pub fn $name(address: Shared<$t>, value: $t) -> $t {
            on! {
                gpu => {
                    let old: $t;
                    // SAFETY: the address is valid by the launch's contract.
                    unsafe {
                        core::arch::asm!(concat!($instruction, " {d}, [{a}], {v};"), d = out($class) old,
                            a = in(reg32) address.address(), v = in($class) value, options(nostack));
                    }
                    old
                }
                emulator => {
                    let combine: fn($t, $t) -> $t = $combine;
                    let old = super::emu::memory::$emulated(address.address(), $instruction, |old| {
                        super::bits::Bits::to_bits64(combine(super::bits::Bits::from_bits64(old.into()), value)) as _
                    });
                    super::bits::Bits::from_bits64(old.into())
                }
            }
        }
    )*};
}

atomics! {
    /// Adds, modulo 2^32.
    atom_shared_add_u32(u32, reg32, atomic_shared32) = "atom.shared.add.u32", u32::wrapping_add;
    /// Adds, modulo 2^64.
    atom_shared_add_u64(u64, reg64, atomic_shared64) = "atom.shared.add.u64", u64::wrapping_add;
    /// Adds. The order, and so the last bits of a sum, is the hardware's choice.
    atom_shared_add_f32(f32, reg32, atomic_shared32) = "atom.shared.add.f32", |old, value| old + value;
    /// Keeps the lesser.
    atom_shared_min_u32(u32, reg32, atomic_shared32) = "atom.shared.min.u32", u32::min;
    /// Keeps the greater.
    atom_shared_max_u32(u32, reg32, atomic_shared32) = "atom.shared.max.u32", u32::max;
    /// Keeps the lesser.
    atom_shared_min_s32(i32, reg32, atomic_shared32) = "atom.shared.min.s32", i32::min;
    /// Keeps the greater.
    atom_shared_max_s32(i32, reg32, atomic_shared32) = "atom.shared.max.s32", i32::max;
    /// Keeps the lesser.
    atom_shared_min_u64(u64, reg64, atomic_shared64) = "atom.shared.min.u64", u64::min;
    /// Keeps the greater.
    atom_shared_max_u64(u64, reg64, atomic_shared64) = "atom.shared.max.u64", u64::max;
    /// Keeps the bits of both.
    atom_shared_and_b32(u32, reg32, atomic_shared32) = "atom.shared.and.b32", |old, value| old & value;
    /// Keeps the bits of either.
    atom_shared_or_b32(u32, reg32, atomic_shared32) = "atom.shared.or.b32", |old, value| old | value;
    /// Exchanges.
    atom_shared_exch_b32(u32, reg32, atomic_shared32) = "atom.shared.exch.b32", |_, value| value;
    /// Exchanges.
    atom_shared_exch_b64(u64, reg64, atomic_shared64) = "atom.shared.exch.b64", |_, value| value;
}

/// Stores `value` if `compare` is there; returns what was there.
///
/// # PTX
/// `atom.shared.cas.b32 d, [address], compare, value;`
/// # Hardware support
/// All.
#[track_caller]
#[inline(always)]
pub fn atom_shared_cas_b32(address: Shared<u32>, compare: u32, value: u32) -> u32 {
    on! {
        gpu => {
            let old: u32;
            // SAFETY: the address is valid by the launch's contract.
            unsafe {
                core::arch::asm!("atom.shared.cas.b32 {d}, [{a}], {c}, {v};", d = out(reg32) old,
                    a = in(reg32) address.address(), c = in(reg32) compare, v = in(reg32) value, options(nostack));
            }
            old
        }
        emulator => {
            super::emu::memory::atomic_shared32(address.address(), "atom.shared.cas.b32", |old| if old == compare { value } else { old })
        }
    }
}

/// Stores `value` if `compare` is there; returns what was there.
///
/// # PTX
/// `atom.shared.cas.b64 d, [address], compare, value;`
/// # Hardware support
/// All.
#[track_caller]
#[inline(always)]
pub fn atom_shared_cas_b64(address: Shared<u64>, compare: u64, value: u64) -> u64 {
    on! {
        gpu => {
            let old: u64;
            // SAFETY: the address is valid by the launch's contract.
            unsafe {
                core::arch::asm!("atom.shared.cas.b64 {d}, [{a}], {c}, {v};", d = out(reg64) old,
                    a = in(reg32) address.address(), c = in(reg64) compare, v = in(reg64) value, options(nostack));
            }
            old
        }
        emulator => {
            super::emu::memory::atomic_shared64(address.address(), "atom.shared.cas.b64", |old| if old == compare { value } else { old })
        }
    }
}
