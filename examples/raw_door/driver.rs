//! The driver through cudarc, which loads it when it first needs it.

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::Arc;

use cudarc::driver::result::{self, function, module};
use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr, DriverError, sys};
use sample_attention::pipeline::{
    Device, DeviceMemory, Launch, Target, TensorMap, TensorMapLayout,
};
use sample_attention::ptx;

use crate::tensor_map;

/// A launch may have this much dynamic shared memory without asking.
const SHARED_BYTES_UNASKED: u32 = 48 << 10;

/// A GPU with the kernels, and a stream to launch them into.
pub struct Gpu {
    stream: Arc<CudaStream>,
    target: Target,
    multiprocessors: u32,
    module: sys::CUmodule,
    functions: HashMap<&'static str, sys::CUfunction>,
}

impl Gpu {
    /// GPU `ordinal`, or in words why there is none.
    pub fn open(ordinal: usize) -> Result<Self, String> {
        // SAFETY: loading the driver's library runs its own start-up code and nothing else.
        if !unsafe { sys::is_culib_present() } {
            return Err("no NVIDIA driver: there is no libcuda to load".to_owned());
        }
        Self::load(ordinal).map_err(|error| format!("GPU {ordinal} cannot be used: {error}"))
    }

    fn load(ordinal: usize) -> Result<Self, DriverError> {
        // The device's primary context, as candle and the CUDA runtime have it.
        let context = CudaContext::new(ordinal)?;
        // The kernels for Hopper run there alone, those for Ampere on every GPU since.
        let (target, text) = match context.compute_capability()? {
            (9, 0) => (Target::Sm90a, ptx::SM_90A),
            _ => (Target::Sm80, ptx::SM_80),
        };
        let text = CString::new(text).expect("PTX has no NUL");
        // SAFETY: the text ends in a NUL.
        let module = unsafe { module::load_data(text.as_ptr().cast()) }?;
        let count = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        Ok(Gpu {
            stream: context.new_stream()?,
            target,
            multiprocessors: context.attribute(count)? as u32,
            module,
            functions: HashMap::new(),
        })
    }

    /// What the driver calls the GPU.
    pub fn name(&self) -> Result<String, DriverError> {
        self.stream.context().name()
    }

    /// Device memory with these bytes in it.
    pub fn upload(&self, bytes: &[u8]) -> Result<CudaSlice<u8>, DriverError> {
        self.stream.clone_htod(bytes)
    }

    /// Device memory of `bytes` bytes, all of whose bits are set: floats in it read as NaN.
    pub fn poisoned(&self, bytes: u64) -> Result<CudaSlice<u8>, DriverError> {
        self.upload(&vec![0xff; bytes.max(1) as usize])
    }

    /// Address and length, as the library takes memory of any driver.
    pub fn memory(&self, slice: &CudaSlice<u8>) -> DeviceMemory {
        let (address, _) = slice.device_ptr(&self.stream);
        DeviceMemory {
            address,
            bytes: slice.len() as u64,
        }
    }

    /// Copies `to.len()` bytes from `address` on, after everything launched so far, and waits for them.
    ///
    /// # Safety
    /// They are memory of this GPU.
    pub unsafe fn read(&self, address: u64, to: &mut [u8]) -> Result<(), DriverError> {
        // SAFETY: the caller's contract; the host's memory outlives the copy, which is waited for.
        unsafe { result::memcpy_dtoh_async(to, address, self.stream.cu_stream()) }?;
        self.stream.synchronize()
    }

    /// The kernel of this name, allowed the shared memory that its launch wants.
    fn function(
        &mut self,
        name: &'static str,
        shared_bytes: u32,
    ) -> Result<sys::CUfunction, DriverError> {
        if let Some(&function) = self.functions.get(name) {
            return Ok(function);
        }
        let entry = CString::new(name).expect("names of kernels have no NUL");
        // SAFETY: the module is loaded.
        let function = unsafe { module::get_function(self.module, entry) }?;
        if shared_bytes > SHARED_BYTES_UNASKED {
            let attribute =
                sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function is of a loaded module.
            unsafe { function::set_function_attribute(function, attribute, shared_bytes as i32) }?;
        }
        self.functions.insert(name, function);
        Ok(function)
    }
}

impl Device for Gpu {
    type Error = DriverError;

    fn target(&self) -> Target {
        self.target
    }

    fn multiprocessors(&self) -> u32 {
        self.multiprocessors
    }

    fn tensor_map(&mut self, layout: &TensorMapLayout) -> Result<TensorMap, DriverError> {
        tensor_map::encode(layout)
    }

    fn launch(&mut self, launch: &Launch) -> Result<(), DriverError> {
        let function = self.function(launch.call.name(), launch.shape.shared_bytes)?;
        let (params, _) = launch.call.params();
        let mut params: [*mut c_void; 1] = [params.cast_mut()];
        // SAFETY: the kernel takes the one struct that is given, and copies it before this returns. Its addresses are those of
        // the arguments, which `main` keeps until it has waited for the stream.
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
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // An error cannot be answered here, and the context ends with the process.
        let _ = self.stream.context().bind_to_thread();
        // SAFETY: what was launched has been waited for, and nobody has the functions any more.
        let _ = unsafe { module::unload(self.module) };
    }
}
