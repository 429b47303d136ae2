#![doc = include_str!("../README.md")]
//!
//! # Two families of functions
//! [`flash_attn`] and its four relatives attend to every visible key, under the names and signatures of `candle-flash-attn`, so that a
//! model changes one `use` and no call. [`sample_attn`], [`sample_attn_varlen`] and [`sample_attn_varlen_paged`] are causal and keep
//! what a [`Policy`] selects, or what each head's own [`HeadPolicy`] does; `…_with_lse` return the log-sum-exp of each row besides.
//!
//! # Tensors
//! [batch, tokens, heads, head_dim], as `candle-flash-attn` has them; packed sequences are [tokens, heads, head_dim]. Strides are
//! taken as they are, so a transposed, narrowed or expanded tensor is not copied; only the last dimension has to be contiguous.
//! f32, f16 and bf16 on the CPU, f16 and bf16 on CUDA. Query `i` stands at key position `i + k_len - q_len`: a chunk of a prompt over
//! all keys so far is the same call as a whole prompt.
//!
//! # Memory
//! What a run works in is a [`Workspace`]: grow-only, one for each thread unless [`Workspace::scope`] names another. Once it has
//! grown, a call allocates its output and nothing else of that size.
//!
//! # Gradients
//! There is no backward pass: the result of a tensor that is tracked says so when gradients are asked for.

mod call;
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod flash;
mod op;
mod policies;
mod sample;
mod view;
mod windows;
mod workspace;

pub use flash::{
    flash_attn, flash_attn_varlen, flash_attn_varlen_paged_windowed, flash_attn_varlen_windowed,
    flash_attn_windowed, flash_attn_with_lse,
};
pub use policies::Policies;
pub use sample::{
    sample_attn, sample_attn_varlen, sample_attn_varlen_paged, sample_attn_varlen_paged_with_lse,
    sample_attn_varlen_with_lse, sample_attn_with_lse,
};
#[cfg(feature = "profile")]
pub use sample_attention::profile;
pub use sample_attention::{Budget, Fallback, HeadPolicy, Policy, Report, Window};
pub use workspace::Workspace;

/// The pages of the repository whose examples use this crate.
#[cfg(doctest)]
mod pages {
    #[doc = include_str!("../../docs/integrate.md")]
    struct Integrate;
    #[doc = include_str!("../../docs/mistralrs.md")]
    struct Mistralrs;
}
