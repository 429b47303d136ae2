//! A thread of a CTA: what it is doing, and the copies that only it can wait for.

use std::fmt::Write;
use std::ptr::NonNull;

use super::bulk::StoreQueue;
use super::cp_async::CopyQueue;
use super::diagnosis::{lanes, ranges};
use super::memory::SHARED_BASE;
use super::site::At;

/// What a thread is doing, for the scheduler and for the text of a deadlock.
#[derive(Clone, Copy)]
pub enum State {
    /// It runs, or would if it had its turn.
    Ready,
    /// At a collective of its warp, which needs the lanes of `mask`.
    Collective {
        op: &'static str,
        mask: u32,
        at: At,
    },
    /// At named barrier `id`.
    Barrier {
        id: u32,
        at: At,
    },
    /// For a phase of an mbarrier.
    Mbarrier {
        address: u32,
        parity: u32,
        at: At,
    },
    /// For the other warps of its warpgroup.
    Warpgroup {
        op: &'static str,
        at: At,
    },
    Exited,
}

/// How a running thread yields to the scheduler.
pub trait GiveWay {
    fn give_way(&self);
}

pub struct Thread {
    /// Set when the thread starts.
    pub yielder: Option<NonNull<dyn GiveWay>>,
    pub state: State,
    /// The last instruction that it called.
    pub last: Option<At>,
    pub copies: CopyQueue,
    pub stores: StoreQueue,
}

impl Thread {
    /// A thread that has not started.
    pub fn new() -> Self {
        Self {
            yielder: None,
            state: State::Ready,
            last: None,
            copies: CopyQueue::default(),
            stores: StoreQueue::default(),
        }
    }

    /// What it does, and where.
    fn whereabouts(&self) -> String {
        match self.state {
            State::Ready => match self.last {
                Some(at) => format!("run, last seen at {at}"),
                None => "have not started".to_owned(),
            },
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
        }
    }
}

/// A line for each place where threads are: `threads 0-31 wait at barrier 1, at …`.
pub fn whereabouts(threads: &[Thread]) -> String {
    let mut groups: Vec<(String, Vec<u32>)> = Vec::new();
    for (index, thread) in threads.iter().enumerate() {
        let what = thread.whereabouts();
        match groups.iter_mut().find(|(text, _)| *text == what) {
            Some((_, threads)) => threads.push(index as u32),
            None => groups.push((what, vec![index as u32])),
        }
    }
    let mut text = String::new();
    for (what, threads) in groups {
        let threads = ranges(threads);
        let _ = write!(text, "\nthreads {threads} {what}");
    }
    text
}
