//! The shipped PTX, as `cargo xtask ptx build` made it with rustc's own NVPTX backend.
//!
//! The first lines of each text say which compiler and flags made it, and from which sources.

/// PTX for Ampere and everything after it.
pub const SM_80: &str = include_str!("../ptx/sm_80.ptx");

/// PTX for Hopper alone.
pub const SM_90A: &str = include_str!("../ptx/sm_90a.ptx");
