//! The parameters of a kernel where they have an address.
//!
//! A kernel's parameters lie in constant memory. The compiler loads its fields from there without ever
//! taking an address, and copies the whole struct to local memory where one is taken. Bulk tensor copies
//! take the address of a map in parameter, constant or global memory, so the macro takes it from
//! the name that the parameter has in PTX.

/// `&Params` in parameter memory, from the kernel's `p: &Params` and its PTX name. (Through a macro, for
/// the name is part of the instruction.)
///
/// # PTX
/// `mov.b64 t, name_param_0; cvta.param.u64 address, t;` (PTX 7.7)
/// # Hardware support
/// sm_70 and later.
#[doc(hidden)]
#[macro_export]
#[cfg(target_arch = "nvptx64")]
macro_rules! in_parameter_memory {
    ($params:ident, $name:ident) => {{
        let address: u64;
        // SAFETY: an `entry!` has one parameter, which PTX calls so.
        unsafe {
            core::arch::asm!(
                concat!("{{ .reg .b64 t; mov.b64 t, ", stringify!($name), "_param_0; cvta.param.u64 {a}, t; }}"),
                a = out(reg64) address, options(pure, nomem, nostack));
        }
        // SAFETY: it is what the parameter is a copy of, or the same.
        unsafe { $crate::gpu::at_address_of($params, address) }
    }};
}

/// On a host every parameter has an address.
#[doc(hidden)]
#[macro_export]
#[cfg(not(target_arch = "nvptx64"))]
macro_rules! in_parameter_memory {
    ($params:ident, $name:ident) => {
        $params
    };
}

pub use in_parameter_memory;

/// The value at `address`, of the type of `like`.
///
/// # Safety
/// There is one, as long as `like` lives.
#[doc(hidden)]
#[cfg(target_arch = "nvptx64")]
#[inline(always)]
pub unsafe fn at_address_of<P>(_like: &P, address: u64) -> &P {
    // SAFETY: the caller's promise.
    unsafe { &*(address as *const P) }
}
