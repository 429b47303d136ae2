//! Launches into a stream.

use std::ffi::c_void;
use std::ptr;

use super::Device;
use super::driver;
use super::stream::StreamRef;
use crate::error::{CudaError, DriverCode, Error, Result};
use crate::pipeline::{self, Launch, Target, TensorMap, TensorMapLayout};

/// Puts launches into a stream. Allocates nothing, waits for nothing and reads nothing back.
#[derive(Clone, Copy, Debug)]
pub struct Executor<'a> {
    device: &'a Device,
    stream: StreamRef<'a>,
}

impl<'a> Executor<'a> {
    pub(super) fn new(device: &'a Device, stream: StreamRef<'a>) -> Self {
        Executor { device, stream }
    }

    pub(super) fn device(&self) -> &'a Device {
        self.device
    }

    pub(super) fn stream(&self) -> StreamRef<'a> {
        self.stream
    }
}

impl pipeline::Device for Executor<'_> {
    type Error = Error;

    fn target(&self) -> Target {
        self.device.target()
    }

    fn multiprocessors(&self) -> u32 {
        self.device.multiprocessors()
    }

    fn tensor_map(&mut self, layout: &TensorMapLayout) -> Result<TensorMap> {
        self.device.tensor_map(layout)
    }

    fn launch(&mut self, launch: &Launch) -> Result<()> {
        let kernel = launch.call.name();
        let function = self.device.kernels().get(kernel)?;
        let (params, _) = launch.call.params();
        let mut params = [params.cast_mut()];
        let ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]) =
            (launch.shape.grid, launch.shape.block);
        let _current = self.device.current()?;
        // SAFETY: whoever made the executor promised that what is launched is right: the parameter is the struct that the
        // kernel takes, copied before the call returns, and its addresses are valid until the stream has run the launch.
        let code = unsafe {
            driver::cuLaunchKernel(
                function,
                grid_x,
                grid_y,
                grid_z,
                block_x,
                block_y,
                block_z,
                launch.shape.shared_bytes,
                self.stream.as_raw(),
                params.as_mut_ptr(),
                ptr::null_mut::<*mut c_void>(),
            )
        };
        match DriverCode(code) {
            DriverCode(0) => Ok(()),
            DriverCode::OUT_OF_MEMORY => Err(CudaError::OutOfMemory {
                call: "cuLaunchKernel",
            }
            .into()),
            code => Err(CudaError::Launch { kernel, code }.into()),
        }
    }
}
