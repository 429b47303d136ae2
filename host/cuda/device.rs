//! A GPU with its kernels loaded, and the doors through which plans run on it.

use std::ffi::c_void;

use cust::context::Context;
use cust::device::DeviceAttribute;
use sample_attention_device::gpu::{TensorMap, TensorMapLayout};

use super::driver::{self, Current, RawContext, check};
use super::module::Kernels;
use super::stream::StreamRef;
use super::tensor_map::Encoder;
use super::{NEEDED_CAPABILITY, addresses, copies};
use crate::error::{CudaError, DriverCode, Error, Result};
use crate::pipeline::{Arguments, DeviceMemory, GpuPlan, Lists, Operands, Outcome, Target};
use crate::report::StageTimes;
use crate::selection::Selection;

/// A GPU, by its primary context, with all kernels loaded.
///
/// The primary context is the one that the CUDA runtime, candle and cudarc (`CudaContext::new`) use as well: addresses,
/// streams and events of theirs are good here, and the other way round. It is retained while the device lives, and whatever
/// context the calling thread has current is so again after every call but [`Device::new`].
///
/// Loading compiles the PTX, which takes seconds the first time; the driver keeps the result in its cache. A device can be
/// used from any number of threads at once.
pub struct Device {
    kernels: Kernels,
    encoder: Encoder,
    ordinal: u32,
    name: String,
    capability: [u32; 2],
    multiprocessors: u32,
    target: Target,
    /// For copies that are no caller's.
    copies: OwnStream,
    /// Released last.
    context: Context,
}

/// A stream that [`Device`] destroys.
struct OwnStream(*mut c_void);

// SAFETY: the driver's streams may be used from any thread.
unsafe impl Send for OwnStream {}
// SAFETY: as above.
unsafe impl Sync for OwnStream {}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Device")
            .field("ordinal", &self.ordinal)
            .field("capability", &self.capability)
            .field("target", &self.target)
            .finish_non_exhaustive()
    }
}

impl Device {
    /// How many GPUs the driver shows.
    ///
    /// # Errors
    /// [`CudaError::NoDriver`] and what else the driver says when it is initialised.
    pub fn count() -> Result<u32> {
        // SAFETY: nothing is asked of the caller.
        match check("cuInit", unsafe { driver::cuInit(0) }) {
            Err(CudaError::NoDevice) => return Ok(0),
            other => other?,
        }
        let mut count = 0;
        // SAFETY: the pointer is to live memory.
        check("cuDeviceGetCount", unsafe {
            driver::cuDeviceGetCount(&raw mut count)
        })?;
        Ok(count.try_into().unwrap_or_default())
    }

    /// Opens GPU `ordinal`, counted from 0 as the driver does, with the kernels that are made for it: those for sm_90a on
    /// compute capability 9.0, those for sm_80 on every other from 8.0 on.
    ///
    /// The GPU's primary context becomes the calling thread's current one, as with cust's `Context::new`.
    ///
    /// # Errors
    /// [`CudaError`]: no driver, no such GPU, one that is too old, or a driver that does not take the PTX.
    pub fn new(ordinal: u32) -> Result<Self> {
        Self::open(ordinal, None)
    }

    /// As [`Device::new`], with the kernels of a given target.
    ///
    /// # Errors
    /// As [`Device::new`], and [`CudaError::WrongTarget`].
    pub fn with_target(ordinal: u32, target: Target) -> Result<Self> {
        Self::open(ordinal, Some(target))
    }

    fn open(ordinal: u32, target: Option<Target>) -> Result<Self> {
        let count = Self::count()?;
        if count == 0 {
            return Err(CudaError::NoDevice.into());
        }
        if ordinal >= count {
            return Err(CudaError::NoSuchDevice { ordinal, count }.into());
        }
        let device = cust::device::Device::get_device(ordinal).map_err(of_cust("cuDeviceGet"))?;
        let attribute = |attribute| {
            let value = device.get_attribute(attribute);
            value
                .map(|value| value as u32)
                .map_err(of_cust("cuDeviceGetAttribute"))
        };
        let capability = [
            attribute(DeviceAttribute::ComputeCapabilityMajor)?,
            attribute(DeviceAttribute::ComputeCapabilityMinor)?,
        ];
        let name = device.name().unwrap_or_default();
        if capability < NEEDED_CAPABILITY {
            return Err(CudaError::ComputeCapability {
                ordinal,
                name,
                found: capability,
                needed: NEEDED_CAPABILITY,
            }
            .into());
        }
        let is_hopper = capability == [9, 0];
        let target = target.unwrap_or(if is_hopper {
            Target::Sm90a
        } else {
            Target::Sm80
        });
        if target == Target::Sm90a && !is_hopper {
            return Err(CudaError::WrongTarget {
                target: target.name(),
                ordinal,
                found: capability,
            }
            .into());
        }
        let multiprocessors = attribute(DeviceAttribute::MultiprocessorCount)?;
        let shared_bytes = shared_bytes_opt_in(&device)?;
        let context = Context::new(device).map_err(of_cust("cuDevicePrimaryCtxRetain"))?;
        let (kernels, copies) = {
            let _current = Current::new(&context, raw(&context))?;
            (
                Kernels::load(target, shared_bytes)?,
                OwnStream(copies::new_stream()?),
            )
        };
        Ok(Device {
            kernels,
            encoder: Encoder::default(),
            ordinal,
            name,
            capability,
            multiprocessors,
            target,
            copies,
            context,
        })
    }

    /// Number of the GPU.
    pub fn ordinal(&self) -> u32 {
        self.ordinal
    }

    /// What the driver calls it: "NVIDIA H200", say.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Major and minor version of its compute capability.
    pub fn compute_capability(&self) -> [u32; 2] {
        self.capability
    }

    /// How many multiprocessors it has.
    pub fn multiprocessors(&self) -> u32 {
        self.multiprocessors
    }

    /// Which kernels were loaded.
    pub fn target(&self) -> Target {
        self.target
    }

    /// Waits for the stream, and reads report and selection of the run that a workspace was last used for. Takes memory and
    /// time in proportion to the lists; a run itself needs none of it. The report's times are `times`.
    ///
    /// # Errors
    /// [`Error::WorkspaceTooSmall`], [`Error::Misaligned`], those of [`GpuPlan::outcome`], and whatever went wrong on the device.
    ///
    /// # Safety
    /// The workspace is memory of this device, and nothing but this stream is about to write it.
    pub unsafe fn outcome<'s>(
        &self,
        stream: impl Into<StreamRef<'s>>,
        plan: &GpuPlan,
        workspace: impl Into<DeviceMemory>,
        times: StageTimes,
    ) -> Result<Outcome> {
        let (stream, workspace) = (stream.into(), workspace.into());
        self.check_workspace(plan, &workspace)?;
        plan.outcome(times, |offset_bytes, to| {
            // SAFETY: the caller's contract; the regions lie in the workspace.
            unsafe { self.read(stream, workspace.address + offset_bytes, to) }
        })
    }

    /// Writes the lists of a selection into the workspace of a plan of [`GpuPlan::given`], and waits until they are there.
    ///
    /// # Errors
    /// Those of [`Lists::of`], [`Error::WorkspaceTooSmall`], [`Error::Misaligned`], and whatever went wrong on the device.
    ///
    /// # Safety
    /// The workspace is memory of this device, and nothing but this stream uses it.
    pub unsafe fn write_selection<'s>(
        &self,
        stream: impl Into<StreamRef<'s>>,
        plan: &GpuPlan,
        selection: &Selection,
        workspace: impl Into<DeviceMemory>,
    ) -> Result<()> {
        let (stream, workspace) = (stream.into(), workspace.into());
        self.check_workspace(plan, &workspace)?;
        let lists = Lists::of(plan, selection)?;
        for (region, list) in lists.regions(plan.workspace()) {
            let address = workspace.address + region.offset_bytes;
            // SAFETY: the caller's contract; the regions lie in the workspace.
            unsafe { self.write(stream, address, bytemuck::cast_slice(list)) }?;
        }
        Ok(())
    }

    /// Copies bytes of the device after everything that the stream holds, and waits for them.
    ///
    /// # Errors
    /// Whatever went wrong on the device.
    ///
    /// # Safety
    /// `to.len()` bytes from `address` on are memory of this device, and nothing but this stream is about to write them.
    pub unsafe fn read<'s>(
        &self,
        stream: impl Into<StreamRef<'s>>,
        address: u64,
        to: &mut [u8],
    ) -> Result<()> {
        let _current = self.current()?;
        // SAFETY: the caller's contract.
        Ok(unsafe { copies::read(stream.into(), address, to) }?)
    }

    /// Copies bytes to the device after everything that the stream holds, and waits until they are there.
    ///
    /// # Errors
    /// Whatever went wrong on the device.
    ///
    /// # Safety
    /// `from.len()` bytes from `address` on are memory of this device, and nothing but this stream uses them.
    pub unsafe fn write<'s>(
        &self,
        stream: impl Into<StreamRef<'s>>,
        address: u64,
        from: &[u8],
    ) -> Result<()> {
        let _current = self.current()?;
        // SAFETY: the caller's contract.
        Ok(unsafe { copies::write(stream.into(), address, from) }?)
    }

    /// The tensor map of a layout, for kernels of sm_90a.
    ///
    /// # Errors
    /// [`CudaError::TensorMap`].
    pub fn tensor_map(&self, layout: &TensorMapLayout) -> Result<TensorMap> {
        let _current = self.current()?;
        Ok(self.encoder.encode(layout)?)
    }

    pub(super) fn arguments(&self, plan: &GpuPlan, operands: &Operands) -> Result<Arguments> {
        let arguments = plan.arguments(operands)?;
        let _current = self.current()?;
        addresses::check(self.ordinal, plan, operands)?;
        Ok(arguments)
    }

    fn check_workspace(&self, plan: &GpuPlan, workspace: &DeviceMemory) -> Result<()> {
        plan.check_workspace(workspace)?;
        let _current = self.current()?;
        if plan.workspace_bytes() > 0 {
            addresses::check_one(self.ordinal, "the workspace", workspace.address)?;
        }
        Ok(())
    }

    /// The device's context, made current.
    pub(super) fn current(&self) -> Result<Current<'_>, CudaError> {
        Current::new(self, raw(&self.context))
    }

    /// The device's own stream.
    pub(super) fn copies(&self) -> StreamRef<'_> {
        // SAFETY: it lives as long as the device.
        unsafe { StreamRef::from_raw(self.copies.0) }
    }

    pub(super) fn kernels(&self) -> &Kernels {
        &self.kernels
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if let Ok(_current) = Current::new(&self.context, raw(&self.context)) {
            self.kernels.unload();
            // SAFETY: every buffer, and with it every copy, has ended before the device.
            unsafe { driver::cuStreamDestroy_v2(self.copies.0) };
        }
    }
}

fn raw(context: &Context) -> RawContext {
    RawContext(context.as_raw().cast())
}

fn of_cust(call: &'static str) -> impl Fn(cust::error::CudaError) -> Error {
    move |error| CudaError::of(call, DriverCode(error as u32)).into()
}

/// Shared memory that a block can have, beyond the 48 KB that every launch has.
fn shared_bytes_opt_in(device: &cust::device::Device) -> Result<u32, CudaError> {
    let mut bytes = 0;
    // SAFETY: the pointer is to live memory.
    check("cuDeviceGetAttribute", unsafe {
        driver::cuDeviceGetAttribute(
            &raw mut bytes,
            driver::DEVICE_MAX_SHARED_BYTES_OPT_IN,
            device.as_raw(),
        )
    })?;
    Ok(bytes.try_into().unwrap_or_default())
}
