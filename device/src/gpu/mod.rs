//! The hardware, one file a concept: PTX instructions as functions, with their mnemonics as names.
//!
//! Every intrinsic has two bodies side by side: inline PTX on `nvptx64`, and on any other target a
//! call into the emulator, `emu`. `#[cfg(target_arch)]` appears nowhere else in the crate, so a kernel
//! is one source for both.
//!
//! # Contract
//! The intrinsics are safe functions, although a wrong address is as fatal on a GPU as anywhere:
//! the unsafe boundary is the *launch* (an [`entry!`](crate::entry) is an `unsafe` function), and
//! the addresses that a launch hands over are the caller's promise. Inside a kernel each access is
//! proved by the emulator, not by the type system.
//!
//! # What a kernel may rely on
//! * CTAs have at most 1024 threads; all shared memory is dynamic, starts at
//!   [`dynamic_shared`], and is 1024-byte aligned there.
//! * A 16-bit float is its bits in a `u16`; two of them in a `u32`, the lower index in the low half.
//! * An instruction that PTX marks `.aligned` must be reached by all 32 lanes at the same call site.
//!
//! Helpers that wrap intrinsics should be `#[track_caller]` and `#[inline(always)]`: diagnoses then
//! name the line that called the helper, and registers stay registers.
//!
//! # Architectures
//! Intrinsics whose documentation says `sm_90a` may only be called by kernels that are published
//! for it: nothing of them reaches the sm_80 PTX unless an sm_80 entry calls them.

/// The two bodies of an intrinsic: on a GPU, and in the emulator. A host without the emulator never launches, and has neither.
macro_rules! on {
    (gpu => { $($gpu:tt)* } emulator => { $($emulator:tt)* }) => {{
        #[cfg(target_arch = "nvptx64")]
        {
            $($gpu)*
        }
        #[cfg(all(not(target_arch = "nvptx64"), feature = "emulator"))]
        {
            $($emulator)*
        }
        #[cfg(not(any(target_arch = "nvptx64", feature = "emulator")))]
        {
            $crate::gpu::not_launched()
        }
    }};
}

mod address;
mod barrier;
mod bits;
mod bulk;
mod cp_async;
mod fence;
pub mod fragment;
mod global;
mod ldmatrix;
mod math;
mod mbarrier;
mod mma;
mod parameters;
mod registers;
mod shared;
#[cfg(any(test, feature = "smoke"))]
pub mod smoke;
mod tensor_map;
mod thread;
mod trap;
mod warp;
mod wgmma;

pub use address::{Global, Shared, Word, Word32};
pub use barrier::*;
pub use bulk::*;
pub use cp_async::*;
pub use fence::*;
pub use global::*;
pub use ldmatrix::*;
pub use math::*;
pub use mbarrier::*;
pub use mma::*;
pub use parameters::*;
pub use registers::*;
pub use shared::*;
pub use tensor_map::{Swizzle, TensorMap, TensorMapLayout};
pub use thread::*;
pub use trap::trap;
pub use warp::*;
pub use wgmma::*;

#[cfg(all(not(target_arch = "nvptx64"), feature = "emulator"))]
pub mod emu;
#[cfg(not(target_arch = "nvptx64"))]
mod kernel;

#[cfg(not(target_arch = "nvptx64"))]
pub use kernel::Kernel;

/// In place of an instruction, where no kernel can be launched.
#[cfg(not(any(target_arch = "nvptx64", feature = "emulator")))]
pub(crate) fn not_launched() -> ! {
    unreachable!("kernels run on a GPU, or in the emulator")
}

/// Publishes a kernel: `entry!(NAME, ptx_name = path::to::kernel, path::to::Params)`, or
/// `entry!(sm_90a: NAME, …)` for a kernel that uses instructions of sm_90a. With `sm_90a maps:` the
/// parameters hold [tensor maps](TensorMap), and the kernel is a `fn(&Params, &Params)`: the second is
/// the same struct where it has an address, in parameter memory, and is only for references to its
/// maps. (Its other fields are faster to read through the first.)
///
/// The kernel is a plain function `fn(&Params)`. On `nvptx64` this makes the `.entry ptx_name`,
/// whose only parameter is the struct by value; an `sm_90a` one only when compiling for that.
/// On a host it makes `pub const NAME: Kernel<Params>`, which the emulator launches and whose
/// `name` a CUDA executor looks up.
///
/// Under the feature `rust-cuda` the `.entry` is made by `cuda_std`'s `#[kernel]` in place of rustc's own calling
/// convention; the attribute is expanded on a host too, where nothing calls the function, so that its rules are checked.
#[macro_export]
macro_rules! entry {
    ($(#[$meta:meta])* $constant:ident, $name:ident = $kernel:path, $params:ty) => {
        $crate::entry!(@ $(#[$meta])* [all()] [all()] $constant, $name, $kernel, $params);
    };
    (sm_90a: $(#[$meta:meta])* $constant:ident, $name:ident = $kernel:path, $params:ty) => {
        $crate::entry!(@ $(#[$meta])* [target_feature = "sm_90a"]
            [any(not(target_arch = "nvptx64"), target_feature = "compute_90a")]
            $constant, $name, $kernel, $params);
    };
    (sm_90a maps: $(#[$meta:meta])* $constant:ident, $name:ident = $kernel:path, $params:ty) => {
        $crate::entry!(@ $(#[$meta])* [target_feature = "sm_90a"]
            [any(not(target_arch = "nvptx64"), target_feature = "compute_90a")]
            $constant, $name, {
                // Only inside its entry does the parameter have its name.
                #[inline(always)]
                fn with_maps(p: &$params) {
                    $kernel(p, $crate::gpu::in_parameter_memory!(p, $name))
                }
                with_maps
            }, $params);
    };
    (@ $(#[$meta:meta])* [$($rustc:tt)*] [$($rust_cuda:tt)*]
        $constant:ident, $name:ident, $kernel:expr, $params:ty) => {
        $(#[$meta])*
        #[cfg(not(target_arch = "nvptx64"))]
        pub const $constant: $crate::gpu::Kernel<$params> =
            $crate::gpu::Kernel::new(stringify!($name), $kernel);

        // A target that does not publish the kernel would call its source dead code.
        #[cfg(all(target_arch = "nvptx64", not(feature = "rust-cuda"), not(all($($rustc)*))))]
        const _: fn(&$params) = $kernel;

        $(#[$meta])*
        ///
        /// # Safety
        /// Every address in the parameters must be valid for the accesses that the kernel
        /// documents, and the launch must follow its shape contract.
        #[cfg(all(target_arch = "nvptx64", not(feature = "rust-cuda"), $($rustc)*))]
        #[unsafe(no_mangle)]
        pub unsafe extern "ptx-kernel" fn $name(params: $params) {
            ($kernel)(&params)
        }

        $(#[$meta])*
        ///
        /// # Safety
        /// Every address in the parameters must be valid for the accesses that the kernel
        /// documents, and the launch must follow its shape contract.
        #[cfg(all(feature = "rust-cuda", $($rust_cuda)*))]
        #[cuda_std::kernel]
        pub unsafe fn $name(params: $params) {
            ($kernel)(&params)
        }
    };
}
