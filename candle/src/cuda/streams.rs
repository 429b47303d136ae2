//! What is kept for each stream: memory, plans and kernels.

use std::sync::Arc;
use std::thread::{self, ThreadId};

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaStream, DevicePtrMut, sys};
use candle_core::{CudaDevice, Result, bail};
use sample_attention::pipeline::{DeviceMemory, GpuPlan, Target, WORKSPACE_ALIGN_BYTES};

use super::executor::{Executor, Functions};
use super::plans::Key;

/// What a stream is known by. The handle of the default stream of each thread is one for all of them.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Name {
    device: candle_core::cuda_backend::DeviceId,
    stream: usize,
    thread: Option<ThreadId>,
}

/// `CU_STREAM_PER_THREAD`.
const PER_THREAD: usize = 2;

impl Name {
    fn of(device: &CudaDevice) -> Self {
        let stream = device.cuda_stream().cu_stream().addr();
        Name {
            device: device.id(),
            stream,
            thread: (stream == PER_THREAD).then(|| thread::current().id()),
        }
    }
}

/// The streams that a workspace was used with.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    known: Vec<(Name, StreamState)>,
}

impl Streams {
    /// What is kept for the device's stream.
    pub(super) fn of(&mut self, device: &CudaDevice) -> Result<&mut StreamState> {
        let name = Name::of(device);
        let at = match self.known.iter().position(|(known, _)| *known == name) {
            Some(at) => at,
            None => {
                self.known.push((name, StreamState::new(device)?));
                self.known.len() - 1
            }
        };
        Ok(&mut self.known[at].1)
    }
}

/// What is kept for one stream. What a call works in is free for the next call on the same stream, which runs after it.
#[derive(Debug)]
pub(super) struct StreamState {
    stream: Arc<CudaStream>,
    target: Target,
    multiprocessors: u32,
    memory: Option<CudaSlice<u8>>,
    /// The latest last.
    plans: Vec<(Key, Arc<GpuPlan>)>,
    functions: Functions,
}

/// As many as there are lengths of a prompt's chunks in use at a time.
const PLANS: usize = 64;

impl StreamState {
    fn new(device: &CudaDevice) -> Result<Self> {
        let stream = device.cuda_stream();
        let context = stream.context();
        // The kernels for Hopper run there alone, those for Ampere on every GPU since.
        let target = match context.compute_capability().w()? {
            (9, 0) => Target::Sm90a,
            (major, _) if major >= 8 => Target::Sm80,
            (major, minor) => bail!(
                "the GPU has compute capability {major}.{minor}: the kernels need 8.0 or later, so use the CPU or another GPU"
            ),
        };
        let count = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        let multiprocessors = context.attribute(count).w()? as u32;
        Ok(StreamState {
            stream,
            target,
            multiprocessors,
            memory: None,
            plans: Vec::new(),
            functions: Functions::new(),
        })
    }

    pub(super) fn plan(&mut self, key: &Key) -> Result<Arc<GpuPlan>> {
        if let Some(at) = self.plans.iter().rposition(|(known, _)| known == key) {
            return Ok(self.plans[at].1.clone());
        }
        let plan = Arc::new(key.plan()?);
        if self.plans.len() == PLANS {
            self.plans.remove(0);
        }
        self.plans.push((key.clone(), plan.clone()));
        Ok(plan)
    }

    /// Memory to work in, and the address of `lse_bytes` bytes behind it.
    pub(super) fn memory(&mut self, bytes: u64, lse_bytes: u64) -> Result<(DeviceMemory, u64)> {
        let lse_offset = bytes.next_multiple_of(WORKSPACE_ALIGN_BYTES);
        let needed = (lse_offset + lse_bytes) as usize;
        if self
            .memory
            .as_ref()
            .is_none_or(|memory| memory.len() < needed)
        {
            let idle = sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
            if self.stream.capture_status().w()? != idle {
                bail!(
                    "the workspace must grow to {needed} bytes, which it cannot while a graph is captured: run the same call once before"
                )
            }
            // The old memory is freed in the order of the stream, so after everything that works in it.
            self.memory = None;
            // SAFETY: kernels take a workspace with any contents.
            self.memory = Some(unsafe { self.stream.alloc::<u8>(needed) }.w()?);
        }
        let Some(memory) = &mut self.memory else {
            bail!("the workspace has no memory")
        };
        let (address, _guard) = memory.device_ptr_mut(&self.stream);
        Ok((DeviceMemory { address, bytes }, address + lse_offset))
    }

    pub(super) fn executor<'a>(
        &'a mut self,
        device: &'a CudaDevice,
        stream: &'a CudaStream,
    ) -> Executor<'a> {
        Executor {
            device,
            stream,
            target: self.target,
            multiprocessors: self.multiprocessors,
            functions: &mut self.functions,
        }
    }
}
