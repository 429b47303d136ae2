//! The kernels by name, and calls of them: a kernel with the bytes of its parameters.

use std::any::TypeId;
use std::ffi::c_void;
use std::fmt;
use std::mem::MaybeUninit;

use sample_attention_device::decode::{self, DecodeParams};
use sample_attention_device::gpu::Kernel;
#[cfg(feature = "emulator")]
use sample_attention_device::gpu::emu::{Fault, Gpu, Launch};
use sample_attention_device::reduction::keys::{self as reduction_keys, ReductionKeysParams};
use sample_attention_device::sampling::{self, SamplingParams};
use sample_attention_device::sparse_flash::hopper::{self, HopperParams};
use sample_attention_device::sparse_flash::{SparseFlashParams, portable};

use crate::error::{Error, Result};
use crate::problem::{Dtype, Problem};

/// A kernel and the bytes of its only parameter.
#[derive(Clone, Copy)]
pub struct Call {
    name: &'static str,
    params: ParamBytes,
    #[cfg(feature = "emulator")]
    kernel: Kernel<ParamBytes>,
}

impl Call {
    /// `kernel` with `params`.
    pub(super) fn new<P: Copy + 'static>(kernel: Kernel<P>, params: P) -> Self {
        Self {
            name: kernel.name(),
            params: ParamBytes::new(params),
            // SAFETY: it is launched with these bytes alone, which begin with a `P`, aligned.
            #[cfg(feature = "emulator")]
            kernel: unsafe { kernel.of_bytes() },
        }
    }

    /// The name of the kernel's PTX entry.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Address and bytes of the parameter, as a driver takes it. Valid as long as the call stays where it is.
    pub fn params(&self) -> (*const c_void, usize) {
        (self.params.bytes.as_ptr().cast(), self.params.len)
    }

    /// The parameter, if it is a `P`.
    pub(super) fn params_of<P: Copy + 'static>(&self) -> Option<&P> {
        // SAFETY: `ParamBytes::new` wrote a `P`, at an alignment that it has checked.
        (self.params.of == TypeId::of::<P>())
            .then(|| unsafe { &*self.params.bytes.as_ptr().cast() })
    }

    /// Runs the kernel on an emulated device.
    #[cfg(feature = "emulator")]
    pub(crate) fn emulate(&self, gpu: &mut Gpu, launch: &Launch) -> Result<(), Fault> {
        gpu.launch(self.kernel, launch, &self.params)
    }
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({} bytes)", self.name, self.params.len)
    }
}

/// The most bytes that a kernel's parameters may take.
const MAX_PARAM_BYTES: usize = 4096;

/// The bytes of a `#[repr(C)]` struct that is a kernel's parameter. Aligned as tensor maps are.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct ParamBytes {
    /// Uninitialised where the struct has padding, and after it.
    bytes: [MaybeUninit<u8>; MAX_PARAM_BYTES],
    len: usize,
    of: TypeId,
}

impl ParamBytes {
    fn new<P: Copy + 'static>(params: P) -> Self {
        const {
            assert!(size_of::<P>() <= MAX_PARAM_BYTES && align_of::<P>() <= align_of::<Self>());
        }
        let mut this = Self {
            bytes: [MaybeUninit::uninit(); MAX_PARAM_BYTES],
            len: size_of::<P>(),
            of: TypeId::of::<P>(),
        };
        // SAFETY: large enough, and aligned, by the assertion.
        unsafe { this.bytes.as_mut_ptr().cast::<P>().write(params) };
        this
    }
}

/// The kernels of one element type and head_dim, where they depend on these.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kernels {
    pub(super) sampling: Kernel<SamplingParams>,
    pub(super) hopper_sampling: Kernel<sampling::hopper::HopperParams>,
    pub(super) reduction_keys: Kernel<ReductionKeysParams>,
    pub(super) sparse_flash: Kernel<SparseFlashParams>,
    pub(super) hopper_sparse_flash: Kernel<HopperParams>,
    /// Few queries, up to 16 rows of a key/value head.
    pub(super) decode_narrow: Kernel<DecodeParams>,
    /// Few queries, up to 64 rows.
    pub(super) decode_wide: Kernel<DecodeParams>,
    pub(super) decode_combine: Kernel<DecodeParams>,
}

macro_rules! kernels {
    ($name:ident, $narrow:ident, $wide:ident, $combine:ident) => {
        Kernels {
            sampling: sampling::$name,
            hopper_sampling: sampling::hopper::$name,
            reduction_keys: reduction_keys::$name,
            sparse_flash: portable::$name,
            hopper_sparse_flash: hopper::$name,
            decode_narrow: decode::$narrow,
            decode_wide: decode::$wide,
            decode_combine: decode::combine::$combine,
        }
    };
}

impl Kernels {
    pub(super) fn of(problem: &Problem) -> Result<Self> {
        match (problem.dtype, problem.head_dim) {
            (Dtype::Bf16, 64) => Ok(kernels!(BF16_D64, BF16_D64_M16, BF16_D64_M64, COMBINE_BF16)),
            (Dtype::Bf16, 128) => Ok(kernels!(
                BF16_D128,
                BF16_D128_M16,
                BF16_D128_M64,
                COMBINE_BF16
            )),
            (Dtype::F16, 64) => Ok(kernels!(F16_D64, F16_D64_M16, F16_D64_M64, COMBINE_F16)),
            (Dtype::F16, 128) => Ok(kernels!(F16_D128, F16_D128_M16, F16_D128_M64, COMBINE_F16)),
            (dtype @ Dtype::F32, _) => Err(Error::KernelDtype { dtype }),
            (_, head_dim) => Err(Error::KernelHeadDim { head_dim }),
        }
    }
}
