//! Fences: which accesses are ordered for whom.

/// Orders this thread's memory accesses before and after it, for every thread of the block.
///
/// # PTX
/// `fence.acq_rel.cta;`
/// # Hardware support
/// sm_70 and later.
#[inline(always)]
pub fn fence_acq_rel_cta() {
    cfg_select! {
        target_arch = "nvptx64" => {
            // SAFETY: a fence has no operands.
            unsafe { core::arch::asm!("fence.acq_rel.cta;", options(nostack)) }
        }
        _ => { std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst) }
    }
}

/// Orders this thread's memory accesses before and after it, for every thread of the device.
///
/// # PTX
/// `fence.acq_rel.gpu;`
/// # Hardware support
/// sm_70 and later.
#[inline(always)]
pub fn fence_acq_rel_gpu() {
    cfg_select! {
        target_arch = "nvptx64" => {
            // SAFETY: a fence has no operands.
            unsafe { core::arch::asm!("fence.acq_rel.gpu;", options(nostack)) }
        }
        _ => { std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst) }
    }
}
