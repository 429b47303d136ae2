//! The same doors in a build without the feature `cuda`: none can be opened, so what is behind them cannot be reached.

use std::convert::Infallible;
use std::ffi::c_void;
use std::marker::PhantomData;

use sample_attention_device::gpu::{TensorMap, TensorMapLayout};

use super::StreamRef;
use crate::error::{CudaError, Error, Result};
use crate::pipeline::{self, Arguments, DeviceMemory, GpuPlan, Launch, Operands, Outcome, Target};
use crate::report::StageTimes;
use crate::selection::Selection;

/// A GPU, with the feature `cuda`. Without it there is none.
#[derive(Debug)]
pub struct Device(Infallible);

/// An executor of launches, with the feature `cuda`.
#[derive(Clone, Copy, Debug)]
pub struct Executor<'a>(Infallible, PhantomData<&'a Device>);

/// Bytes of a device, with the feature `cuda`.
#[derive(Debug)]
pub struct Buffer<'a>(Infallible, PhantomData<&'a Device>);

/// A stream of a device, with the feature `cuda`.
#[derive(Debug)]
pub struct Stream<'a>(Infallible, PhantomData<&'a Device>);

#[allow(
    clippy::missing_safety_doc,
    clippy::missing_errors_doc,
    missing_docs,
    reason = "nobody has a device to call them on; they are documented where they do something"
)]
impl Device {
    /// Refuses.
    ///
    /// # Errors
    /// [`CudaError::NotCompiled`].
    pub fn count() -> Result<u32> {
        Err(CudaError::NotCompiled.into())
    }

    /// Refuses.
    ///
    /// # Errors
    /// [`CudaError::NotCompiled`].
    pub fn new(_ordinal: u32) -> Result<Self> {
        Err(CudaError::NotCompiled.into())
    }

    /// Refuses.
    ///
    /// # Errors
    /// [`CudaError::NotCompiled`].
    pub fn with_target(_ordinal: u32, _target: Target) -> Result<Self> {
        Err(CudaError::NotCompiled.into())
    }

    pub fn ordinal(&self) -> u32 {
        match self.0 {}
    }

    pub fn name(&self) -> &str {
        match self.0 {}
    }

    pub fn compute_capability(&self) -> [u32; 2] {
        match self.0 {}
    }

    pub fn multiprocessors(&self) -> u32 {
        match self.0 {}
    }

    pub fn target(&self) -> Target {
        match self.0 {}
    }

    pub unsafe fn run<'s>(
        &self,
        _stream: impl Into<StreamRef<'s>>,
        _plan: &GpuPlan,
        _operands: &Operands,
    ) -> Result<()> {
        match self.0 {}
    }

    pub unsafe fn enqueue<'s>(
        &self,
        _stream: impl Into<StreamRef<'s>>,
        _plan: &GpuPlan,
        _arguments: &Arguments,
    ) -> Result<()> {
        match self.0 {}
    }

    pub unsafe fn run_timed<'s>(
        &self,
        _stream: impl Into<StreamRef<'s>>,
        _plan: &GpuPlan,
        _operands: &Operands,
    ) -> Result<StageTimes> {
        match self.0 {}
    }

    pub unsafe fn executor<'a>(&'a self, _stream: impl Into<StreamRef<'a>>) -> Executor<'a> {
        match self.0 {}
    }

    pub unsafe fn outcome<'s>(
        &self,
        _stream: impl Into<StreamRef<'s>>,
        _plan: &GpuPlan,
        _workspace: impl Into<DeviceMemory>,
        _times: StageTimes,
    ) -> Result<Outcome> {
        match self.0 {}
    }

    pub unsafe fn write_selection<'s>(
        &self,
        _stream: impl Into<StreamRef<'s>>,
        _plan: &GpuPlan,
        _selection: &Selection,
        _workspace: impl Into<DeviceMemory>,
    ) -> Result<()> {
        match self.0 {}
    }

    pub unsafe fn read<'s>(
        &self,
        _stream: impl Into<StreamRef<'s>>,
        _address: u64,
        _to: &mut [u8],
    ) -> Result<()> {
        match self.0 {}
    }

    pub unsafe fn write<'s>(
        &self,
        _stream: impl Into<StreamRef<'s>>,
        _address: u64,
        _from: &[u8],
    ) -> Result<()> {
        match self.0 {}
    }

    pub fn tensor_map(&self, _layout: &TensorMapLayout) -> Result<TensorMap> {
        match self.0 {}
    }

    pub fn alloc(&self, _bytes: u64) -> Result<Buffer<'_>> {
        match self.0 {}
    }

    pub fn stream(&self) -> Result<Stream<'_>> {
        match self.0 {}
    }
}

impl pipeline::Device for Executor<'_> {
    type Error = Error;

    fn target(&self) -> Target {
        match self.0 {}
    }

    fn multiprocessors(&self) -> u32 {
        match self.0 {}
    }

    fn tensor_map(&mut self, _layout: &TensorMapLayout) -> Result<TensorMap> {
        match self.0 {}
    }

    fn launch(&mut self, _launch: &Launch) -> Result<()> {
        match self.0 {}
    }
}

#[allow(
    clippy::missing_errors_doc,
    missing_docs,
    reason = "nobody has a buffer; they are documented where they do something"
)]
impl Buffer<'_> {
    pub fn memory(&self) -> DeviceMemory {
        match self.0 {}
    }

    pub fn part(&self, _offset_bytes: u64, _bytes: u64) -> DeviceMemory {
        match self.0 {}
    }

    pub fn fill(&mut self, _value: u8) -> Result<()> {
        match self.0 {}
    }

    pub fn write(&mut self, _offset_bytes: u64, _from: &[u8]) -> Result<()> {
        match self.0 {}
    }

    pub fn read(&self, _offset_bytes: u64, _to: &mut [u8]) -> Result<()> {
        match self.0 {}
    }
}

impl From<&Buffer<'_>> for DeviceMemory {
    fn from(buffer: &Buffer<'_>) -> Self {
        match buffer.0 {}
    }
}

#[allow(
    clippy::missing_errors_doc,
    missing_docs,
    reason = "nobody has a stream; they are documented where they do something"
)]
impl Stream<'_> {
    pub fn synchronize(&self) -> Result<()> {
        match self.0 {}
    }

    pub fn as_raw(&self) -> *mut c_void {
        match self.0 {}
    }
}
