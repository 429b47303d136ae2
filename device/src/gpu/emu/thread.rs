//! Who a thread is.

use super::state::with;

/// The thread's index in its CTA.
#[track_caller]
pub(in super::super) fn tid() -> [u32; 3] {
    with(|cta| {
        let [x, y, _] = cta.ntid;
        let linear = cta.current;
        [linear % x, linear / x % y, linear / (x * y)]
    })
}

#[track_caller]
pub(in super::super) fn ntid() -> [u32; 3] {
    with(|cta| cta.ntid)
}

#[track_caller]
pub(in super::super) fn ctaid() -> [u32; 3] {
    with(|cta| cta.ctaid)
}

#[track_caller]
pub(in super::super) fn nctaid() -> [u32; 3] {
    with(|cta| cta.nctaid)
}

#[track_caller]
pub(in super::super) fn laneid() -> u32 {
    with(|cta| cta.lane())
}

/// The bytes of dynamic shared memory of the launch.
#[track_caller]
pub(in super::super) fn dynamic_smem_size() -> u32 {
    with(|cta| cta.shared.bytes())
}
