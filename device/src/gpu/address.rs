//! Addresses in the two memories that kernels name, and the words that live there.

use core::marker::PhantomData;

use super::bits::Bits;

/// An address in global memory of elements `T`, as a launch passes it: 8 bytes, `#[repr(transparent)]`.
#[repr(transparent)]
pub struct Global<T> {
    address: u64,
    element: PhantomData<*mut T>,
}

/// An address in the shared memory of the CTA (`.shared::cta`, 32 bits).
#[repr(transparent)]
pub struct Shared<T> {
    address: u32,
    element: PhantomData<*mut T>,
}

// SAFETY: both are numbers; what they name is only reached through the intrinsics.
unsafe impl<T> Send for Global<T> {}
// SAFETY: as for `Send`.
unsafe impl<T> Sync for Global<T> {}

macro_rules! address_space {
    ($space:ident, $int:ty, $offset:ty) => {
        impl<T> Clone for $space<T> {
            #[inline(always)]
            fn clone(&self) -> Self {
                *self
            }
        }

        impl<T> Copy for $space<T> {}

        impl<T> core::fmt::Debug for $space<T> {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                write!(f, concat!(stringify!($space), "({:#x})"), self.address)
            }
        }

        impl<T> $space<T> {
            /// The element at byte address `address`.
            #[inline(always)]
            pub const fn from_address(address: $int) -> Self {
                Self {
                    address,
                    element: PhantomData,
                }
            }

            /// The byte address.
            #[inline(always)]
            pub const fn address(self) -> $int {
                self.address
            }

            /// `elements` elements further.
            #[inline(always)]
            #[allow(
                clippy::should_implement_trait,
                reason = "named as on a raw pointer, whose `add` takes a count too"
            )]
            pub const fn add(self, elements: $offset) -> Self {
                self.byte_add(elements.wrapping_mul(size_of::<T>() as $offset))
            }

            /// `bytes` bytes further.
            #[inline(always)]
            pub const fn byte_add(self, bytes: $offset) -> Self {
                Self::from_address(self.address.wrapping_add(bytes))
            }

            /// The same address, of elements of another type.
            #[inline(always)]
            pub const fn cast<U>(self) -> $space<U> {
                $space::from_address(self.address)
            }
        }
    };
}

address_space!(Global, u64, u64);
address_space!(Shared, u32, u32);

impl<T> Global<T> {
    /// The null address, for optional buffers.
    pub const NULL: Self = Self::from_address(0);

    /// Whether this is the null address.
    #[inline(always)]
    pub const fn is_null(self) -> bool {
        self.address == 0
    }
}

mod sealed {
    pub trait Sealed {}
}

/// A value that one register holds: what `ld` and `st` move.
pub trait Word: Bits + Send + Sync + 'static + sealed::Sealed {
    #[doc(hidden)]
    fn ld_global(address: u64) -> Self;
    #[doc(hidden)]
    fn ld_global_nc(address: u64) -> Self;
    #[doc(hidden)]
    fn st_global(address: u64, value: Self);
    #[doc(hidden)]
    fn ld_shared(address: u32) -> Self;
    #[doc(hidden)]
    fn st_shared(address: u32, value: Self);
    #[doc(hidden)]
    fn ld_global_x2(address: u64) -> [Self; 2];
    #[doc(hidden)]
    fn st_global_x2(address: u64, value: [Self; 2]);
    #[doc(hidden)]
    fn ld_shared_x2(address: u32) -> [Self; 2];
    #[doc(hidden)]
    fn st_shared_x2(address: u32, value: [Self; 2]);
}

/// A 32-bit [`Word`]: what the four-element vector accesses move.
pub trait Word32: Word {
    #[doc(hidden)]
    fn ld_global_x4(address: u64) -> [Self; 4];
    #[doc(hidden)]
    fn ld_global_nc_x4(address: u64) -> [Self; 4];
    #[doc(hidden)]
    fn st_global_x4(address: u64, value: [Self; 4]);
    #[doc(hidden)]
    fn ld_shared_x4(address: u32) -> [Self; 4];
    #[doc(hidden)]
    fn st_shared_x4(address: u32, value: [Self; 4]);
}

/// One `ld` of `$n` registers from `$space`.
#[cfg(target_arch = "nvptx64")]
macro_rules! load {
    ($instruction:expr, $t:ty, $class:ident, $address:expr, $address_class:ident) => {{
        let value: $t;
        // SAFETY: the address is valid by the launch's contract; the load has no other effect.
        unsafe {
            core::arch::asm!(concat!($instruction, " {v}, [{a}];"), v = out($class) value,
                a = in($address_class) $address, options(pure, readonly, nostack));
        }
        value
    }};
    (x2 $instruction:expr, $t:ty, $class:ident, $address:expr, $address_class:ident) => {{
        let (x, y): ($t, $t);
        // SAFETY: as for the scalar load.
        unsafe {
            core::arch::asm!(concat!($instruction, " {{{x}, {y}}}, [{a}];"), x = out($class) x, y = out($class) y,
                a = in($address_class) $address, options(pure, readonly, nostack));
        }
        [x, y]
    }};
    (x4 $instruction:expr, $t:ty, $class:ident, $address:expr, $address_class:ident) => {{
        let (x, y, z, w): ($t, $t, $t, $t);
        // SAFETY: as for the scalar load.
        unsafe {
            core::arch::asm!(concat!($instruction, " {{{x}, {y}, {z}, {w}}}, [{a}];"),
                x = out($class) x, y = out($class) y, z = out($class) z, w = out($class) w,
                a = in($address_class) $address, options(pure, readonly, nostack));
        }
        [x, y, z, w]
    }};
}

/// One `st` of `$n` registers to `$space`.
#[cfg(target_arch = "nvptx64")]
macro_rules! store {
    ($instruction:expr, $class:ident, $address:expr, $address_class:ident, $value:expr) => {{
        // SAFETY: the address is valid by the launch's contract.
        unsafe {
            core::arch::asm!(concat!($instruction, " [{a}], {v};"), v = in($class) $value,
                a = in($address_class) $address, options(nostack));
        }
    }};
    (x2 $instruction:expr, $class:ident, $address:expr, $address_class:ident, $value:expr) => {{
        let [x, y] = $value;
        // SAFETY: as for the scalar store.
        unsafe {
            core::arch::asm!(concat!($instruction, " [{a}], {{{x}, {y}}};"), x = in($class) x, y = in($class) y,
                a = in($address_class) $address, options(nostack));
        }
    }};
    (x4 $instruction:expr, $class:ident, $address:expr, $address_class:ident, $value:expr) => {{
        let [x, y, z, w] = $value;
        // SAFETY: as for the scalar store.
        unsafe {
            core::arch::asm!(concat!($instruction, " [{a}], {{{x}, {y}, {z}, {w}}};"),
                x = in($class) x, y = in($class) y, z = in($class) z, w = in($class) w,
                a = in($address_class) $address, options(nostack));
        }
    }};
}

macro_rules! word {
    ($t:ty, $class:ident, $suffix:literal) => {
        impl sealed::Sealed for $t {}

        impl Word for $t {
            #[inline(always)]
            #[track_caller]
            fn ld_global(address: u64) -> Self {
                on! {
                    gpu => { load!(concat!("ld.global.", $suffix), $t, $class, address, reg64) }
                    emulator => { let [v] = super::emu::memory::load_global(address, concat!("ld.global.", $suffix)); v }
                }
            }

            #[inline(always)]
            #[track_caller]
            fn ld_global_nc(address: u64) -> Self {
                on! {
                    gpu => { load!(concat!("ld.global.nc.", $suffix), $t, $class, address, reg64) }
                    emulator => { let [v] = super::emu::memory::load_global(address, concat!("ld.global.nc.", $suffix)); v }
                }
            }

            #[inline(always)]
            #[track_caller]
            fn st_global(address: u64, value: Self) {
                on! {
                    gpu => { store!(concat!("st.global.", $suffix), $class, address, reg64, value) }
                    emulator => { super::emu::memory::store_global(address, [value], concat!("st.global.", $suffix)) }
                }
            }

            #[inline(always)]
            #[track_caller]
            fn ld_shared(address: u32) -> Self {
                on! {
                    gpu => { load!(concat!("ld.shared.", $suffix), $t, $class, address, reg32) }
                    emulator => { let [v] = super::emu::memory::load_shared(address, concat!("ld.shared.", $suffix)); v }
                }
            }

            #[inline(always)]
            #[track_caller]
            fn st_shared(address: u32, value: Self) {
                on! {
                    gpu => { store!(concat!("st.shared.", $suffix), $class, address, reg32, value) }
                    emulator => { super::emu::memory::store_shared(address, [value], concat!("st.shared.", $suffix)) }
                }
            }

            #[inline(always)]
            #[track_caller]
            fn ld_global_x2(address: u64) -> [Self; 2] {
                on! {
                    gpu => { load!(x2 concat!("ld.global.v2.", $suffix), $t, $class, address, reg64) }
                    emulator => { super::emu::memory::load_global(address, concat!("ld.global.v2.", $suffix)) }
                }
            }

            #[inline(always)]
            #[track_caller]
            fn st_global_x2(address: u64, value: [Self; 2]) {
                on! {
                    gpu => { store!(x2 concat!("st.global.v2.", $suffix), $class, address, reg64, value) }
                    emulator => { super::emu::memory::store_global(address, value, concat!("st.global.v2.", $suffix)) }
                }
            }

            #[inline(always)]
            #[track_caller]
            fn ld_shared_x2(address: u32) -> [Self; 2] {
                on! {
                    gpu => { load!(x2 concat!("ld.shared.v2.", $suffix), $t, $class, address, reg32) }
                    emulator => { super::emu::memory::load_shared(address, concat!("ld.shared.v2.", $suffix)) }
                }
            }

            #[inline(always)]
            #[track_caller]
            fn st_shared_x2(address: u32, value: [Self; 2]) {
                on! {
                    gpu => { store!(x2 concat!("st.shared.v2.", $suffix), $class, address, reg32, value) }
                    emulator => { super::emu::memory::store_shared(address, value, concat!("st.shared.v2.", $suffix)) }
                }
            }
        }
    };
}

macro_rules! word32 {
    ($t:ty) => {
        impl Word32 for $t {
            #[inline(always)]
            #[track_caller]
            fn ld_global_x4(address: u64) -> [Self; 4] {
                on! {
                    gpu => { load!(x4 "ld.global.v4.b32", $t, reg32, address, reg64) }
                    emulator => { super::emu::memory::load_global(address, "ld.global.v4.b32") }
                }
            }

            #[inline(always)]
            #[track_caller]
            fn ld_global_nc_x4(address: u64) -> [Self; 4] {
                on! {
                    gpu => { load!(x4 "ld.global.nc.v4.b32", $t, reg32, address, reg64) }
                    emulator => { super::emu::memory::load_global(address, "ld.global.nc.v4.b32") }
                }
            }

            #[inline(always)]
            #[track_caller]
            fn st_global_x4(address: u64, value: [Self; 4]) {
                on! {
                    gpu => { store!(x4 "st.global.v4.b32", reg32, address, reg64, value) }
                    emulator => { super::emu::memory::store_global(address, value, "st.global.v4.b32") }
                }
            }

            #[inline(always)]
            #[track_caller]
            fn ld_shared_x4(address: u32) -> [Self; 4] {
                on! {
                    gpu => { load!(x4 "ld.shared.v4.b32", $t, reg32, address, reg32) }
                    emulator => { super::emu::memory::load_shared(address, "ld.shared.v4.b32") }
                }
            }

            #[inline(always)]
            #[track_caller]
            fn st_shared_x4(address: u32, value: [Self; 4]) {
                on! {
                    gpu => { store!(x4 "st.shared.v4.b32", reg32, address, reg32, value) }
                    emulator => { super::emu::memory::store_shared(address, value, "st.shared.v4.b32") }
                }
            }
        }
    };
}

// `u8` has no 8-bit register: `ld.u8` widens into a 16-bit one.
word!(u8, reg16, "u8");
word!(u16, reg16, "b16");
word!(u32, reg32, "b32");
word!(i32, reg32, "b32");
word!(f32, reg32, "b32");
word!(u64, reg64, "b64");
word!(i64, reg64, "b64");
word!(f64, reg64, "b64");
word32!(u32);
word32!(i32);
word32!(f32);
