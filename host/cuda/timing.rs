//! Stage times as the device's own clock gives them.

use std::ptr;
use std::time::Duration;

use super::Device;
use super::driver::{self, RawEvent, check};
use super::executor::Executor;
use super::stream::StreamRef;
use crate::error::{CudaError, Error, Result};
use crate::pipeline::{self, Launch, Target, TensorMap, TensorMapLayout};
use crate::report::{Stage, StageTimes};

/// An executor that records an event wherever a launch belongs to another stage than the one before it.
pub(super) struct Timed<'a> {
    executor: Executor<'a>,
    /// Where each stage begins.
    begins: Vec<(Stage, Event<'a>)>,
}

impl<'a> Timed<'a> {
    pub(super) fn new(executor: Executor<'a>) -> Self {
        Timed {
            executor,
            begins: Vec::new(),
        }
    }

    /// Waits for everything that was launched, and adds up the times between the events.
    pub(super) fn finish(self) -> Result<StageTimes> {
        let mut times = StageTimes::default();
        let _current = self.executor.device().current()?;
        let mut end = Event::record(self.executor.device(), self.executor.stream())?;
        end.wait()?;
        for (stage, begin) in self.begins.into_iter().rev() {
            times.add(stage, begin.until(&end)?);
            end = begin;
        }
        Ok(times)
    }
}

impl pipeline::Device for Timed<'_> {
    type Error = Error;

    fn target(&self) -> Target {
        self.executor.device().target()
    }

    fn multiprocessors(&self) -> u32 {
        self.executor.device().multiprocessors()
    }

    fn tensor_map(&mut self, layout: &TensorMapLayout) -> Result<TensorMap> {
        self.executor.device().tensor_map(layout)
    }

    fn launch(&mut self, launch: &Launch) -> Result<()> {
        if self.begins.last().map(|(stage, _)| *stage) != Some(launch.stage) {
            let _current = self.executor.device().current()?;
            let event = Event::record(self.executor.device(), self.executor.stream())?;
            self.begins.push((launch.stage, event));
        }
        self.executor.launch(launch)
    }
}

/// A point in a stream. cust's own can only be recorded in a stream of cust's.
struct Event<'a> {
    raw: RawEvent,
    device: &'a Device,
}

impl<'a> Event<'a> {
    /// The point that the stream has got to once everything in it now has run; the device's context is current.
    fn record(device: &'a Device, stream: StreamRef<'_>) -> Result<Self, CudaError> {
        let mut event = Event {
            raw: RawEvent(ptr::null_mut()),
            device,
        };
        // SAFETY: the pointer is to live memory.
        check("cuEventCreate", unsafe {
            driver::cuEventCreate(&raw mut event.raw, 0)
        })?;
        // SAFETY: the event and the stream are of this context, and alive.
        check("cuEventRecord", unsafe {
            driver::cuEventRecord(event.raw, stream.as_raw())
        })?;
        Ok(event)
    }

    fn wait(&self) -> Result<(), CudaError> {
        // SAFETY: the event is alive.
        check("cuEventSynchronize", unsafe {
            driver::cuEventSynchronize(self.raw)
        })
    }

    /// Time to a later event that was waited for.
    fn until(&self, end: &Event<'_>) -> Result<Duration, CudaError> {
        let mut milliseconds = 0.0;
        // SAFETY: both events are alive, and were recorded.
        check("cuEventElapsedTime", unsafe {
            driver::cuEventElapsedTime(&raw mut milliseconds, self.raw, end.raw)
        })?;
        Ok(Duration::from_secs_f64(
            f64::from(milliseconds.max(0.0)) / 1e3,
        ))
    }
}

impl Drop for Event<'_> {
    fn drop(&mut self) {
        if self.raw.0.is_null() {
            return;
        }
        if let Ok(_current) = self.device.current() {
            // SAFETY: nobody uses the event any more; the driver keeps it until the stream is past it.
            unsafe { driver::cuEventDestroy_v2(self.raw) };
        }
    }
}
