//! The `cp.async` copies of a thread that have not landed.

use std::collections::VecDeque;

use super::site::At;

pub struct Copy {
    /// The group it is, or will be, committed to: counted from 0 for each thread.
    pub group: u32,
    pub at: At,
    /// Null if no byte is read.
    pub from: *const u8,
    pub to: u32,
    pub bytes: u32,
    /// The rest is filled with zeros.
    pub source_bytes: u32,
}

/// The copies of one thread that have not landed.
#[derive(Default)]
pub struct CopyQueue {
    pub copies: VecDeque<Copy>,
    pub committed_groups: u32,
}

impl CopyQueue {
    /// Where a copy that nothing has waited for was issued.
    pub fn unfinished(&self) -> Option<At> {
        self.copies.front().map(|copy| copy.at)
    }
}
