//! Who a thread is.

use super::block::with;

/// The thread's index in its block.
pub(in super::super) fn tid() -> [u32; 3] {
    with(|block| {
        let [x, y, _] = block.ntid;
        let linear = block.current;
        [linear % x, linear / x % y, linear / (x * y)]
    })
}

pub(in super::super) fn ntid() -> [u32; 3] {
    with(|block| block.ntid)
}

pub(in super::super) fn ctaid() -> [u32; 3] {
    with(|block| block.ctaid)
}

pub(in super::super) fn nctaid() -> [u32; 3] {
    with(|block| block.nctaid)
}

pub(in super::super) fn laneid() -> u32 {
    with(|block| block.lane())
}

/// The bytes of dynamic shared memory of the launch.
pub(in super::super) fn dynamic_smem_size() -> u32 {
    with(|block| block.shared.bytes())
}
