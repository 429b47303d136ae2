//! Bulk copies: one thread moves whole tiles, linear or through a tensor map (TMA).
//!
//! Loads complete on an mbarrier, whose phase must expect their bytes. Stores belong to groups of
//! the thread that issued them, which must wait for them before it exits or their source changes.
//! Both work in the async proxy: what ordinary instructions wrote needs
//! [`fence_proxy_async_shared_cta`](super::fence_proxy_async_shared_cta) first.

use super::address::{Global, Shared};
#[cfg(all(not(target_arch = "nvptx64"), feature = "emulator"))]
use super::emu::bulk as emu;
use super::tensor_map::TensorMap;

/// Copies `bytes` bytes from global to shared memory. Addresses and size are multiples of 16.
///
/// # PTX
/// `cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [to], [from], bytes, [mbarrier];`
/// # Hardware support
/// sm_90 and later.
#[track_caller]
#[inline(always)]
pub fn cp_async_bulk_shared_global<T>(
    to: Shared<T>,
    from: Global<T>,
    bytes: u32,
    mbarrier: Shared<u64>,
) {
    on! {
        gpu => {
            // SAFETY: the addresses are valid by the launch's contract.
            unsafe {
                core::arch::asm!("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [{t}], [{f}], {n}, [{m}];",
                    t = in(reg32) to.address(), f = in(reg64) from.address(), n = in(reg32) bytes,
                    m = in(reg32) mbarrier.address(), options(nostack));
            }
        }
        emulator => { emu::load(to.address(), from.address(), bytes, mbarrier.address()) }
    }
}

/// Copies `bytes` bytes from shared to global memory. Addresses and size are multiples of 16.
///
/// # PTX
/// `cp.async.bulk.global.shared::cta.bulk_group [to], [from], bytes;`
/// # Hardware support
/// sm_90 and later.
#[track_caller]
#[inline(always)]
pub fn cp_async_bulk_global_shared<T>(to: Global<T>, from: Shared<T>, bytes: u32) {
    on! {
        gpu => {
            // SAFETY: the addresses are valid by the launch's contract.
            unsafe {
                core::arch::asm!("cp.async.bulk.global.shared::cta.bulk_group [{t}], [{f}], {n};",
                    t = in(reg64) to.address(), f = in(reg32) from.address(), n = in(reg32) bytes, options(nostack));
            }
        }
        emulator => { emu::store(to.address(), from.address(), bytes) }
    }
}

/// Makes a group of the thread's bulk stores since the last commit.
///
/// # PTX
/// `cp.async.bulk.commit_group;`
/// # Hardware support
/// sm_90 and later.
#[track_caller]
#[inline(always)]
pub fn cp_async_bulk_commit_group() {
    on! {
        gpu => {
            // SAFETY: no operands.
            unsafe { core::arch::asm!("cp.async.bulk.commit_group;", options(nostack)) }
        }
        emulator => { emu::commit_group() }
    }
}

/// Waits until at most `PENDING` of the thread's latest groups of bulk stores are in flight.
///
/// # PTX
/// `cp.async.bulk.wait_group PENDING;`
/// # Hardware support
/// sm_90 and later.
#[track_caller]
#[inline(always)]
pub fn cp_async_bulk_wait_group<const PENDING: u32>() {
    on! {
        gpu => {
            // SAFETY: no memory operands.
            unsafe { core::arch::asm!("cp.async.bulk.wait_group {n};", n = const PENDING, options(nostack)) }
        }
        emulator => { emu::wait_group(PENDING) }
    }
}

/// Waits until all but at most `PENDING` of the thread's latest groups of bulk stores have read
/// their source, which may then change.
///
/// # PTX
/// `cp.async.bulk.wait_group.read PENDING;`
/// # Hardware support
/// sm_90 and later.
#[track_caller]
#[inline(always)]
pub fn cp_async_bulk_wait_group_read<const PENDING: u32>() {
    on! {
        gpu => {
            // SAFETY: no memory operands.
            unsafe { core::arch::asm!("cp.async.bulk.wait_group.read {n};", n = const PENDING, options(nostack)) }
        }
        emulator => { emu::wait_group(PENDING) }
    }
}

/// Brings a tensor map near, ahead of its first use.
///
/// # PTX
/// `prefetch.tensormap [map];`
/// # Hardware support
/// sm_90 and later.
#[inline(always)]
pub fn prefetch_tensormap(map: &TensorMap) {
    on! {
        gpu => {
            // SAFETY: the address is valid by the launch's contract.
            unsafe { core::arch::asm!("prefetch.tensormap [{m}];", m = in(reg64) map, options(nostack)) }
        }
        emulator => { let _ = map; }
    }
}

/// Copies the box that begins at element `at` of a 2-dimensional tensor to shared memory, at a
/// multiple of 128 bytes. Elements out of bounds are zero, and count as bytes all the same.
///
/// # PTX
/// `cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [to], [map, {at}], [mbarrier];`
/// # Hardware support
/// sm_90 and later.
#[track_caller]
#[inline(always)]
pub fn cp_async_bulk_tensor_2d_shared_global<T>(
    to: Shared<T>,
    map: &TensorMap,
    at: [i32; 2],
    mbarrier: Shared<u64>,
) {
    on! {
        gpu => {
            // SAFETY: the addresses are valid by the launch's contract.
            unsafe {
                core::arch::asm!("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [{t}], [{m}, {{{x}, {y}}}], [{b}];",
                    t = in(reg32) to.address(), m = in(reg64) map, x = in(reg32) at[0], y = in(reg32) at[1],
                    b = in(reg32) mbarrier.address(), options(nostack));
            }
        }
        emulator => { emu::load_tensor(to.address(), map, &at, mbarrier.address()) }
    }
}

/// Copies a box from shared memory, at a multiple of 128 bytes, to element `at` of a 2-dimensional
/// tensor. Elements out of bounds are not written.
///
/// # PTX
/// `cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [map, {at}], [from];`
/// # Hardware support
/// sm_90 and later.
#[track_caller]
#[inline(always)]
pub fn cp_async_bulk_tensor_2d_global_shared<T>(map: &TensorMap, at: [i32; 2], from: Shared<T>) {
    on! {
        gpu => {
            // SAFETY: the addresses are valid by the launch's contract.
            unsafe {
                core::arch::asm!("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [{m}, {{{x}, {y}}}], [{f}];",
                    m = in(reg64) map, x = in(reg32) at[0], y = in(reg32) at[1], f = in(reg32) from.address(), options(nostack));
            }
        }
        emulator => { emu::store_tensor(map, &at, from.address()) }
    }
}

/// Copies the box that begins at element `at` of a 3-dimensional tensor to shared memory, at a
/// multiple of 128 bytes. Elements out of bounds are zero, and count as bytes all the same.
///
/// # PTX
/// `cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [to], [map, {at}], [mbarrier];`
/// # Hardware support
/// sm_90 and later.
#[track_caller]
#[inline(always)]
pub fn cp_async_bulk_tensor_3d_shared_global<T>(
    to: Shared<T>,
    map: &TensorMap,
    at: [i32; 3],
    mbarrier: Shared<u64>,
) {
    on! {
        gpu => {
            // SAFETY: the addresses are valid by the launch's contract.
            unsafe {
                core::arch::asm!("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [{t}], [{m}, {{{x}, {y}, {z}}}], [{b}];",
                    t = in(reg32) to.address(), m = in(reg64) map, x = in(reg32) at[0], y = in(reg32) at[1], z = in(reg32) at[2],
                    b = in(reg32) mbarrier.address(), options(nostack));
            }
        }
        emulator => { emu::load_tensor(to.address(), map, &at, mbarrier.address()) }
    }
}

/// Copies a box from shared memory, at a multiple of 128 bytes, to element `at` of a 3-dimensional
/// tensor. Elements out of bounds are not written.
///
/// # PTX
/// `cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [map, {at}], [from];`
/// # Hardware support
/// sm_90 and later.
#[track_caller]
#[inline(always)]
pub fn cp_async_bulk_tensor_3d_global_shared<T>(map: &TensorMap, at: [i32; 3], from: Shared<T>) {
    on! {
        gpu => {
            // SAFETY: the addresses are valid by the launch's contract.
            unsafe {
                core::arch::asm!("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [{m}, {{{x}, {y}, {z}}}], [{f}];",
                    m = in(reg64) map, x = in(reg32) at[0], y = in(reg32) at[1], z = in(reg32) at[2], f = in(reg32) from.address(), options(nostack));
            }
        }
        emulator => { emu::store_tensor(map, &at, from.address()) }
    }
}

/// Copies the box that begins at element `at` of a 4-dimensional tensor to shared memory, at a
/// multiple of 128 bytes. Elements out of bounds are zero, and count as bytes all the same.
///
/// # PTX
/// `cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [to], [map, {at}], [mbarrier];`
/// # Hardware support
/// sm_90 and later.
#[track_caller]
#[inline(always)]
pub fn cp_async_bulk_tensor_4d_shared_global<T>(
    to: Shared<T>,
    map: &TensorMap,
    at: [i32; 4],
    mbarrier: Shared<u64>,
) {
    on! {
        gpu => {
            // SAFETY: the addresses are valid by the launch's contract.
            unsafe {
                core::arch::asm!("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [{t}], [{m}, {{{x}, {y}, {z}, {w}}}], [{b}];",
                    t = in(reg32) to.address(), m = in(reg64) map, x = in(reg32) at[0], y = in(reg32) at[1], z = in(reg32) at[2], w = in(reg32) at[3],
                    b = in(reg32) mbarrier.address(), options(nostack));
            }
        }
        emulator => { emu::load_tensor(to.address(), map, &at, mbarrier.address()) }
    }
}

/// Copies a box from shared memory, at a multiple of 128 bytes, to element `at` of a 4-dimensional
/// tensor. Elements out of bounds are not written.
///
/// # PTX
/// `cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [map, {at}], [from];`
/// # Hardware support
/// sm_90 and later.
#[track_caller]
#[inline(always)]
pub fn cp_async_bulk_tensor_4d_global_shared<T>(map: &TensorMap, at: [i32; 4], from: Shared<T>) {
    on! {
        gpu => {
            // SAFETY: the addresses are valid by the launch's contract.
            unsafe {
                core::arch::asm!("cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [{m}, {{{x}, {y}, {z}, {w}}}], [{f}];",
                    m = in(reg64) map, x = in(reg32) at[0], y = in(reg32) at[1], z = in(reg32) at[2], w = in(reg32) at[3], f = in(reg32) from.address(), options(nostack));
            }
        }
        emulator => { emu::store_tensor(map, &at, from.address()) }
    }
}
