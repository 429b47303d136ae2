//! One block: its threads, what they share, and who may run next.

mod coroutines;

use std::cell::Cell;
use std::collections::VecDeque;
use std::panic::{Location, resume_unwind};
use std::ptr::NonNull;

use super::barrier::Barriers;
use super::bulk::{Loads, StoreQueue};
use super::collective::Warp;
use super::cp_async::CopyQueue;
use super::diagnosis::{Fault, FaultKind, ThreadName};
use super::launch::Mode;
use super::mbarrier::Mbarrier;
use super::memory::{GlobalMemory, SharedMemory};
use super::race::Races;
use super::rng::Rng;
use super::wgmma::Warpgroup;

pub(super) use coroutines::run;

/// Where in the source an instruction was called.
pub(super) type At = &'static Location<'static>;

/// Turns of the scheduler in which threads only spun, before that counts as livelock.
const SPIN_LIMIT: u64 = 1 << 22;

/// A kernel, to be called with the address of its parameters.
type Body<'a> = &'a (dyn Fn(*const ()) + Sync);

/// What all blocks of a launch share.
pub(super) struct Grid<'a> {
    pub(super) kernel: &'static str,
    pub(super) body: Body<'a>,
    pub(super) params: *const (),
    pub(super) memory: &'a GlobalMemory,
    pub(super) nctaid: [u32; 3],
    pub(super) ntid: [u32; 3],
    pub(super) shared_bytes: u32,
    pub(super) mode: Mode,
}

// SAFETY: `params` is read only, and only by kernels, which get it as a shared reference.
unsafe impl Sync for Grid<'_> {}

/// What a thread is doing, for the scheduler and for whoever reads a deadlock.
#[derive(Clone, Copy)]
pub(super) enum State {
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

/// How a running thread gives way to the scheduler.
trait GiveWay {
    fn give_way(&self);
}

pub(super) struct Thread {
    /// The thread's own, from its start on.
    yielder: Option<NonNull<dyn GiveWay>>,
    pub(super) state: State,
    pub(super) copies: CopyQueue,
    pub(super) stores: StoreQueue,
}

pub(super) struct Block {
    pub(super) kernel: &'static str,
    pub(super) memory: *const GlobalMemory,
    pub(super) ctaid: [u32; 3],
    pub(super) nctaid: [u32; 3],
    pub(super) ntid: [u32; 3],
    pub(super) mode: Mode,
    pub(super) shared: SharedMemory,
    pub(super) threads: Vec<Thread>,
    pub(super) warps: Vec<Warp>,
    pub(super) barriers: Barriers,
    pub(super) mbarriers: Vec<Mbarrier>,
    pub(super) loads: Loads,
    pub(super) warpgroups: Vec<Warpgroup>,
    /// Only in checked mode.
    pub(super) races: Option<Races>,
    /// The thread that runs.
    pub(super) current: u32,
    ready: VecDeque<u32>,
    rng: Option<Rng>,
    spins: u64,
    fault: Option<Fault>,
}

/// The payload that unwinds a thread after its block recorded a fault.
struct Abort;

thread_local! {
    static CURRENT: Cell<*mut Block> = const { Cell::new(std::ptr::null_mut()) };
}

/// The block of the running thread, for the time of `f`, which must not suspend.
#[inline(always)]
pub(super) fn with<R>(f: impl FnOnce(&mut Block) -> R) -> R {
    let block = CURRENT.get();
    assert!(
        !block.is_null(),
        "GPU intrinsics work only inside a kernel that the emulator launched"
    );
    // SAFETY: `run` set the pointer to a live block of this OS thread, and no other reference to it
    // is alive: the scheduler holds none while a coroutine runs, and `f` does not suspend.
    f(unsafe { &mut *block })
}

/// Gives way to the scheduler until another thread makes this one ready.
pub(super) fn suspend() {
    let yielder = with(|block| {
        block.spins = 0;
        block.threads[block.current as usize].yielder
    });
    give_way(yielder);
}

/// Gives way to the scheduler, staying ready: for instructions that kernels spin on.
pub(super) fn spin(at: At) {
    let yielder = with(|block| {
        block.spins += 1;
        if block.spins > SPIN_LIMIT {
            block.fail(
                FaultKind::Livelock,
                at,
                format!(
                    "livelock: for {SPIN_LIMIT} turns the threads of this block only polled memory, \
                     and nothing changed"
                ),
            );
        }
        let current = block.current;
        block.make_ready(current);
        block.threads[current as usize].yielder
    });
    give_way(yielder);
}

fn give_way(yielder: Option<NonNull<dyn GiveWay>>) {
    let yielder = yielder.expect("a running thread has started");
    // SAFETY: the thread stored its own yielder when it started, and is running now.
    unsafe { yielder.as_ref() }.give_way();
}

impl Block {
    pub(super) fn lane(&self) -> u32 {
        self.current % 32
    }

    pub(super) fn warp(&self) -> u32 {
        self.current / 32
    }

    pub(super) fn thread(&mut self) -> &mut Thread {
        &mut self.threads[self.current as usize]
    }

    /// Ends the launch with a diagnosis against the running thread.
    #[cold]
    pub(super) fn fail(&mut self, kind: FaultKind, at: At, message: String) -> ! {
        self.fault = Some(self.describe(kind, Some(self.current), Some(at), message));
        resume_unwind(Box::new(Abort))
    }

    pub(super) fn describe(
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
            block: Some(self.ctaid),
            thread: thread.map(ThreadName),
            at,
            mode: self.mode,
        }
    }

    pub(super) fn make_ready(&mut self, thread: u32) {
        self.threads[thread as usize].state = State::Ready;
        self.ready.push_back(thread);
    }

    /// No thread can go on: a bulk copy lands, and perhaps makes one ready.
    fn land_one_load(&mut self) -> Option<u32> {
        while self.loads.len() > 0 {
            let waited: Vec<usize> = (0..self.loads.len())
                .filter(|&index| self.has_waiters(self.loads.mbarrier(index)))
                .collect();
            if waited.is_empty() {
                return None;
            }
            let pick = self.rng.as_mut().map_or(0, |rng| rng.below(waited.len()));
            self.land_bulk_load(waited[pick]);
            if let Some(next) = self.next_ready() {
                return Some(next);
            }
        }
        None
    }

    fn next_ready(&mut self) -> Option<u32> {
        if let Some(rng) = &mut self.rng
            && !self.ready.is_empty()
        {
            let pick = rng.below(self.ready.len());
            return self.ready.swap_remove_back(pick);
        }
        self.ready.pop_front()
    }
}

impl Block {
    /// The running thread has returned from the kernel.
    fn exit(&mut self) {
        let thread = self.thread();
        thread.state = State::Exited;
        let unfinished = thread
            .copies
            .unfinished()
            .map(|at| ("a `cp.async`", at))
            .or_else(|| thread.stores.unfinished().map(|at| ("a bulk store", at)));
        if let Some((what, at)) = unfinished {
            self.fail(
                FaultKind::AsyncCopy,
                at,
                format!(
                    "this thread exited the kernel without waiting for {what} that it issued here"
                ),
            );
        }
        self.lane_exits();
        self.warp_exits_in_flight();
    }

    /// The last thread has exited: no load may be left.
    fn all_exited(&mut self) {
        if let Some(at) = self.loads.unfinished() {
            self.fail(
                FaultKind::AsyncCopy,
                at,
                "the block ended, and nobody waited for a bulk copy that was issued here".into(),
            );
        }
    }
}
