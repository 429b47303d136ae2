//! Runs of plans on a device.

use super::device::Device;
use super::executor::Executor;
use super::stream::StreamRef;
use super::timing::Timed;
use crate::error::Result;
use crate::pipeline::{Arguments, GpuPlan, Operands};
use crate::report::StageTimes;

impl Device {
    /// Checks the operands, and puts a run of the plan into the stream. Comes back at once: it allocates nothing, waits for
    /// nothing and reads nothing back, so it may be captured into a graph.
    ///
    /// # Errors
    /// Those of [`GpuPlan::arguments`], [`CudaError::ForeignAddress`](crate::CudaError::ForeignAddress) and [`CudaError::Launch`](crate::CudaError::Launch).
    ///
    /// # Safety
    /// The operands are memory of this device of the size that they say; `o`, `lse` and `workspace` overlap nothing else.
    /// Until the stream has reached the end of the run (of every replay, where it is captured), all of it stays allocated,
    /// nobody else writes it, and nobody else reads what the run writes. The device outlives that too.
    pub unsafe fn run<'s>(
        &self,
        stream: impl Into<StreamRef<'s>>,
        plan: &GpuPlan,
        operands: &Operands,
    ) -> Result<()> {
        let arguments = self.arguments(plan, operands)?;
        // SAFETY: the caller's contract.
        unsafe { self.enqueue(stream, plan, &arguments) }
    }

    /// As [`Device::run`], for arguments that are right: nothing is checked.
    ///
    /// # Errors
    /// [`CudaError::Launch`](crate::CudaError::Launch); what was launched before is still to run.
    ///
    /// # Safety
    /// As [`Device::run`], and the arguments are as [`Arguments`] says.
    pub unsafe fn enqueue<'s>(
        &self,
        stream: impl Into<StreamRef<'s>>,
        plan: &GpuPlan,
        arguments: &Arguments,
    ) -> Result<()> {
        // SAFETY: the caller's contract; the plan's launches follow the kernels' shape contracts.
        let mut executor = unsafe { self.executor(stream.into()) };
        plan.run(&mut executor, arguments)
    }

    /// As [`Device::run`], but waits for the run, and says how long each stage took on the device.
    ///
    /// # Errors
    /// As [`Device::run`], and whatever went wrong on the device.
    ///
    /// # Safety
    /// As [`Device::run`].
    pub unsafe fn run_timed<'s>(
        &self,
        stream: impl Into<StreamRef<'s>>,
        plan: &GpuPlan,
        operands: &Operands,
    ) -> Result<StageTimes> {
        let arguments = self.arguments(plan, operands)?;
        // SAFETY: the caller's contract.
        let mut timed = Timed::new(unsafe { self.executor(stream.into()) });
        plan.run(&mut timed, &arguments)?;
        timed.finish()
    }

    /// An executor of launches on a stream: for whoever drives a plan launch by launch.
    ///
    /// # Safety
    /// Whatever is launched is as [`Device::run`] says.
    pub unsafe fn executor<'a>(&'a self, stream: impl Into<StreamRef<'a>>) -> Executor<'a> {
        Executor::new(self, stream.into())
    }
}
