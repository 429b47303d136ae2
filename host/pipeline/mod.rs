//! The four stages as launches of the GPU kernels, written once for every executor of them.
//!
//! ```text
//! write_heads             policies -> a table             where heads differ
//! for each slice of query tiles that fits the workspace:             heads that select key blocks
//!     sampling            q, k -> statistics of each sampled row over each key block
//!     select_rows         those -> lists                  budget of rows, and heads that are not sampled
//!     reduction, top_k    those -> masses -> lists        budget of blocks
//! for each pass over heads that fits the workspace:                  heads that select single keys
//!     sampling            q, k -> row_lse
//!     reduction, top_k    q, k, row_lse -> masses -> keys
//! choose_dense            lists, keys -> dense            with Fallback::Auto, where heads spend their mass as a whole
//! sparse_flash            q, k, v, all of these -> o, lse         alone where the plan is dense; on Hopper after its schedule
//! ```
//!
//! A dense plan with few queries has these in place of `sparse_flash`, for all targets:
//!
//! ```text
//! decode                  q, k, v -> o, lse, or each split's share of them
//! decode_combine          shares -> o, lse                where keys are split
//! ```
//!
//! Where the lists of all query tiles would be too large, attention follows each slice.
//!
//! A [`GpuPlan`] knows every launch before the first runs: sizes and addresses are all that it needs. Launches are data, in the
//! order in which a stream has to run them; none waits for the host, and none relies on memory that the host cleared.
//! A [`Device`] runs them; memory, copies and times are the business of whoever owns it.

mod few_queries;
mod heads;
mod kernels;
mod launches;
mod limits;
mod lists;
mod operands;
mod plan;
mod readback;
mod selecting;
mod slices;
#[cfg(test)]
mod tests;
mod workspace;

pub use kernels::Call;
pub use limits::{GPU_BREAK_EVEN_TOKENS, MAX_HEADS, MAX_KEYS};
pub use lists::Lists;
pub use operands::{DeviceMemory, DeviceTensor, Operands, PackedOperands, PageTable};
pub use plan::{Arguments, GpuPlan, Lengths, Rescale};
pub use readback::{Outcome, Watch};
pub use sample_attention_device::gpu::{Global, TensorMap, TensorMapLayout};
pub use sample_attention_device::launch::LaunchShape;
pub use sample_attention_device::launch_bounds::Target;
pub use sample_attention_device::params::TensorArg;
pub use selecting::WAVE_BYTES;
pub use workspace::{Region, WORKSPACE_ALIGN_BYTES, Workspace};

use crate::report::Stage;

/// One launch of a kernel.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Launch {
    /// The stage that it belongs to.
    pub stage: Stage,
    /// Grid, threads and shared memory.
    pub shape: LaunchShape,
    /// The kernel and its parameters.
    pub call: Call,
}

/// Runs launches one after the other, as a stream does: each sees what the ones before it wrote.
pub trait Device {
    /// Why a launch was not made, or failed.
    type Error;

    /// Which kernels it has loaded.
    fn target(&self) -> Target;

    /// Multiprocessors: as many blocks as a persistent kernel has.
    fn multiprocessors(&self) -> u32;

    /// Encodes a tensor map, as `cuTensorMapEncodeTiled` does: elements of 16 bits, zeros out of bounds. Asked for
    /// [`Target::Sm90a`] alone.
    ///
    /// # Errors
    /// The executor's own.
    fn tensor_map(&mut self, layout: &TensorMapLayout) -> Result<TensorMap, Self::Error>;

    /// Runs one launch, or puts it into the stream.
    ///
    /// # Errors
    /// The executor's own.
    fn launch(&mut self, launch: &Launch) -> Result<(), Self::Error>;
}
