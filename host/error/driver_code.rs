//! The result codes of the CUDA driver: their names, and what to do about them.

/// A result of the driver that is not success, of this driver's release or a later one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DriverCode(pub u32);

/// Codes that say that the context is lost, and with it everything that was launched in it.
const STICKY: &str = "an earlier launch went wrong on the device, and its context is lost: check the addresses, lengths and \
    strides that were launched with, and that the memory was not freed before the stream reached its end";

impl DriverCode {
    /// An argument out of range.
    pub const INVALID_VALUE: Self = DriverCode(1);
    /// No memory left on the device, or on the host.
    pub const OUT_OF_MEMORY: Self = DriverCode(2);
    /// `cuInit` was not called, or not in this process.
    pub const NOT_INITIALIZED: Self = DriverCode(3);
    /// The driver is shutting down.
    pub const DEINITIALIZED: Self = DriverCode(4);
    /// The library is a stand-in for linking.
    pub const STUB_LIBRARY: Self = DriverCode(34);
    /// No GPU is visible.
    pub const NO_DEVICE: Self = DriverCode(100);
    /// No GPU of that number.
    pub const INVALID_DEVICE: Self = DriverCode(101);
    /// No context, or one of another device.
    pub const INVALID_CONTEXT: Self = DriverCode(201);
    /// A module has no code for the GPU.
    pub const NO_BINARY_FOR_GPU: Self = DriverCode(209);
    /// PTX does not compile.
    pub const INVALID_PTX: Self = DriverCode(218);
    /// The driver's PTX compiler is missing.
    pub const JIT_COMPILER_NOT_FOUND: Self = DriverCode(221);
    /// PTX is newer than the driver.
    pub const UNSUPPORTED_PTX_VERSION: Self = DriverCode(222);
    /// The environment forbids compiling PTX.
    pub const JIT_COMPILATION_DISABLED: Self = DriverCode(223);
    /// A stream, event or function of another context.
    pub const INVALID_HANDLE: Self = DriverCode(400);
    /// A launch asks for more than the device has.
    pub const LAUNCH_OUT_OF_RESOURCES: Self = DriverCode(701);
    /// A service that the GPUs need is not running.
    pub const SYSTEM_NOT_READY: Self = DriverCode(802);
    /// Library and kernel module are of different releases.
    pub const SYSTEM_DRIVER_MISMATCH: Self = DriverCode(803);
    /// The forward-compatibility library does not support the GPU.
    pub const COMPAT_NOT_SUPPORTED_ON_DEVICE: Self = DriverCode(804);

    /// The name in `cuda.h`, where this crate knows it.
    pub fn name(self) -> Option<&'static str> {
        let row = NAMES.binary_search_by_key(&self.0, |&(code, _)| code);
        row.ok().map(|row| NAMES[row].1)
    }

    /// What usually helps.
    pub fn remedy(self) -> &'static str {
        match self.0 {
            1 => "a launch or a copy has sizes that the device does not take",
            201 | 400 => {
                "a stream, event or address belongs to another device or was destroyed: use those of the device that runs the plan"
            }
            46 => "another process holds the device exclusively",
            300..=304 => "the driver's installation is damaged: install it again",
            700 | 702 | 710 | 714..=719 => STICKY,
            701 => "the kernel was given more threads or shared memory than the device has",
            709 => "the device's context was destroyed: make the Device again",
            900..=908 => {
                "the stream is being captured into a graph: only launches may be captured, so synchronise, copy and allocate before or after"
            }
            214 | 220 => "the hardware reports damage: reset or replace the GPU",
            805..=809 => "the MPS server refuses this process: see its log",
            _ => "the driver's log (dmesg, nvidia-smi) may say more",
        }
    }
}

impl std::fmt::Display for DriverCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "CUDA error {}", self.0),
        }
    }
}

/// Ascending.
const NAMES: &[(u32, &str)] = &[
    (1, "CUDA_ERROR_INVALID_VALUE"),
    (2, "CUDA_ERROR_OUT_OF_MEMORY"),
    (3, "CUDA_ERROR_NOT_INITIALIZED"),
    (4, "CUDA_ERROR_DEINITIALIZED"),
    (34, "CUDA_ERROR_STUB_LIBRARY"),
    (46, "CUDA_ERROR_DEVICE_UNAVAILABLE"),
    (100, "CUDA_ERROR_NO_DEVICE"),
    (101, "CUDA_ERROR_INVALID_DEVICE"),
    (102, "CUDA_ERROR_DEVICE_NOT_LICENSED"),
    (200, "CUDA_ERROR_INVALID_IMAGE"),
    (201, "CUDA_ERROR_INVALID_CONTEXT"),
    (209, "CUDA_ERROR_NO_BINARY_FOR_GPU"),
    (214, "CUDA_ERROR_ECC_UNCORRECTABLE"),
    (215, "CUDA_ERROR_UNSUPPORTED_LIMIT"),
    (216, "CUDA_ERROR_CONTEXT_ALREADY_IN_USE"),
    (217, "CUDA_ERROR_PEER_ACCESS_UNSUPPORTED"),
    (218, "CUDA_ERROR_INVALID_PTX"),
    (220, "CUDA_ERROR_NVLINK_UNCORRECTABLE"),
    (221, "CUDA_ERROR_JIT_COMPILER_NOT_FOUND"),
    (222, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION"),
    (223, "CUDA_ERROR_JIT_COMPILATION_DISABLED"),
    (224, "CUDA_ERROR_UNSUPPORTED_EXEC_AFFINITY"),
    (300, "CUDA_ERROR_INVALID_SOURCE"),
    (301, "CUDA_ERROR_FILE_NOT_FOUND"),
    (302, "CUDA_ERROR_SHARED_OBJECT_SYMBOL_NOT_FOUND"),
    (303, "CUDA_ERROR_SHARED_OBJECT_INIT_FAILED"),
    (304, "CUDA_ERROR_OPERATING_SYSTEM"),
    (400, "CUDA_ERROR_INVALID_HANDLE"),
    (401, "CUDA_ERROR_ILLEGAL_STATE"),
    (500, "CUDA_ERROR_NOT_FOUND"),
    (600, "CUDA_ERROR_NOT_READY"),
    (700, "CUDA_ERROR_ILLEGAL_ADDRESS"),
    (701, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"),
    (702, "CUDA_ERROR_LAUNCH_TIMEOUT"),
    (709, "CUDA_ERROR_CONTEXT_IS_DESTROYED"),
    (710, "CUDA_ERROR_ASSERT"),
    (714, "CUDA_ERROR_HARDWARE_STACK_ERROR"),
    (715, "CUDA_ERROR_ILLEGAL_INSTRUCTION"),
    (716, "CUDA_ERROR_MISALIGNED_ADDRESS"),
    (717, "CUDA_ERROR_INVALID_ADDRESS_SPACE"),
    (718, "CUDA_ERROR_INVALID_PC"),
    (719, "CUDA_ERROR_LAUNCH_FAILED"),
    (800, "CUDA_ERROR_NOT_PERMITTED"),
    (801, "CUDA_ERROR_NOT_SUPPORTED"),
    (802, "CUDA_ERROR_SYSTEM_NOT_READY"),
    (803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"),
    (804, "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE"),
    (805, "CUDA_ERROR_MPS_CONNECTION_FAILED"),
    (806, "CUDA_ERROR_MPS_RPC_FAILURE"),
    (807, "CUDA_ERROR_MPS_SERVER_NOT_READY"),
    (808, "CUDA_ERROR_MPS_MAX_CLIENTS_REACHED"),
    (809, "CUDA_ERROR_MPS_MAX_CONNECTIONS_REACHED"),
    (900, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"),
    (901, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"),
    (902, "CUDA_ERROR_STREAM_CAPTURE_MERGE"),
    (903, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED"),
    (904, "CUDA_ERROR_STREAM_CAPTURE_UNJOINED"),
    (905, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION"),
    (906, "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT"),
    (907, "CUDA_ERROR_CAPTURED_EVENT"),
    (908, "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD"),
    (909, "CUDA_ERROR_TIMEOUT"),
    (910, "CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE"),
    (999, "CUDA_ERROR_UNKNOWN"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_found_by_their_number() {
        assert!(NAMES.is_sorted_by(|a, b| a.0 < b.0));
        for &(code, name) in NAMES {
            assert_eq!(DriverCode(code).to_string(), name);
        }
        assert_eq!(DriverCode(1234).to_string(), "CUDA error 1234");
    }

    #[test]
    fn every_code_has_a_remedy() {
        for &(code, _) in NAMES {
            assert!(!DriverCode(code).remedy().is_empty());
        }
    }
}
