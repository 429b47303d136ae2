//! Fences: which accesses are ordered for whom.

/// Orders this thread's memory accesses before and after it, for every thread of the CTA.
///
/// # PTX
/// `fence.acq_rel.cta;`
/// # Hardware support
/// sm_70 and later.
#[inline(always)]
pub fn fence_acq_rel_cta() {
    on! {
        gpu => {
            // SAFETY: a fence has no operands.
            unsafe { core::arch::asm!("fence.acq_rel.cta;", options(nostack)) }
        }
        emulator => { std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst) }
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
    on! {
        gpu => {
            // SAFETY: a fence has no operands.
            unsafe { core::arch::asm!("fence.acq_rel.gpu;", options(nostack)) }
        }
        emulator => { std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst) }
    }
}

/// Makes this thread's earlier writes to shared memory, and those it has seen, visible to bulk
/// copies and `wgmma` (the async proxy). A barrier then hands them on.
///
/// # PTX
/// `fence.proxy.async.shared::cta;`
/// # Hardware support
/// sm_90 and later.
#[track_caller]
#[inline(always)]
pub fn fence_proxy_async_shared_cta() {
    on! {
        gpu => {
            // SAFETY: a fence has no operands.
            unsafe { core::arch::asm!("fence.proxy.async.shared::cta;", options(nostack)) }
        }
        emulator => { super::emu::bulk::fence_proxy_async() }
    }
}

/// Makes this thread's `mbarrier.init` visible to bulk copies.
///
/// # PTX
/// `fence.mbarrier_init.release.cluster;`
/// # Hardware support
/// sm_90 and later. The emulator orders initialisation by barriers alone.
#[inline(always)]
pub fn fence_mbarrier_init() {
    on! {
        gpu => {
            // SAFETY: a fence has no operands.
            unsafe { core::arch::asm!("fence.mbarrier_init.release.cluster;", options(nostack)) }
        }
        emulator => {}
    }
}
