//! The report of a deadlock: which threads wait where, and which are missing.

use std::fmt::Write;

use super::state::thread::whereabouts;
use super::state::{Cta, Fault, FaultKind};

impl Cta {
    /// The fault when every thread waits.
    pub(super) fn deadlock(&self) -> Fault {
        let mut message =
            String::from("deadlock: every thread that has not exited waits, and none can go on.");
        message.push_str(&whereabouts(&self.threads));
        message.push_str(&self.barriers.who_is_missing(self.warps.len() as u32));
        for mbarrier in self.mbarriers.iter().filter(|mb| mb.has_waiters()) {
            let _ = write!(message, "\n{}", mbarrier.lacks());
        }
        self.describe(FaultKind::Deadlock, None, None, message)
    }
}
