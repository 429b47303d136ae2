//! What can be wrong with a GPU, its driver and what they were given.

use super::DriverCode;

/// A failure of the CUDA executor.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// The executor is not in this build.
    #[error(
        "this build has no CUDA executor: it was not compiled with the feature `cuda` of sample-attention; build with it, or use the CPU backend"
    )]
    NotCompiled,
    /// What was loaded as the driver is not one.
    #[error(
        "there is no CUDA driver: the libcuda.so.1 that was loaded is a stand-in to link with ({code}); install NVIDIA's driver, or take the stand-in out of LD_LIBRARY_PATH"
    )]
    NoDriver {
        /// What it returned.
        code: DriverCode,
    },
    /// The driver cannot be used from this process.
    #[error(
        "the CUDA driver is not initialised in this process ({code}): it does not survive a fork, so open the device in the child"
    )]
    NotInitialized {
        /// What the driver returned.
        code: DriverCode,
    },
    /// The parts of the driver's installation do not fit each other, or are not all running.
    #[error(
        "the CUDA driver does not work on this machine ({code}): {}",
        installation_remedy(*code)
    )]
    BrokenInstallation {
        /// What the driver returned.
        code: DriverCode,
    },
    /// The driver sees no GPU.
    #[error(
        "the CUDA driver sees no GPU: check nvidia-smi, CUDA_VISIBLE_DEVICES, and that a container was given its GPUs"
    )]
    NoDevice,
    /// No GPU of that number.
    #[error("there is no GPU {ordinal}: this machine shows {count}, counted from 0")]
    NoSuchDevice {
        /// The given number.
        ordinal: u32,
        /// How many there are.
        count: u32,
    },
    /// The GPU is older than the kernels.
    #[error(
        "GPU {ordinal} ({name}) has compute capability {}.{}, but the kernels need {}.{}: use a newer GPU, or the CPU backend",
        found[0], found[1], needed[0], needed[1]
    )]
    ComputeCapability {
        /// Number of the GPU.
        ordinal: u32,
        /// Its name.
        name: String,
        /// Major and minor version that it has.
        found: [u32; 2],
        /// Those that are needed at least.
        needed: [u32; 2],
    },
    /// Kernels of one architecture were asked for on another.
    #[error(
        "the kernels for {target} do not run on GPU {ordinal} of compute capability {}.{}: let Device::new choose",
        found[0], found[1]
    )]
    WrongTarget {
        /// Name of the kernels' target.
        target: &'static str,
        /// Number of the GPU.
        ordinal: u32,
        /// Major and minor version that it has.
        found: [u32; 2],
    },
    /// The driver is older than the kernels' PTX.
    #[error(
        "the kernels are PTX {}.{}, newer than the driver, which is of CUDA {}.{}: install the driver of CUDA {}.{} (release {driver_release}) or a later one",
        ptx[0], ptx[1], driver_cuda[0], driver_cuda[1], needed_cuda[0], needed_cuda[1]
    )]
    PtxTooNew {
        /// Version of the PTX.
        ptx: [u32; 2],
        /// CUDA version of the driver.
        driver_cuda: [u32; 2],
        /// The first CUDA version whose driver takes that PTX.
        needed_cuda: [u32; 2],
        /// Release of that driver.
        driver_release: u32,
    },
    /// The driver does not compile the kernels.
    #[error(
        "the driver (CUDA {}.{}) does not compile the kernels for {target} ({code}): {}{log}",
        driver_cuda[0], driver_cuda[1], jit_remedy(*code)
    )]
    PtxRefused {
        /// Name of the kernels' target.
        target: &'static str,
        /// What the driver returned.
        code: DriverCode,
        /// CUDA version of the driver.
        driver_cuda: [u32; 2],
        /// What its compiler said.
        log: String,
    },
    /// The PTX lacks a kernel.
    #[error(
        "the PTX has no kernel {kernel} (a mistake in a build of sample-attention, not in the call: please report it)"
    )]
    NoSuchKernel {
        /// Its name.
        kernel: String,
    },
    /// The GPU's memory is full.
    #[error(
        "out of GPU memory in {call}: free some, use a smaller batch, or give GpuPlan::with_wave_bytes fewer bytes"
    )]
    OutOfMemory {
        /// The driver's function.
        call: &'static str,
    },
    /// An address that is not of this GPU.
    #[error(
        "the address {address:#x} of {operand} is not memory of GPU {ordinal}, but {}: allocate there, or copy it there first",
        match owner {
            Some(other) => format!("of GPU {other}"),
            None => "of no GPU, as far as the driver knows".to_owned(),
        }
    )]
    ForeignAddress {
        /// Which operand.
        operand: &'static str,
        /// Its address.
        address: u64,
        /// Number of the GPU that runs the plan.
        ordinal: u32,
        /// Number of the GPU that owns the memory; `None` for a host address or none at all.
        owner: Option<u32>,
    },
    /// The device cannot have this tensor map.
    #[error("a tensor map was refused: {reason}")]
    TensorMap {
        /// Which rule it breaks.
        reason: String,
    },
    /// A kernel could not be launched.
    #[error("{kernel} could not be launched ({code}): {}", code.remedy())]
    Launch {
        /// The kernel.
        kernel: &'static str,
        /// What the driver returned.
        code: DriverCode,
    },
    /// Anything else that the driver said.
    #[error("{call} failed ({code}): {}", code.remedy())]
    Driver {
        /// The driver's function.
        call: &'static str,
        /// What it returned.
        code: DriverCode,
    },
}

fn installation_remedy(code: DriverCode) -> &'static str {
    match code {
        DriverCode::SYSTEM_DRIVER_MISMATCH => {
            "the libraries and the kernel module are of different releases; reboot after an update, or install the same release of both"
        }
        DriverCode::COMPAT_NOT_SUPPORTED_ON_DEVICE => {
            "the forward-compatibility libraries do not support this GPU; take them out of LD_LIBRARY_PATH or install a newer driver"
        }
        _ => {
            "not everything that it needs is running; start nvidia-fabricmanager on an NVSwitch machine"
        }
    }
}

fn jit_remedy(code: DriverCode) -> &'static str {
    match code {
        DriverCode::JIT_COMPILER_NOT_FOUND => {
            "libnvidia-ptxjitcompiler.so.1 of the same release is missing from the installation"
        }
        DriverCode::JIT_COMPILATION_DISABLED => {
            "unset CUDA_DISABLE_PTX_JIT and CUDA_DISABLE_JIT in the environment"
        }
        _ => "please report it with this text: ",
    }
}

impl CudaError {
    /// The error for what a driver's function `call` returned.
    pub fn of(call: &'static str, code: DriverCode) -> Self {
        match code {
            DriverCode::STUB_LIBRARY => CudaError::NoDriver { code },
            DriverCode::NOT_INITIALIZED | DriverCode::DEINITIALIZED => {
                CudaError::NotInitialized { code }
            }
            DriverCode::SYSTEM_NOT_READY
            | DriverCode::SYSTEM_DRIVER_MISMATCH
            | DriverCode::COMPAT_NOT_SUPPORTED_ON_DEVICE => CudaError::BrokenInstallation { code },
            DriverCode::NO_DEVICE => CudaError::NoDevice,
            DriverCode::OUT_OF_MEMORY => CudaError::OutOfMemory { call },
            code => CudaError::Driver { call, code },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_names_its_remedy() {
        let log = "line 3: unknown instruction".to_owned();
        for (error, words) in [
            (CudaError::NotCompiled, "the feature `cuda`"),
            (
                CudaError::of("cuInit", DriverCode::STUB_LIBRARY),
                "install NVIDIA's driver",
            ),
            (
                CudaError::of("cuInit", DriverCode::NOT_INITIALIZED),
                "open the device in the child",
            ),
            (
                CudaError::of("cuInit", DriverCode::SYSTEM_DRIVER_MISMATCH),
                "reboot after an update",
            ),
            (
                CudaError::of("cuInit", DriverCode::SYSTEM_NOT_READY),
                "nvidia-fabricmanager",
            ),
            (
                CudaError::of("cuInit", DriverCode::NO_DEVICE),
                "CUDA_VISIBLE_DEVICES",
            ),
            (
                CudaError::NoSuchDevice {
                    ordinal: 2,
                    count: 2,
                },
                "there is no GPU 2: this machine shows 2, counted from 0",
            ),
            (
                CudaError::ComputeCapability {
                    ordinal: 0,
                    name: "Tesla T4".into(),
                    found: [7, 5],
                    needed: [8, 0],
                },
                "GPU 0 (Tesla T4) has compute capability 7.5, but the kernels need 8.0",
            ),
            (
                CudaError::WrongTarget {
                    target: "sm_90a",
                    ordinal: 1,
                    found: [8, 0],
                },
                "sm_90a do not run on GPU 1 of compute capability 8.0",
            ),
            (
                CudaError::PtxTooNew {
                    ptx: [8, 3],
                    driver_cuda: [12, 0],
                    needed_cuda: [12, 3],
                    driver_release: 545,
                },
                "PTX 8.3, newer than the driver, which is of CUDA 12.0: install the driver of CUDA 12.3 (release 545)",
            ),
            (
                CudaError::PtxRefused {
                    target: "sm_80",
                    code: DriverCode::INVALID_PTX,
                    driver_cuda: [13, 0],
                    log,
                },
                "line 3: unknown instruction",
            ),
            (
                CudaError::PtxRefused {
                    target: "sm_80",
                    code: DriverCode::JIT_COMPILATION_DISABLED,
                    driver_cuda: [13, 0],
                    log: String::new(),
                },
                "unset CUDA_DISABLE_PTX_JIT",
            ),
            (
                CudaError::of("cuMemAlloc", DriverCode::OUT_OF_MEMORY),
                "with_wave_bytes fewer bytes",
            ),
            (
                CudaError::ForeignAddress {
                    operand: "k",
                    address: 0x7f00,
                    ordinal: 0,
                    owner: Some(1),
                },
                "0x7f00 of k is not memory of GPU 0, but of GPU 1",
            ),
            (
                CudaError::ForeignAddress {
                    operand: "k",
                    address: 0x7f00,
                    ordinal: 0,
                    owner: None,
                },
                "of no GPU",
            ),
            (
                CudaError::Launch {
                    kernel: "sampling_bf16_d64",
                    code: DriverCode::INVALID_HANDLE,
                },
                "sampling_bf16_d64 could not be launched (CUDA_ERROR_INVALID_HANDLE): a stream",
            ),
            (
                CudaError::of("cuStreamSynchronize", DriverCode(700)),
                "cuStreamSynchronize failed (CUDA_ERROR_ILLEGAL_ADDRESS): an earlier launch",
            ),
            (CudaError::of("cuInit", DriverCode(4321)), "CUDA error 4321"),
        ] {
            let message = error.to_string();
            assert!(message.contains(words), "{message}");
            assert!(!message.contains('\n'), "{message}");
        }
    }
}
