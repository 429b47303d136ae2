//! The GPU kernels of `sample-attention`: one source that compiles to PTX and, through an emulator
//! of the hardware, runs under `cargo test` on any machine.
//!
//! [`gpu`] is the only module that knows the target. Kernels are written against its intrinsics,
//! are plain functions of one `#[repr(C)]` parameter struct, and are published with
//! [`entry!`](crate::entry). On a host, the feature `emulator` launches them.
#![cfg_attr(target_arch = "nvptx64", no_std)]
#![cfg_attr(target_arch = "nvptx64", feature(abi_ptx, asm_experimental_arch))]
#![cfg_attr(
    not(any(target_arch = "nvptx64", feature = "emulator")),
    allow(
        dead_code,
        unused_imports,
        unused_variables,
        unreachable_code,
        clippy::diverging_sub_expression,
        reason = "intrinsics have no body where no kernel is launched"
    )
)]

pub mod abi;
mod block;
pub mod decode;
pub mod gpu;
pub mod launch;
pub mod launch_bounds;
pub mod merge;
pub mod params;
#[cfg(feature = "ptx")]
pub mod ptx;
pub mod reduction;
pub mod sampling;
pub mod sparse_flash;
pub mod tile;
pub mod top_k;
