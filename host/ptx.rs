//! The PTX of the kernels: the shipped texts, or with feature `rust-cuda` what rust-cuda made of the same sources.

#[cfg(not(feature = "rust-cuda"))]
pub use sample_attention_device::ptx::{SM_80, SM_90A};

/// PTX for Ampere and everything after it, compiled by rust-cuda.
#[cfg(feature = "rust-cuda")]
pub const SM_80: &str = include_str!(env!("SAMPLE_ATTENTION_PTX"));

/// rust-cuda compiles for Ampere alone, and Hopper runs that.
#[cfg(feature = "rust-cuda")]
pub const SM_90A: &str = SM_80;
