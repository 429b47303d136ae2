//! Who a thread is.

use super::state::with;

/// The thread's index in its block.
#[track_caller]
pub(in super::super) fn tid() -> [u32; 3] {
    with(|block| {
        let [x, y, _] = block.ntid;
        let linear = block.current;
        [linear % x, linear / x % y, linear / (x * y)]
    })
}

#[track_caller]
pub(in super::super) fn ntid() -> [u32; 3] {
    with(|block| block.ntid)
}

#[track_caller]
pub(in super::super) fn ctaid() -> [u32; 3] {
    with(|block| block.ctaid)
}

#[track_caller]
pub(in super::super) fn nctaid() -> [u32; 3] {
    with(|block| block.nctaid)
}

#[track_caller]
pub(in super::super) fn laneid() -> u32 {
    with(|block| block.lane())
}

/// The bytes of dynamic shared memory of the launch.
#[track_caller]
pub(in super::super) fn dynamic_smem_size() -> u32 {
    with(|block| block.shared.bytes())
}
