//! One CTA: its threads, what they share, and who may run next.

use std::cell::Cell;
use std::collections::VecDeque;
use std::panic::{Location, resume_unwind};
use std::ptr::NonNull;

use super::barrier::Barriers;
use super::bulk::Loads;
use super::diagnosis::{Fault, FaultKind, ThreadName};
use super::mbarrier::Mbarrier;
use super::memory::{GlobalMemory, SharedMemory};
use super::mode::Mode;
use super::progress::{POLL_LIMIT, Progress};
use super::race::Races;
use super::rng::Rng;
use super::site::At;
use super::thread::{GiveWay, State, Thread, whereabouts};
use super::warp::Warp;
use super::wgmma::Warpgroup;

pub struct Cta {
    pub kernel: &'static str,
    pub memory: *const GlobalMemory,
    pub ctaid: [u32; 3],
    pub nctaid: [u32; 3],
    pub ntid: [u32; 3],
    pub mode: Mode,
    pub shared: SharedMemory,
    pub threads: Vec<Thread>,
    pub warps: Vec<Warp>,
    pub barriers: Barriers,
    pub mbarriers: Vec<Mbarrier>,
    pub loads: Loads,
    pub warpgroups: Vec<Warpgroup>,
    /// Only in checked mode.
    pub races: Option<Races>,
    /// The thread that runs.
    pub current: u32,
    pub ready: VecDeque<u32>,
    pub rng: Option<Rng>,
    pub progress: Progress,
    pub fault: Option<Fault>,
}

/// The payload that unwinds a thread after its CTA recorded a fault.
struct Abort;

thread_local! {
    pub static CURRENT: Cell<*mut Cta> = const { Cell::new(std::ptr::null_mut()) };
}

/// The CTA of the running thread, for the time of `f`, which must not suspend.
#[inline(always)]
fn running<R>(f: impl FnOnce(&mut Cta) -> R) -> R {
    let cta = CURRENT.get();
    assert!(
        !cta.is_null(),
        "GPU intrinsics work only inside a kernel that the emulator launched"
    );
    // SAFETY: `run` set the pointer to a live CTA of this OS thread, and no other reference to it
    // is alive: the scheduler holds none while a coroutine runs, and `f` does not suspend.
    f(unsafe { &mut *cta })
}

/// An instruction of the running thread, called by the caller's caller: `f` on the thread's CTA. `f` must not suspend.
#[inline(always)]
#[track_caller]
pub fn with<R>(f: impl FnOnce(&mut Cta) -> R) -> R {
    with_at(Location::caller(), f)
}

/// As [`with`], for an instruction that was called at `at`.
#[inline(always)]
pub fn with_at<R>(at: At, f: impl FnOnce(&mut Cta) -> R) -> R {
    running(|cta| {
        cta.thread().last = Some(at);
        if cta.progress.is_stuck_after_call() {
            cta.stuck(at);
        }
        f(cta)
    })
}

/// Yields to the scheduler until another thread makes this one ready.
pub fn suspend() {
    let yielder = running(|cta| {
        cta.progress.polls = 0;
        cta.thread().yielder
    });
    give_way(yielder);
}

/// Yields to the scheduler, staying ready: for instructions that kernels poll with.
pub fn spin(at: At) {
    let yielder = with_at(at, |cta| {
        cta.progress.polls += 1;
        if cta.progress.polls > POLL_LIMIT {
            let message = format!(
                "livelock: for {POLL_LIMIT} turns the threads of this CTA only polled memory, and nothing changed{}",
                whereabouts(&cta.threads)
            );
            cta.fail(FaultKind::Livelock, at, message);
        }
        let current = cta.current;
        cta.make_ready(current);
        cta.thread().yielder
    });
    give_way(yielder);
}

fn give_way(yielder: Option<NonNull<dyn GiveWay>>) {
    let yielder = yielder.expect("a running thread has started");
    // SAFETY: the thread stored its own yielder when it started, and is running now.
    unsafe { yielder.as_ref() }.give_way();
}

impl Cta {
    pub fn lane(&self) -> u32 {
        self.current % 32
    }

    pub fn warp(&self) -> u32 {
        self.current / 32
    }

    pub fn thread(&mut self) -> &mut Thread {
        &mut self.threads[self.current as usize]
    }

    /// Ends the launch with a diagnosis against the running thread.
    #[cold]
    pub fn fail(&mut self, kind: FaultKind, at: At, message: String) -> ! {
        self.fault = Some(self.describe(kind, Some(self.current), Some(at), message));
        resume_unwind(Box::new(Abort))
    }

    pub fn describe(
        &self,
        kind: FaultKind,
        thread: Option<u32>,
        at: Option<At>,
        message: String,
    ) -> Fault {
        Fault {
            kind,
            message,
            kernel: self.kernel,
            cta: Some(self.ctaid),
            thread: thread.map(ThreadName),
            at,
            mode: self.mode,
        }
    }

    pub fn make_ready(&mut self, thread: u32) {
        self.threads[thread as usize].state = State::Ready;
        self.ready.push_back(thread);
    }

    /// The thread whose turn it is, if any can go on.
    pub fn next_ready(&mut self) -> Option<u32> {
        if let Some(rng) = &mut self.rng
            && !self.ready.is_empty()
        {
            let pick = rng.below(self.ready.len());
            return self.ready.swap_remove_back(pick);
        }
        self.ready.pop_front()
    }

    /// Whether a thread waits for a phase of the mbarrier.
    pub fn has_waiters(&self, address: u32) -> bool {
        self.mbarriers
            .iter()
            .any(|mb| mb.address == address && mb.has_waiters())
    }

    #[cold]
    fn stuck(&mut self, at: At) -> ! {
        let message = format!(
            "livelock: the threads of this CTA have called {} instructions since one of them exited or wrote to a line of \
             global memory for the first time, far more than any kernel needs between two such steps; a loop does not \
             end{}",
            self.progress.limit(),
            whereabouts(&self.threads)
        );
        self.fail(FaultKind::Livelock, at, message)
    }
}
