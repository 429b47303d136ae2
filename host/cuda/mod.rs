//! The pipeline on an NVIDIA GPU, through the driver (feature `cuda`, which brings [cust](https://docs.rs/cust)).
//!
//! ```no_run
//! use sample_attention::cuda::Device;
//! use sample_attention::pipeline::{DeviceTensor, GpuPlan, Operands};
//! use sample_attention::{Budget, Dtype, Policy, Problem, StageTimes};
//! # fn main() -> Result<(), sample_attention::Error> {
//! let device = Device::new(0)?;
//! let problem = Problem::causal(32_768, 128, Dtype::Bf16).with_heads(32, 8);
//! let plan = GpuPlan::new(problem, Policy::of(Budget::Blocks))?;
//!
//! // Memory of any library that uses the driver will do: cust's `&DeviceSlice`, or an address and a length.
//! let bytes = |shape: [usize; 4]| 2 * shape.iter().product::<usize>() as u64;
//! let [q, o] = [device.alloc(bytes(problem.q_shape()))?, device.alloc(bytes(problem.q_shape()))?];
//! let [k, v] = [device.alloc(bytes(problem.kv_shape()))?, device.alloc(bytes(problem.kv_shape()))?];
//! let lse = device.alloc(4 * problem.lse_len() as u64)?;
//! let workspace = device.alloc(plan.workspace_bytes())?;
//! let operands = Operands::new(
//!     DeviceTensor::bhsd(&q, Dtype::Bf16, problem.q_shape())?,
//!     DeviceTensor::bhsd(&k, Dtype::Bf16, problem.kv_shape())?,
//!     DeviceTensor::bhsd(&v, Dtype::Bf16, problem.kv_shape())?,
//!     DeviceTensor::bhsd(&o, Dtype::Bf16, problem.q_shape())?,
//!     lse.memory(),
//!     workspace.memory(),
//! );
//!
//! let stream = device.stream()?; // or cust's `&Stream`, or a pointer: `StreamRef::from_raw`
//! // SAFETY: the memory is this device's, and stays as it is until the stream has run everything.
//! unsafe { device.run(&stream, &plan, &operands) }?;
//! // SAFETY: as above. Reading what was selected waits; a run does not.
//! let outcome = unsafe { device.outcome(&stream, &plan, &workspace, StageTimes::default()) }?;
//! println!("{:.3} of the causal area", outcome.report.mean_density());
//! # Ok(())
//! # }
//! ```
//!
//! A run is launches alone: it allocates nothing, waits for nothing and reads nothing back, so a stream that is being captured
//! takes it, and the graph can be replayed on new data in the same memory. The selection never leaves the device unless it is
//! asked for.
//!
//! # Building and starting
//! cust links the driver's library. To build, a toolkit is found in its usual place, or `CUDA_LIBRARY_PATH` names a folder with
//! a `lib64/` (or `lib64/stubs/`) that holds `libcuda.so`; no compiler of CUDA is needed. A binary built so names `libcuda.so.1`
//! as a library to load at its start: **on a machine without NVIDIA's driver the loader refuses to start it**, before any of
//! its code can report an error. An engine that must start anywhere loads the driver itself, and runs the launches of
//! [`pipeline`](crate::pipeline) with it: the feature `ptx` gives it the kernels, and `examples/raw_door` shows how.
//!
//! Without the feature this module is here all the same, and everything in it refuses with
//! [`CudaError::NotCompiled`](crate::CudaError::NotCompiled).

#[cfg(not(feature = "cuda"))]
mod absent;
#[cfg(feature = "cuda")]
mod addresses;
#[cfg(feature = "cuda")]
mod buffer;
#[cfg(feature = "cuda")]
mod copies;
#[cfg(feature = "cuda")]
mod device;
#[cfg(feature = "cuda")]
mod driver;
#[cfg(feature = "cuda")]
mod executor;
#[cfg(feature = "cuda")]
mod module;
mod own_stream;
#[cfg(feature = "cuda")]
mod runs;
mod stream;
#[cfg(feature = "cuda")]
mod tensor_map;
#[cfg(feature = "cuda")]
mod timing;
#[cfg(any(feature = "cuda", test))]
mod versions;

#[cfg(not(feature = "cuda"))]
pub use absent::{Buffer, Device, Executor, Stream};
#[cfg(feature = "cuda")]
pub use buffer::{Buffer, Stream};
/// The cust that this module is built with: its streams, slices and buffers are taken as they are.
#[cfg(feature = "cuda")]
pub use cust;
#[cfg(feature = "cuda")]
pub use device::Device;
#[cfg(feature = "cuda")]
pub use executor::Executor;
pub use stream::StreamRef;

/// Compute capability from which on the kernels run: `cp.async` and `mma` of bf16 came with it.
pub const NEEDED_CAPABILITY: [u32; 2] = [8, 0];
