//! `cp.async`: copies that land when their thread waits for them, and not before.

use std::collections::VecDeque;
use std::panic::Location;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering::Relaxed};

use super::block::{At, Block, with};
use super::diagnosis::FaultKind;

struct Copy {
    /// The group it is, or will be, committed to: counted from 0 for each thread.
    group: u32,
    at: At,
    /// Null if no byte is read.
    from: *const u8,
    to: u32,
    bytes: u32,
    /// The rest is filled with zeros.
    source_bytes: u32,
}

/// The copies of one thread that have not landed.
#[derive(Default)]
pub(super) struct CopyQueue {
    copies: VecDeque<Copy>,
    committed_groups: u32,
}

impl CopyQueue {
    /// Where a copy that nothing has waited for was issued.
    pub(super) fn unfinished(&self) -> Option<At> {
        self.copies.front().map(|copy| copy.at)
    }
}

#[track_caller]
pub(in super::super) fn copy(op: &'static str, to: u32, from: u64, bytes: u32, source_bytes: u32) {
    let at = Location::caller();
    with(|block| {
        if source_bytes > bytes {
            block.fail(
                FaultKind::AsyncCopy,
                at,
                format!("`{op}` copies {bytes} bytes and is told to read {source_bytes}"),
            );
        }
        let host_to = block.shared(to, bytes, bytes, op, at);
        let from = if source_bytes == 0 {
            std::ptr::null()
        } else {
            block.global(from, source_bytes, bytes, op, at).cast_const()
        };
        // Until it lands, whoever reads the target finds NaN.
        // SAFETY: `shared` checked the range.
        unsafe { host_to.write_bytes(0xff, bytes as usize) };
        let group = block.thread().copies.committed_groups;
        block.note_copy_issued(to, bytes, group, op, at);
        block.thread().copies.copies.push_back(Copy {
            group,
            at,
            from,
            to,
            bytes,
            source_bytes,
        });
    });
}

#[track_caller]
pub(in super::super) fn commit_group() {
    with(|block| block.thread().copies.committed_groups += 1);
}

/// Waits until at most `pending` committed groups of the thread are in flight.
#[track_caller]
pub(in super::super) fn wait_group(pending: u32) {
    let at = Location::caller();
    with(|block| {
        let landed = block
            .thread()
            .copies
            .committed_groups
            .saturating_sub(pending);
        block.land(landed, at);
    });
}

/// Waits for all copies of the thread, committed or not.
#[track_caller]
pub(in super::super) fn wait_all() {
    let at = Location::caller();
    with(|block| {
        block.thread().copies.committed_groups += 1;
        let all = block.thread().copies.committed_groups;
        block.land(all, at);
    });
}

impl Block {
    /// Lands the copies of the running thread whose group is below `groups`.
    pub(super) fn land(&mut self, groups: u32, at: At) {
        while let Some(copy) =
            super::pop_front_if(&mut self.thread().copies.copies, |copy| copy.group < groups)
        {
            let host_to = self.shared(copy.to, copy.bytes, copy.bytes, "cp.async", at);
            // SAFETY: both ranges were checked when the copy was issued; buffers live as long as
            // the launch. Words, because other blocks may access the source meanwhile.
            unsafe {
                host_to.write_bytes(0, copy.bytes as usize);
                copy_in(copy.from, host_to, copy.source_bytes);
            }
        }
        self.note_copies_landed(groups);
    }
}

/// Copies from global to shared memory.
///
/// # Safety
/// `from` is valid for `bytes` bytes that are accessed atomically, `to` for as many of the block's.
pub(super) unsafe fn copy_in(from: *const u8, to: *mut u8, bytes: u32) {
    let bytes = bytes as usize;
    if from.addr().is_multiple_of(4) && bytes.is_multiple_of(4) {
        for i in (0..bytes).step_by(4) {
            // SAFETY: the caller's contract.
            unsafe {
                let word = AtomicU32::from_ptr(from.add(i).cast_mut().cast()).load(Relaxed);
                to.add(i).cast::<u32>().write_unaligned(word);
            }
        }
        return;
    }
    for i in 0..bytes {
        // SAFETY: the caller's contract.
        unsafe {
            let byte = AtomicU8::from_ptr(from.add(i).cast_mut()).load(Relaxed);
            to.add(i).write(byte);
        }
    }
}

/// Copies from shared to global memory.
///
/// # Safety
/// `to` is valid for `bytes` bytes that are accessed atomically, `from` for as many of the block's.
pub(super) unsafe fn copy_out(from: *const u8, to: *mut u8, bytes: u32) {
    let bytes = bytes as usize;
    if to.addr().is_multiple_of(4) && bytes.is_multiple_of(4) {
        for i in (0..bytes).step_by(4) {
            // SAFETY: the caller's contract.
            unsafe {
                let word = from.add(i).cast::<u32>().read_unaligned();
                AtomicU32::from_ptr(to.add(i).cast()).store(word, Relaxed);
            }
        }
        return;
    }
    for i in 0..bytes {
        // SAFETY: the caller's contract.
        unsafe { AtomicU8::from_ptr(to.add(i)).store(from.add(i).read(), Relaxed) };
    }
}
