//! SampleAttention: near-lossless sparse attention for long prompts, found at run time.
//!
//! Attention over a long prompt costs time quadratic in its length, but most of its mass lies on few keys. This crate finds
//! them for each head as it runs, with exact softmax statistics of a sample of the queries, and attends to those alone:
//!
//! 1. **sampling**: the exact softmax normaliser of one query row in 8;
//! 2. **reduction**: the attention mass that each of those rows gives each key block;
//! 3. **top-k key selection**: for each sampled row the smallest set that, with a local window and sinks, covers 75 % of it; a block
//!    of 128 queries keeps what any of its 16 sampled rows asks for, which covers far more of most rows;
//! 4. **block-sparse FlashAttention** over the selected set.
//!
//! Nothing is trained or tuned to a model, and every run reports what it kept. After Zhu et al. 2024, "SampleAttention:
//! Near-Lossless Acceleration of Long Context LLM Inference with Adaptive Structured Sparse Attention"; the paper's own rule
//! is [`Policy::paper`].
//!
//! # From the call to the instruction
//! A [`Problem`] says what to compute and a [`Policy`] how much to keep; a [`Plan`] validates both once and states its
//! workspace in bytes. [`Plan::run`] takes [`TensorView`]s over the caller's buffers (f32, f16 or bf16, any strides) and
//! returns a [`Report`]. [`Plan::stages`] drives the four stages one by one, [`Plan::attend`] takes the caller's own
//! [`Selection`], a [`HeadPlan`] has a policy for each head, and [`Plan::dense`] is dense FlashAttention through the same kernel.
//!
//! The backend is the CPU ([`cpu`]): rayon threads over tiles of 128 keys × 32 queries, in AVX-512, AVX2 or portable code.
//! The same call gives the same bits, whatever the number of threads. Dense attention of up to 16 queries cuts the keys into ranges, so
//! that one query uses all cores.
//!
//! [`pipeline`] states the same four stages as launches of GPU kernels. With the feature `emulator`, the module `emulator` runs
//! those kernels on the CPU, instruction by instruction: for tests, far too slow for anything else. With the feature `cuda`,
//! [`cuda`] runs them on a GPU; with `ptx` alone, an engine launches them itself. With the feature `profile`, the module `profile` reads
//! and writes a policy for every head of a model, and `calibrate` finds one.
//!
//! [`squeeze`] is a system of its own beside the four stages: Squeezed Attention, for prompts of which a large part is fixed. Its keys are
//! clustered once, and every query looks up which clusters it attends to. It runs on the CPU.
//!
//! # Conventions
//! Tensors are [batch, heads, length, head_dim]. Query `i` stands at key position `i + k_len - q_len`. Query and key blocks
//! are 128 tokens, counted from key position 0. Log-sum-exp is natural. Rows that see no key give 0 and −∞.

#[cfg(feature = "profile")]
pub mod calibrate;
pub mod cpu;
pub mod cuda;
mod dtype;
#[cfg(feature = "emulator")]
pub mod emulator;
mod error;
mod geometry;
mod head_policies;
mod head_policy;
pub mod pipeline;
mod plan;
mod policy;
mod problem;
#[cfg(feature = "profile")]
pub mod profile;
mod progress;
#[cfg(feature = "ptx")]
pub mod ptx;
mod report;
mod selection;
mod shape;
pub mod squeeze;
mod stage;
mod tensor;
pub mod top_k;
mod varlen;
#[cfg(feature = "profile")]
mod whole_file;

pub use cpu::{MAX_THREADS, Plan, Stages, VarlenPlan, merge};
pub use error::{CudaError, DriverCode, Error, Result};
pub use geometry::{BLOCK, SEGMENT_BLOCKS};
pub use head_policies::HeadPlan;
pub use head_policy::HeadPolicy;
pub use policy::{BREAK_EVEN_TOKENS, Budget, Fallback, Policy, Window};
pub use problem::{Dtype, MAX_HEAD_DIM, MAX_SCALE, Problem};
pub use progress::Progress;
pub use report::{Coverage, HeadPath, HeadReport, Report, RowCoverage, Stage, StageTimes};
pub use selection::{HeadSelection, Selection};
pub use tensor::{Element, Inputs, OutputElement, Outputs, TensorView, TensorViewMut};
pub use varlen::{BlockTable, Indices, SeqLens, VarlenBounds, VarlenInputs};

/// The README's library example compiles and runs.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
