//! The four stages as launches of the GPU kernels, written once for every executor of them.
//!
//! ```text
//! for each wave of units that fits the workspace:                    a unit: a segment of a head, or a head
//!     sampling           q, k                  -> row_lse (and statistics of each key block)
//!     reduction          those (or q, k)       -> mass, covered
//!     top_k              mass, covered         -> lists or stripes, kept
//! choose_dense           lists, stripes        -> dense           with Fallback::Auto
//! sparse_flash           q, k, v, all of these -> o, lse          alone where the plan is dense; on Hopper after its schedule
//! ```
//!
//! A [`GpuPlan`] knows every launch before the first runs: sizes and addresses are all that it needs. Launches are data, in the
//! order in which a stream has to run them; none waits for the host, and none relies on memory that the host cleared.
//! A [`Device`] runs them; memory, copies and times are the business of whoever owns it.

mod kernels;
mod launches;
mod lists;
mod operands;
mod plan;
mod readback;
#[cfg(test)]
mod tests;
mod workspace;

pub use kernels::Call;
pub use lists::Lists;
pub use operands::{DeviceMemory, DeviceTensor, Operands};
pub use plan::{
    Arguments, GPU_BREAK_EVEN_TOKENS, GpuPlan, MAX_HEADS, MAX_KEYS, Rescale, WAVE_BYTES,
};
pub use readback::{Outcome, Watch};
pub use sample_attention_device::geometry::Units;
pub use sample_attention_device::gpu::{Global, TensorMap, TensorMapLayout};
pub use sample_attention_device::launch::LaunchShape;
pub use sample_attention_device::launch_bounds::Target;
pub use sample_attention_device::params::TensorArg;
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
