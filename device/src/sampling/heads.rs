//! Writes the table of the heads' policies, which kernels read, from parameters: a run then needs no copy from the host.
//!
//! # Shape contract
//! [`launch_shape`]: a thread for each of [`ENTRIES`] entries. More heads take more launches.

use crate::abi::{HeadEntry, HeadKind, HeadPolicy};
use crate::gpu::{self, Global};
use crate::launch::{LaunchShape, WRITE_HEADS_THREADS};

/// Entries of a launch: 1 KB of its 4 KB of parameters.
pub const ENTRIES: usize = 32;
const _: () = assert!(ENTRIES as u32 == WRITE_HEADS_THREADS);

/// What is written where.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct WriteHeadsParams {
    /// \[q_heads\]: the table.
    pub table: Global<HeadEntry>,
    /// \[sampled heads\]: the head of each slot.
    pub sampled_heads: Global<u32>,
    /// The head of the first entry.
    pub first: u32,
    /// Entries; those after them are not read.
    pub count: u32,
    /// Heads `first .. first + count`.
    pub entries: [HeadEntry; ENTRIES],
}

impl WriteHeadsParams {
    /// What fills the entries that are not read.
    pub const UNUSED: HeadEntry = HeadEntry {
        policy: HeadPolicy {
            kind: HeadKind::Dense,
            coverage: 1.0,
            window_blocks: 1,
            row_stride: 1,
            tail: 0,
            tail_stride: 1,
            row_offset: 0,
            offset_step: 0,
            stride_doubles_from: u32::MAX,
        },
        slot: HeadEntry::NO_SLOT,
    };
}

/// The launch of `write_heads`.
pub const fn launch_shape() -> LaunchShape {
    LaunchShape::linear(1, WRITE_HEADS_THREADS, 0)
}

#[inline(always)]
fn write(p: &WriteHeadsParams) {
    // Each entry by a constant index: parameters have no addresses.
    for (index, entry) in p.entries.iter().enumerate() {
        let index = index as u32;
        if gpu::tid_x() == index && index < p.count {
            let head = p.first + index;
            let policy = &entry.policy;
            let words = [
                policy.kind as u32,
                policy.coverage.to_bits(),
                policy.window_blocks,
                policy.row_stride,
                policy.tail,
                policy.tail_stride,
                policy.row_offset,
                policy.offset_step,
                policy.stride_doubles_from,
                entry.slot,
            ];
            let to = p
                .table
                .cast::<u32>()
                .add(u64::from(head * HeadEntry::WORDS));
            for (word, &value) in words.iter().enumerate() {
                gpu::st_global(to.add(word as u64), value);
            }
            if entry.slot != HeadEntry::NO_SLOT {
                gpu::st_global(p.sampled_heads.add(entry.slot.into()), head);
            }
        }
    }
}

crate::entry! {
    /// The table of the heads' policies.
    WRITE_HEADS, write_heads = write, WriteHeadsParams
}
