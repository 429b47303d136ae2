//! SampleAttention in Rust.
