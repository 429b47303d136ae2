//! What runs work in, and the plans that they have made.

use std::cell::RefCell;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::Result;
use sample_attention::Report;

use crate::cpu;

/// The memory that calls work in, and their plans: it grows to what the largest call needs, and is kept for the next.
///
/// Every thread has one of its own, which the functions of this crate use by themselves. [`Workspace::scope`] names another: one to
/// be dropped together with a model, or to read [`Workspace::take_report`] from. Clones share the memory. Calls on several threads at
/// a time may share one too: on the CPU each of them then takes a buffer of its own, and no lock is held while it runs.
///
/// On CUDA devices it has memory for each stream that it was used with, so calls on different streams do not meet in it. A thread
/// that uses candle's per-thread default stream needs a workspace of its own. During the capture of a graph it cannot grow: run the
/// same call once before.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use candle_sample_attention::{Policy, Workspace, sample_attn};
/// # fn main() -> candle_core::Result<()> {
/// let q = Tensor::ones((1, 1200, 4, 64), DType::F32, &Device::Cpu)?;
/// let kv = Tensor::ones((1, 1200, 2, 64), DType::F32, &Device::Cpu)?;
/// let workspace = Workspace::new();
/// workspace.scope(|| sample_attn(&q, &kv, &kv, 0.125, &Policy::default()))?;
/// let report = workspace.take_report().expect("the CPU reports");
/// assert_eq!(report.heads.len(), 4);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct Workspace {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Buffers that no call works in.
    idle: Vec<Vec<u8>>,
    plans: cpu::Plans,
    report: Option<Report>,
    #[cfg(feature = "cuda")]
    gpu: crate::cuda::Streams,
}

thread_local! {
    /// The workspaces of the scopes that the thread is in, the innermost last, above its own.
    static CURRENT: RefCell<Vec<Workspace>> = RefCell::new(vec![Workspace::new()]);
}

/// Leaves a scope, by way of a panic too.
struct Leave;

impl Drop for Leave {
    fn drop(&mut self) {
        CURRENT.with_borrow_mut(|scopes| scopes.pop());
    }
}

impl Workspace {
    /// A workspace without any memory.
    pub fn new() -> Self {
        Workspace::default()
    }

    /// Runs `f`, during which the calls of this thread work in this workspace.
    pub fn scope<R>(&self, f: impl FnOnce() -> R) -> R {
        CURRENT.with_borrow_mut(|scopes| scopes.push(self.clone()));
        let _leave = Leave;
        f()
    }

    /// The workspace that a call of this thread works in.
    pub(crate) fn current() -> Self {
        CURRENT.with_borrow(|scopes| scopes[scopes.len() - 1].clone())
    }

    /// Bytes of host memory that it holds while no call works in it.
    pub fn host_bytes(&self) -> usize {
        self.lock().idle.iter().map(Vec::len).sum()
    }

    /// What the last call on CPU tensors kept, once. A call on CUDA tensors leaves none: to read it back would mean to wait for the GPU.
    pub fn take_report(&self) -> Option<Report> {
        self.lock().report.take()
    }

    pub(crate) fn set_report(&self, report: Option<Report>) {
        self.lock().report = report;
    }

    /// The plan of a key.
    pub(crate) fn plan(&self, key: &cpu::Key) -> Result<Arc<cpu::CpuPlan>> {
        if let Some(plan) = self.lock().plans.get(key) {
            return Ok(plan);
        }
        // Not under the lock: plans take time, and it is right to make one twice.
        let plan = Arc::new(cpu::CpuPlan::new(key)?);
        self.lock().plans.insert(key.clone(), plan.clone());
        Ok(plan)
    }

    /// Runs `f` on `bytes` bytes with any contents.
    pub(crate) fn with_bytes<R>(&self, bytes: usize, f: impl FnOnce(&mut [u8]) -> R) -> R {
        // No lock is held while it runs: a thread of the rayon pool that waits in `f` may come back here with other work.
        let largest = {
            let idle = &mut self.lock().idle;
            let largest = (0..idle.len()).max_by_key(|&at| idle[at].len());
            largest.map(|at| idle.swap_remove(at))
        };
        // A new buffer's pages come from the system as they are needed; growing the old one would copy it.
        let large_enough = largest.filter(|buffer| buffer.len() >= bytes);
        let mut buffer = large_enough.unwrap_or_else(|| vec![0; bytes]);
        let result = f(&mut buffer[..bytes]);
        self.lock().idle.push(buffer);
        result
    }

    #[cfg(feature = "cuda")]
    pub(crate) fn gpu<R>(&self, f: impl FnOnce(&mut crate::cuda::Streams) -> R) -> R {
        f(&mut self.lock().gpu)
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        // What is inside holds at every moment.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
