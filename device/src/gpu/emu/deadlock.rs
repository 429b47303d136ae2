//! The account of a deadlock: who waits where, and who is missing.

use std::fmt::Write;

use super::block::{Block, State};
use super::diagnosis::{Fault, FaultKind, lanes, ranges};
use super::memory::SHARED_BASE;

impl Block {
    /// Every thread waits: says for what.
    pub(super) fn deadlock(&self) -> Fault {
        let mut message =
            String::from("deadlock: every thread that has not exited waits, and none can go on.");
        let mut groups: Vec<(String, Vec<u32>)> = Vec::new();
        for (index, thread) in self.threads.iter().enumerate() {
            let what = match thread.state {
                State::Ready => unreachable!("a ready thread is not deadlocked"),
                State::Exited => "exited".to_owned(),
                State::Collective { op, mask, at } => format!(
                    "wait in `{op}` at {at} for lanes {} of their warp",
                    lanes(mask)
                ),
                State::Barrier { id, at } => format!("wait at barrier {id}, at {at}"),
                State::Mbarrier {
                    address,
                    parity,
                    at,
                } => format!(
                    "wait for parity {parity} of the mbarrier at byte {} of shared memory, at {at}",
                    address - SHARED_BASE
                ),
                State::Warpgroup { op, at } => {
                    format!("wait in `{op}` at {at} for the other warps of their warpgroup")
                }
            };
            match groups.iter_mut().find(|(text, _)| *text == what) {
                Some((_, threads)) => threads.push(index as u32),
                None => groups.push((what, vec![index as u32])),
            }
        }
        for (what, threads) in groups {
            let threads = ranges(threads);
            let _ = write!(message, "\nthreads {threads} {what}");
        }
        message.push_str(&self.barriers.who_is_missing(self));
        for mbarrier in self.mbarriers.iter().filter(|mb| mb.has_waiters()) {
            let _ = write!(message, "\n{}", mbarrier.lacks());
        }
        self.describe(FaultKind::Deadlock, None, None, message)
    }
}
