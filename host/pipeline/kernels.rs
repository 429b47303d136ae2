//! The kernels by name, and calls of them: a kernel with its parameters.

use std::ffi::c_void;

use sample_attention_device::decode::{self, DecodeParams};
use sample_attention_device::gpu::Kernel;
#[cfg(feature = "emulator")]
use sample_attention_device::gpu::emu::{Fault, Gpu, Launch};
use sample_attention_device::reduction::blocks::ReductionBlocksParams;
use sample_attention_device::reduction::keys::{self as reduction_keys, ReductionKeysParams};
use sample_attention_device::sampling::heads::WriteHeadsParams;
use sample_attention_device::sampling::{self, SamplingParams};
use sample_attention_device::sparse_flash::hopper::schedule::ScheduleParams;
use sample_attention_device::sparse_flash::hopper::{self, HopperParams};
use sample_attention_device::sparse_flash::{SparseFlashParams, portable};
use sample_attention_device::top_k::blocks::TopKBlocksParams;
use sample_attention_device::top_k::dense::ChooseDenseParams;
use sample_attention_device::top_k::keys::TopKKeysParams;
use sample_attention_device::top_k::rows::SelectRowsParams;

use crate::error::{Error, Result};
use crate::problem::{Dtype, Problem};

macro_rules! calls {
    ($($(#[$meta:meta])* $variant:ident($params:ty),)*) => {
        /// A kernel and the `#[repr(C)]` struct that is its only parameter.
        #[derive(Clone, Copy, Debug)]
        #[allow(clippy::large_enum_variant, reason = "a run has a handful of launches")]
        pub enum Call {
            $($(#[$meta])* $variant(Kernel<$params>, $params),)*
        }

        impl Call {
            /// The name of the kernel's PTX entry.
            pub fn name(&self) -> &'static str {
                match self {
                    $(Call::$variant(kernel, _) => kernel.name(),)*
                }
            }

            /// Address and bytes of the parameter, as a driver takes it. Valid as long as the call stays where it is.
            pub fn params(&self) -> (*const c_void, usize) {
                match self {
                    $(Call::$variant(_, params) => {
                        (std::ptr::from_ref(params).cast(), size_of::<$params>())
                    })*
                }
            }

            /// Runs the kernel on an emulated device.
            #[cfg(feature = "emulator")]
            pub(crate) fn emulate(&self, gpu: &mut Gpu, launch: &Launch) -> Result<(), Fault> {
                match self {
                    $(Call::$variant(kernel, params) => gpu.launch(*kernel, launch, params),)*
                }
            }
        }
    };
}

calls! {
    /// The table of the heads' policies.
    WriteHeads(WriteHeadsParams),
    /// Softmax normalisers of the sampled rows, on any GPU.
    Sampling(SamplingParams),
    /// The same on Hopper.
    SamplingHopper(sampling::hopper::HopperParams),
    /// Sampled mass of pairs of blocks.
    ReductionBlocks(ReductionBlocksParams),
    /// Sampled mass of keys.
    ReductionKeys(ReductionKeysParams),
    /// Selection of key blocks by single rows, and the lists of heads that are not sampled.
    SelectRows(SelectRowsParams),
    /// Selection of pairs of blocks.
    TopKBlocks(TopKBlocksParams),
    /// Selection of keys.
    TopKKeys(TopKKeysParams),
    /// Which heads run dense.
    ChooseDense(ChooseDenseParams),
    /// Attention, on any GPU.
    SparseFlash(SparseFlashParams),
    /// The order of the attention's tasks on Hopper.
    SparseFlashSchedule(ScheduleParams),
    /// Attention on Hopper.
    SparseFlashHopper(HopperParams),
    /// Attention of few queries over splits of the keys, or the merge of the splits.
    Decode(DecodeParams),
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
