//! The threads of a CTA as stackful coroutines, and the scheduler that switches between them: the only user of `corosensei`.

use std::any::Any;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;

use corosensei::stack::DefaultStack;
use corosensei::{Coroutine, CoroutineResult, Yielder};

use super::state::barrier::Barriers;
use super::state::bulk::Loads;
use super::state::memory::{GlobalMemory, SharedMemory};
use super::state::progress::Progress;
use super::state::race::Races;
use super::state::rng::Rng;
use super::state::thread::{GiveWay, Thread};
use super::state::warp::Warp;
use super::state::wgmma::Warpgroup;
use super::state::{CURRENT, Cta, Fault, FaultKind, Mode, State, with};

/// A kernel, to be called with the address of its parameters.
type Body<'a> = &'a (dyn Fn(*const ()) + Sync);

/// What all CTAs of a launch share.
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

/// The stack of a thread. Kernels hold a few kilobytes of "registers"; unoptimised builds more.
const STACK_BYTES: usize = 256 * 1024;

thread_local! {
    static STACKS: RefCell<Vec<DefaultStack>> = const { RefCell::new(Vec::new()) };
}

impl GiveWay for Yielder<(), ()> {
    fn give_way(&self) {
        self.suspend(());
    }
}

/// Runs one CTA to its end.
pub(super) fn run(grid: &Grid<'_>, ctaid: [u32; 3]) -> Result<(), Fault> {
    let count: u32 = grid.ntid.iter().product();
    let rng = match grid.mode {
        Mode::Fast => None,
        Mode::Checked { seed } => {
            let [x, y, z] = ctaid.map(u64::from);
            Some(Rng::new(seed ^ (x << 40 | y << 20 | z)))
        }
    };
    let mut cta = Cta {
        kernel: grid.kernel,
        memory: grid.memory,
        ctaid,
        nctaid: grid.nctaid,
        ntid: grid.ntid,
        mode: grid.mode,
        shared: SharedMemory::new(grid.shared_bytes),
        threads: (0..count).map(|_| Thread::new()).collect(),
        warps: Warp::all_of(count),
        barriers: Barriers::default(),
        mbarriers: Vec::new(),
        loads: Loads::default(),
        warpgroups: (0..count / 128).map(|_| Warpgroup::default()).collect(),
        races: rng.is_some().then(|| Races::new(count, grid.shared_bytes)),
        current: 0,
        ready: (0..count).collect(),
        rng,
        progress: Progress::new(grid.memory.bytes()),
        fault: None,
    };
    let cta = &raw mut cta;
    // A nested launch from inside a kernel would overwrite the pointer; put back what was there.
    let outer = CURRENT.replace(cta);
    let result = schedule(grid, cta, count);
    CURRENT.set(outer);
    result
}

type ThreadCoroutine = Coroutine<(), (), (), DefaultStack>;

fn schedule(grid: &Grid<'_>, cta: *mut Cta, count: u32) -> Result<(), Fault> {
    // SAFETY: coroutines must be `'static`; these end, or are abandoned, before this function does,
    // and with it the borrow of `grid`.
    let (body, params) = unsafe {
        (
            std::mem::transmute::<Body<'_>, Body<'static>>(grid.body),
            grid.params,
        )
    };
    let mut coroutines: Vec<Option<ThreadCoroutine>> = (0..count)
        .map(|index| {
            let stack = STACKS
                .with_borrow_mut(Vec::pop)
                .unwrap_or_else(|| DefaultStack::new(STACK_BYTES).expect("memory for a stack"));
            Some(Coroutine::with_stack(
                stack,
                move |yielder: &Yielder<(), ()>, ()| {
                    let yielder: &dyn GiveWay = yielder;
                    with(|cta| {
                        cta.threads[index as usize].yielder = Some(NonNull::from(yielder));
                    });
                    body(params);
                },
            ))
        })
        .collect();
    let mut running = count;
    let result = loop {
        // SAFETY: the CTA outlives this call, and no coroutine runs, so this is the only
        // reference to it until the CTA's end.
        let next = unsafe {
            let cta = &mut *cta;
            let next = cta.next_ready().or_else(|| cta.land_one_load());
            if let Some(index) = next {
                cta.current = index;
            }
            next
        };
        let Some(index) = next else {
            if running == 0 {
                break Ok(());
            }
            // SAFETY: as above.
            break Err(unsafe { &*cta }.deadlock());
        };
        let slot = &mut coroutines[index as usize];
        let coroutine = slot.as_mut().expect("a ready thread has not exited");
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let step = coroutine.resume(());
            if matches!(step, CoroutineResult::Return(())) {
                with(|cta| {
                    cta.exit();
                    if running == 1 {
                        cta.all_exited();
                    }
                });
            }
            step
        }));
        match outcome {
            Ok(CoroutineResult::Yield(())) => {}
            Ok(CoroutineResult::Return(())) => {
                running -= 1;
                let stack = slot.take().expect("it just ran").into_stack();
                STACKS.with_borrow_mut(|stacks| stacks.push(stack));
            }
            Err(payload) => {
                // SAFETY: as above: the coroutine has unwound.
                let cta = unsafe { &mut *cta };
                break Err(cta.fault.take().unwrap_or_else(|| {
                    let text = format!("the kernel panicked: {}", panic_text(&*payload));
                    cta.describe(FaultKind::Panic, Some(index), None, text)
                }));
            }
        }
    };
    for coroutine in coroutines.iter_mut().flatten() {
        if coroutine.started() && !coroutine.done() {
            // SAFETY: what is abandoned owns nothing: a thread suspends only inside an intrinsic,
            // and kernel code, which is `no_std` and allocates nothing, has no destructors.
            unsafe { coroutine.force_reset() };
        }
    }
    result
}

fn panic_text(payload: &(dyn Any + Send)) -> String {
    payload
        .downcast_ref::<&str>()
        .map(ToString::to_string)
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without text".to_owned())
}

impl Cta {
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
}

impl Cta {
    /// The running thread has returned from the kernel.
    fn exit(&mut self) {
        self.progress.made();
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
                "the CTA ended, and nobody waited for a bulk copy that was issued here".into(),
            );
        }
    }
}
