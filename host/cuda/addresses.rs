//! Whether addresses are of the GPU that is about to use them, as the driver knows it. May be asked during a capture.

use std::ffi::{c_int, c_uint, c_void};

use super::driver;
use crate::error::{CudaError, DriverCode};
use crate::pipeline::{GpuPlan, Operands};

/// Checks the operands of a plan on GPU `ordinal`, whose context is current.
pub(super) fn check(ordinal: u32, plan: &GpuPlan, operands: &Operands) -> Result<(), CudaError> {
    let Operands {
        q,
        k,
        v,
        o,
        lse,
        workspace,
    } = operands;
    let tensors = [("q", q), ("k", k), ("v", v), ("o", o)];
    for (operand, tensor) in tensors {
        check_one(ordinal, operand, tensor.address())?;
    }
    check_one(ordinal, "lse", lse.address)?;
    if plan.workspace_bytes() > 0 {
        check_one(ordinal, "the workspace", workspace.address)?;
    }
    Ok(())
}

/// Checks one address. Managed memory is of every GPU.
pub(super) fn check_one(
    ordinal: u32,
    operand: &'static str,
    address: u64,
) -> Result<(), CudaError> {
    let foreign = |owner| CudaError::ForeignAddress {
        operand,
        address,
        ordinal,
        owner,
    };
    let kind: Option<c_uint> = attribute(driver::POINTER_MEMORY_TYPE, address)?;
    let managed: Option<c_int> = attribute(driver::POINTER_IS_MANAGED, address)?;
    if managed.is_some_and(|managed| managed != 0) {
        return Ok(());
    }
    if kind != Some(driver::MEMORY_TYPE_DEVICE) {
        return Err(foreign(None));
    }
    let owner: Option<c_int> = attribute(driver::POINTER_DEVICE_ORDINAL, address)?;
    match owner.and_then(|owner| u32::try_from(owner).ok()) {
        Some(owner) if owner == ordinal => Ok(()),
        owner => Err(foreign(owner)),
    }
}

/// What the driver knows of an address; `None` where it knows nothing.
fn attribute<T: Default>(attribute: c_uint, address: u64) -> Result<Option<T>, CudaError> {
    let mut value = T::default();
    let to: *mut c_void = (&raw mut value).cast();
    // SAFETY: both kinds of attribute that are asked for are 32-bit integers, and the address is only looked up.
    match DriverCode(unsafe { driver::cuPointerGetAttribute(to, attribute, address) }) {
        DriverCode(0) => Ok(Some(value)),
        DriverCode::INVALID_VALUE => Ok(None),
        code => Err(CudaError::of("cuPointerGetAttribute", code)),
    }
}
