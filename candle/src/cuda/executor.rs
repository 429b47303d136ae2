//! Launches into candle's stream.

use std::collections::HashMap;
use std::ffi::c_void;

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaFunction, CudaStream, result, sys};
use candle_core::{CudaDevice, Error};
use sample_attention::pipeline::{Device, Launch, Target, TensorMap, TensorMapLayout};
use sample_attention::ptx;

use super::tensor_map;

/// A launch may have this much dynamic shared memory without asking.
const SHARED_BYTES_UNASKED: u32 = 48 << 10;

/// The kernels that were launched so far, by name.
pub(super) type Functions = HashMap<&'static str, CudaFunction>;

/// A stream, and the kernels for its GPU.
pub(super) struct Executor<'a> {
    pub(super) device: &'a CudaDevice,
    pub(super) stream: &'a CudaStream,
    pub(super) target: Target,
    pub(super) multiprocessors: u32,
    pub(super) functions: &'a mut Functions,
}

impl Executor<'_> {
    /// The kernel of this name, allowed the shared memory that its launch wants.
    fn function(
        &mut self,
        name: &'static str,
        shared_bytes: u32,
    ) -> Result<sys::CUfunction, Error> {
        if let Some(function) = self.functions.get(name) {
            return Ok(function.cu_function());
        }
        let (module, text) = match self.target {
            Target::Sm90a => ("sample-attention-sm_90a", ptx::SM_90A),
            Target::Sm80 => ("sample-attention-sm_80", ptx::SM_80),
        };
        // candle keeps the module for as long as the device lives.
        let function = self
            .device
            .get_or_load_custom_func(name, module, text)?
            .into_cuda_function();
        if shared_bytes > SHARED_BYTES_UNASKED {
            let attribute =
                sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            function.set_attribute(attribute, shared_bytes as i32).w()?;
        }
        let raw = function.cu_function();
        self.functions.insert(name, function);
        Ok(raw)
    }
}

impl Device for Executor<'_> {
    type Error = Error;

    fn target(&self) -> Target {
        self.target
    }

    fn multiprocessors(&self) -> u32 {
        self.multiprocessors
    }

    fn tensor_map(&mut self, layout: &TensorMapLayout) -> Result<TensorMap, Error> {
        tensor_map::encode(layout).w()
    }

    fn launch(&mut self, launch: &Launch) -> Result<(), Error> {
        let function = self.function(launch.call.name(), launch.shape.shared_bytes)?;
        self.stream.context().bind_to_thread().w()?;
        let (params, _) = launch.call.params();
        let mut params: [*mut c_void; 1] = [params.cast_mut()];
        // SAFETY: the kernel takes the one struct that is given, and copies it before this returns. Its addresses are those of tensors
        // whose memory is freed in the order of this stream, and of the workspace, which this stream alone works in.
        unsafe {
            result::launch_kernel(
                function,
                launch.shape.grid.into(),
                launch.shape.block.into(),
                launch.shape.shared_bytes,
                self.stream.cu_stream(),
                &mut params,
            )
        }
        .w()
    }
}
