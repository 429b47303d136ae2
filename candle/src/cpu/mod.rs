//! CPU tensors, through the library's own backend.

mod batch;
mod lengths;
mod packed;
mod plans;
mod run;
mod scalar;

use candle_core::{CpuStorage, DType, Result, Storage, bail};
use half::{bf16, f16};

pub(crate) use plans::{CpuPlan, Key, Plans};
use run::Run;
use scalar::Scalar;

use crate::call::{Attention, LseSlot, Views};
use crate::workspace::Workspace;

/// Attends, and leaves the log-sum-exp in `lse`.
///
/// # Errors
/// What the call cannot compute.
pub(crate) fn forward(
    attention: &Attention,
    workspace: &Workspace,
    lse: Option<&LseSlot>,
    (q, k, v): (&CpuStorage, &CpuStorage, &CpuStorage),
    views: &Views,
) -> Result<CpuStorage> {
    let dtype = candle_core::backend::BackendStorage::dtype(q);
    let tensors = (q, k, v);
    match dtype {
        DType::F32 => forward_in::<f32>(attention, workspace, lse, tensors, views),
        DType::F16 => forward_in::<f16>(attention, workspace, lse, tensors, views),
        DType::BF16 => forward_in::<bf16>(attention, workspace, lse, tensors, views),
        other => {
            bail!("attention takes f32, f16 and bf16 on the CPU, not {other:?}: convert q, k and v")
        }
    }
}

fn forward_in<T: Scalar>(
    attention: &Attention,
    workspace: &Workspace,
    lse: Option<&LseSlot>,
    (q, k, v): (&CpuStorage, &CpuStorage, &CpuStorage),
    views: &Views,
) -> Result<CpuStorage> {
    let run = Run {
        attention,
        workspace,
        q: q.as_slice::<T>()?,
        k: k.as_slice::<T>()?,
        v: v.as_slice::<T>()?,
        views,
        wants_lse: lse.is_some(),
    };
    let computed = match &attention.packed {
        None => batch::run(&run)?,
        Some(packed) => packed::run(&run, packed)?,
    };
    workspace.set_report(computed.report);
    if let (Some(slot), Some(lse)) = (lse, computed.lse) {
        slot.put(Storage::Cpu(CpuStorage::F32(lse)));
    }
    Ok(T::to_cpu_storage_owned(computed.o))
}
