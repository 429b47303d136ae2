//! `cp.async`: copies that land when their thread waits for them, and not before.

use std::panic::Location;

use super::state::cp_async::Copy;
use super::state::memory::copy_in;
use super::state::queue::pop_front_if;
use super::state::{At, Cta, FaultKind, with};

#[track_caller]
pub(in super::super) fn copy(op: &'static str, to: u32, from: u64, bytes: u32, source_bytes: u32) {
    let at = Location::caller();
    with(|cta| {
        if source_bytes > bytes {
            cta.fail(
                FaultKind::AsyncCopy,
                at,
                format!("`{op}` copies {bytes} bytes and is told to read {source_bytes}"),
            );
        }
        let host_to = cta.shared(to, bytes, bytes, op, at);
        let from = if source_bytes == 0 {
            std::ptr::null()
        } else {
            cta.global(from, source_bytes, bytes, op, at).cast_const()
        };
        // Poison until it lands: all ones is NaN in every format.
        // SAFETY: `shared` checked the range.
        unsafe { host_to.write_bytes(0xff, bytes as usize) };
        let group = cta.thread().copies.committed_groups;
        cta.note_copy_issued(to, bytes, group, op, at);
        cta.thread().copies.copies.push_back(Copy {
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
    with(|cta| cta.thread().copies.committed_groups += 1);
}

/// Waits until at most `pending` committed groups of the thread are in flight.
#[track_caller]
pub(in super::super) fn wait_group(pending: u32) {
    let at = Location::caller();
    with(|cta| {
        let landed = cta.thread().copies.committed_groups.saturating_sub(pending);
        cta.land(landed, at);
    });
}

/// Waits for all copies of the thread, committed or not.
#[track_caller]
pub(in super::super) fn wait_all() {
    let at = Location::caller();
    with(|cta| {
        cta.thread().copies.committed_groups += 1;
        let all = cta.thread().copies.committed_groups;
        cta.land(all, at);
    });
}

impl Cta {
    /// Lands the copies of the running thread whose group is below `groups`.
    pub(super) fn land(&mut self, groups: u32, at: At) {
        while let Some(copy) =
            pop_front_if(&mut self.thread().copies.copies, |copy| copy.group < groups)
        {
            let host_to = self.shared(copy.to, copy.bytes, copy.bytes, "cp.async", at);
            // SAFETY: both ranges were checked when the copy was issued; buffers live as long as
            // the launch. Words, because other CTAs may access the source meanwhile.
            unsafe {
                host_to.write_bytes(0, copy.bytes as usize);
                copy_in(copy.from, host_to, copy.source_bytes);
            }
        }
        self.note_copies_landed(groups);
    }
}
