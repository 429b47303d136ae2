//! The GPU kernels of `sample-attention`: one `no_std` source that compiles to PTX and, through an
//! emulator of the hardware, runs under `cargo test` on any machine.
//!
//! Empty for now: the algorithm runs on the CPU backend of the `sample-attention` crate, whose
//! stages (sampling, reduction, top-k key selection, block-sparse FlashAttention) the kernels will mirror.
#![no_std]
