//! Global memory: loads and stores of one, two and four registers, and atomics.

use super::address::{Global, Word, Word32};

/// Loads one element.
///
/// # PTX
/// `ld.global.b* d, [address];`
/// # Hardware support
/// All.
#[track_caller]
#[inline(always)]
pub fn ld_global<T: Word>(address: Global<T>) -> T {
    T::ld_global(address.address())
}

/// Loads two elements; the address is a multiple of their size together.
///
/// # PTX
/// `ld.global.v2.b* d, [address];`
/// # Hardware support
/// All.
#[track_caller]
#[inline(always)]
pub fn ld_global_v2<T: Word>(address: Global<T>) -> [T; 2] {
    T::ld_global_x2(address.address())
}

/// Loads four elements; the address is a multiple of 16 bytes.
///
/// # PTX
/// `ld.global.v4.b* d, [address];`
/// # Hardware support
/// All.
#[track_caller]
#[inline(always)]
pub fn ld_global_v4<T: Word32>(address: Global<T>) -> [T; 4] {
    T::ld_global_x4(address.address())
}

/// Loads one element that nothing writes during the launch, through the read-only cache.
///
/// # PTX
/// `ld.global.nc.b* d, [address];`
/// # Hardware support
/// All.
#[track_caller]
#[inline(always)]
pub fn ld_global_nc<T: Word>(address: Global<T>) -> T {
    T::ld_global_nc(address.address())
}

/// Loads four elements that nothing writes during the launch; the address is a multiple of 16 bytes.
///
/// # PTX
/// `ld.global.nc.v4.b* d, [address];`
/// # Hardware support
/// All.
#[track_caller]
#[inline(always)]
pub fn ld_global_nc_v4<T: Word32>(address: Global<T>) -> [T; 4] {
    T::ld_global_nc_x4(address.address())
}

/// Stores one element.
///
/// # PTX
/// `st.global.b* [address], value;`
/// # Hardware support
/// All.
#[track_caller]
#[inline(always)]
pub fn st_global<T: Word>(address: Global<T>, value: T) {
    T::st_global(address.address(), value);
}

/// Stores two elements; the address is a multiple of their size together.
///
/// # PTX
/// `st.global.v2.b* [address], value;`
/// # Hardware support
/// All.
#[track_caller]
#[inline(always)]
pub fn st_global_v2<T: Word>(address: Global<T>, value: [T; 2]) {
    T::st_global_x2(address.address(), value);
}

/// Stores four elements; the address is a multiple of 16 bytes.
///
/// # PTX
/// `st.global.v4.b* [address], value;`
/// # Hardware support
/// All.
#[track_caller]
#[inline(always)]
pub fn st_global_v4<T: Word32>(address: Global<T>, value: [T; 4]) {
    T::st_global_x4(address.address(), value);
}

/// Loads with acquire semantics at device scope: what the releasing thread wrote before is visible
/// after. For flags that another CTA sets.
///
/// # PTX
/// `ld.acquire.gpu.global.u32 d, [address];`
/// # Hardware support
/// sm_70 and later.
#[track_caller]
#[inline(always)]
pub fn ld_acquire_gpu_global_u32(address: Global<u32>) -> u32 {
    on! {
        gpu => {
            let value: u32;
            // SAFETY: the address is valid by the launch's contract.
            unsafe {
                core::arch::asm!("ld.acquire.gpu.global.u32 {v}, [{a}];", v = out(reg32) value,
                    a = in(reg64) address.address(), options(nostack));
            }
            value
        }
        emulator => { super::emu::memory::poll_global(address.address(), "ld.acquire.gpu.global.u32") }
    }
}

/// Stores with release semantics at device scope: who acquires the value sees what this thread
/// wrote before.
///
/// # PTX
/// `st.release.gpu.global.u32 [address], value;`
/// # Hardware support
/// sm_70 and later.
#[track_caller]
#[inline(always)]
pub fn st_release_gpu_global_u32(address: Global<u32>, value: u32) {
    on! {
        gpu => {
            // SAFETY: the address is valid by the launch's contract.
            unsafe {
                core::arch::asm!("st.release.gpu.global.u32 [{a}], {v};", a = in(reg64) address.address(),
                    v = in(reg32) value, options(nostack));
            }
        }
        emulator => {
            std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
            super::emu::memory::store_global(address.address(), [value], "st.release.gpu.global.u32")
        }
    }
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
        pub fn $name(address: Global<$t>, value: $t) -> $t {
            on! {
                gpu => {
                    let old: $t;
                    // SAFETY: the address is valid by the launch's contract.
                    unsafe {
                        core::arch::asm!(concat!($instruction, " {d}, [{a}], {v};"), d = out($class) old,
                            a = in(reg64) address.address(), v = in($class) value, options(nostack));
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
    atom_global_add_u32(u32, reg32, atomic_global32) = "atom.global.add.u32", u32::wrapping_add;
    /// Adds, modulo 2^64.
    atom_global_add_u64(u64, reg64, atomic_global64) = "atom.global.add.u64", u64::wrapping_add;
    /// Adds. The order, and so the last bits of a sum, is the hardware's choice.
    atom_global_add_f32(f32, reg32, atomic_global32) = "atom.global.add.f32", |old, value| old + value;
    /// Keeps the lesser.
    atom_global_min_u32(u32, reg32, atomic_global32) = "atom.global.min.u32", u32::min;
    /// Keeps the greater.
    atom_global_max_u32(u32, reg32, atomic_global32) = "atom.global.max.u32", u32::max;
    /// Keeps the lesser.
    atom_global_min_s32(i32, reg32, atomic_global32) = "atom.global.min.s32", i32::min;
    /// Keeps the greater.
    atom_global_max_s32(i32, reg32, atomic_global32) = "atom.global.max.s32", i32::max;
    /// Keeps the lesser.
    atom_global_min_u64(u64, reg64, atomic_global64) = "atom.global.min.u64", u64::min;
    /// Keeps the greater.
    atom_global_max_u64(u64, reg64, atomic_global64) = "atom.global.max.u64", u64::max;
    /// Keeps the bits of both.
    atom_global_and_b32(u32, reg32, atomic_global32) = "atom.global.and.b32", |old, value| old & value;
    /// Keeps the bits of either.
    atom_global_or_b32(u32, reg32, atomic_global32) = "atom.global.or.b32", |old, value| old | value;
    /// Exchanges.
    atom_global_exch_b32(u32, reg32, atomic_global32) = "atom.global.exch.b32", |_, value| value;
    /// Exchanges.
    atom_global_exch_b64(u64, reg64, atomic_global64) = "atom.global.exch.b64", |_, value| value;
}

/// Stores `value` if `compare` is there; returns what was there.
///
/// # PTX
/// `atom.global.cas.b32 d, [address], compare, value;`
/// # Hardware support
/// All.
#[track_caller]
#[inline(always)]
pub fn atom_global_cas_b32(address: Global<u32>, compare: u32, value: u32) -> u32 {
    on! {
        gpu => {
            let old: u32;
            // SAFETY: the address is valid by the launch's contract.
            unsafe {
                core::arch::asm!("atom.global.cas.b32 {d}, [{a}], {c}, {v};", d = out(reg32) old,
                    a = in(reg64) address.address(), c = in(reg32) compare, v = in(reg32) value, options(nostack));
            }
            old
        }
        emulator => {
            super::emu::memory::atomic_global32(address.address(), "atom.global.cas.b32", |old| if old == compare { value } else { old })
        }
    }
}

/// Stores `value` if `compare` is there; returns what was there.
///
/// # PTX
/// `atom.global.cas.b64 d, [address], compare, value;`
/// # Hardware support
/// All.
#[track_caller]
#[inline(always)]
pub fn atom_global_cas_b64(address: Global<u64>, compare: u64, value: u64) -> u64 {
    on! {
        gpu => {
            let old: u64;
            // SAFETY: the address is valid by the launch's contract.
            unsafe {
                core::arch::asm!("atom.global.cas.b64 {d}, [{a}], {c}, {v};", d = out(reg64) old,
                    a = in(reg64) address.address(), c = in(reg64) compare, v = in(reg64) value, options(nostack));
            }
            old
        }
        emulator => {
            super::emu::memory::atomic_global64(address.address(), "atom.global.cas.b64", |old| if old == compare { value } else { old })
        }
    }
}
