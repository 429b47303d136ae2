//! The kernels of one target, loaded into a context.

use std::collections::HashMap;
use std::ffi::{CString, c_uint, c_void};

use sample_attention_device::launch_bounds::LAUNCH_BOUNDS;

use super::driver::{self, RawFunction, RawModule, check};
use super::versions;
use crate::error::{CudaError, DriverCode};
use crate::pipeline::Target;
use crate::ptx;

/// What the driver's compiler may say about an error, in bytes.
const LOG_BYTES: usize = 8 << 10;

/// Every kernel of a target.
pub(super) struct Kernels {
    module: RawModule,
    functions: HashMap<&'static str, RawFunction>,
}

impl Kernels {
    /// Compiles the target's PTX in the current context, and lets every kernel have `shared_bytes` bytes of shared memory a
    /// block, its static ones included.
    pub(super) fn load(target: Target, shared_bytes: u32) -> Result<Self, CudaError> {
        let text = text(target);
        let mut kernels = Kernels {
            module: load(target, text)?,
            functions: HashMap::new(),
        };
        // The text and not only the table decides: what rust-cuda compiles has no kernels of other targets.
        let rows = LAUNCH_BOUNDS
            .iter()
            .filter(|row| row.targets.contains(&target));
        for row in rows {
            let function = kernels.resolve(row.kernel)?;
            allow_shared(function, shared_bytes)?;
            kernels.functions.insert(row.kernel, function);
        }
        Ok(kernels)
    }

    fn resolve(&self, kernel: &str) -> Result<RawFunction, CudaError> {
        let name = CString::new(kernel).expect("names of kernels have no NUL");
        let mut function = RawFunction(std::ptr::null_mut());
        // SAFETY: the module is loaded, and the pointers are to live memory.
        let code =
            unsafe { driver::cuModuleGetFunction(&raw mut function, self.module, name.as_ptr()) };
        check("cuModuleGetFunction", code).map_err(|_| CudaError::NoSuchKernel {
            kernel: kernel.to_owned(),
        })?;
        Ok(function)
    }

    /// A kernel by its name.
    pub(super) fn get(&self, kernel: &str) -> Result<RawFunction, CudaError> {
        let function = self.functions.get(kernel).copied();
        function.ok_or_else(|| CudaError::NoSuchKernel {
            kernel: kernel.to_owned(),
        })
    }

    /// Takes the kernels out of the current context.
    pub(super) fn unload(&mut self) {
        // SAFETY: the module was loaded in this context, and whoever launched its kernels has waited for them, as the contract
        // of every launch says. An error leaves it loaded until the context ends.
        unsafe { driver::cuModuleUnload(self.module) };
    }
}

fn text(target: Target) -> &'static str {
    match target {
        Target::Sm80 => ptx::SM_80,
        Target::Sm90a => ptx::SM_90A,
    }
}

fn load(target: Target, text: &str) -> Result<RawModule, CudaError> {
    let text = CString::new(text).expect("PTX has no NUL");
    let mut log = vec![0u8; LOG_BYTES];
    let mut keys: [c_uint; 2] = [
        driver::JIT_ERROR_LOG_BUFFER,
        driver::JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
    ];
    // Options are values where they fit into a pointer.
    let mut values: [*mut c_void; 2] = [
        log.as_mut_ptr().cast(),
        std::ptr::without_provenance_mut(LOG_BYTES),
    ];
    let mut module = RawModule(std::ptr::null_mut());
    // SAFETY: the text ends in a NUL; the log has as many bytes as the options say, and outlives the call.
    let code = unsafe {
        driver::cuModuleLoadDataEx(
            &raw mut module,
            text.as_ptr().cast(),
            keys.len() as c_uint,
            keys.as_mut_ptr(),
            values.as_mut_ptr(),
        )
    };
    if code == 0 {
        return Ok(module);
    }
    let end = log.iter().position(|&byte| byte == 0).unwrap_or(log.len());
    let log = String::from_utf8_lossy(&log[..end]);
    let lines = log.lines().map(str::trim).filter(|line| !line.is_empty());
    Err(refused(
        target,
        text.to_str().unwrap_or_default(),
        DriverCode(code),
        driver_version()?,
        lines.collect::<Vec<_>>().join("; "),
    ))
}

/// Why a driver of CUDA `driver_cuda` did not load the text.
fn refused(
    target: Target,
    text: &str,
    code: DriverCode,
    driver_cuda: [u32; 2],
    log: String,
) -> CudaError {
    let ptx = versions::of_text(text).unwrap_or_default();
    let (needed_cuda, driver_release) = versions::needed(ptx);
    let is_old = driver_cuda < needed_cuda;
    match code {
        DriverCode::UNSUPPORTED_PTX_VERSION => {}
        DriverCode::INVALID_PTX | DriverCode::NO_BINARY_FOR_GPU if is_old => {}
        DriverCode::INVALID_PTX
        | DriverCode::NO_BINARY_FOR_GPU
        | DriverCode::JIT_COMPILER_NOT_FOUND
        | DriverCode::JIT_COMPILATION_DISABLED => {
            return CudaError::PtxRefused {
                target: target.name(),
                code,
                driver_cuda,
                log,
            };
        }
        code => return CudaError::of("cuModuleLoadDataEx", code),
    }
    CudaError::PtxTooNew {
        ptx,
        driver_cuda,
        needed_cuda,
        driver_release,
    }
}

/// CUDA version of the driver.
pub(super) fn driver_version() -> Result<[u32; 2], CudaError> {
    let mut version = 0;
    // SAFETY: the pointer is to live memory.
    check("cuDriverGetVersion", unsafe {
        driver::cuDriverGetVersion(&raw mut version)
    })?;
    Ok(versions::of_driver(version.try_into().unwrap_or_default()))
}

/// A launch may have 48 KB of dynamic shared memory unless the kernel says otherwise.
fn allow_shared(function: RawFunction, shared_bytes: u32) -> Result<(), CudaError> {
    let mut fixed_bytes = 0;
    // SAFETY: the function is of a loaded module, and the pointer to live memory.
    check("cuFuncGetAttribute", unsafe {
        driver::cuFuncGetAttribute(
            &raw mut fixed_bytes,
            driver::FUNC_SHARED_SIZE_BYTES,
            function,
        )
    })?;
    // SAFETY: the function is of a loaded module.
    check("cuFuncSetAttribute", unsafe {
        driver::cuFuncSetAttribute(
            function,
            driver::FUNC_MAX_DYNAMIC_SHARED_SIZE_BYTES,
            shared_bytes as i32 - fixed_bytes,
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(code: DriverCode, driver_cuda: [u32; 2]) -> CudaError {
        let text = ".version 8.3\n.target sm_90a\n";
        refused(Target::Sm90a, text, code, driver_cuda, "a log".into())
    }

    #[test]
    fn an_old_driver_is_told_which_one_is_needed() {
        for code in [DriverCode::UNSUPPORTED_PTX_VERSION, DriverCode::INVALID_PTX] {
            assert_eq!(
                of(code, [12, 0]),
                CudaError::PtxTooNew {
                    ptx: [8, 3],
                    driver_cuda: [12, 0],
                    needed_cuda: [12, 3],
                    driver_release: 545
                }
            );
        }
    }

    #[test]
    fn a_driver_that_is_new_enough_is_not_blamed() {
        let error = of(DriverCode::INVALID_PTX, [13, 0]);
        assert!(
            matches!(&error, CudaError::PtxRefused { log, .. } if log == "a log"),
            "{error}"
        );
        let error = of(DriverCode::OUT_OF_MEMORY, [13, 0]);
        assert!(matches!(error, CudaError::OutOfMemory { .. }), "{error}");
    }
}
