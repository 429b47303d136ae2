//! The threads of a block as stackful coroutines, and the scheduler that switches between them: the only user of `corosensei`.

use std::any::Any;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;

use corosensei::stack::DefaultStack;
use corosensei::{Coroutine, CoroutineResult, Yielder};

use super::{Block, Body, CURRENT, GiveWay, Grid, State, Thread, with};
use crate::gpu::emu::barrier::Barriers;
use crate::gpu::emu::bulk::{Loads, StoreQueue};
use crate::gpu::emu::collective::Warp;
use crate::gpu::emu::cp_async::CopyQueue;
use crate::gpu::emu::diagnosis::{Fault, FaultKind};
use crate::gpu::emu::launch::Mode;
use crate::gpu::emu::memory::SharedMemory;
use crate::gpu::emu::race::Races;
use crate::gpu::emu::rng::Rng;
use crate::gpu::emu::wgmma::Warpgroup;

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

/// Runs one block to its end.
pub(in crate::gpu::emu) fn run(grid: &Grid<'_>, ctaid: [u32; 3]) -> Result<(), Fault> {
    let count: u32 = grid.ntid.iter().product();
    let rng = match grid.mode {
        Mode::Fast => None,
        Mode::Checked { seed } => {
            let [x, y, z] = ctaid.map(u64::from);
            Some(Rng::new(seed ^ (x << 40 | y << 20 | z)))
        }
    };
    let mut block = Block {
        kernel: grid.kernel,
        memory: grid.memory,
        ctaid,
        nctaid: grid.nctaid,
        ntid: grid.ntid,
        mode: grid.mode,
        shared: SharedMemory::new(grid.shared_bytes),
        threads: (0..count)
            .map(|_| Thread {
                yielder: None,
                state: State::Ready,
                copies: CopyQueue::default(),
                stores: StoreQueue::default(),
            })
            .collect(),
        warps: Warp::all_of(count),
        barriers: Barriers::default(),
        mbarriers: Vec::new(),
        loads: Loads::default(),
        warpgroups: (0..count / 128).map(|_| Warpgroup::default()).collect(),
        races: rng.is_some().then(|| Races::new(count, grid.shared_bytes)),
        current: 0,
        ready: (0..count).collect(),
        rng,
        spins: 0,
        fault: None,
    };
    let block = &raw mut block;
    // A nested launch from inside a kernel would overwrite the pointer; put back what was there.
    let outer = CURRENT.replace(block);
    let result = schedule(grid, block, count);
    CURRENT.set(outer);
    result
}

type ThreadCoroutine = Coroutine<(), (), (), DefaultStack>;

fn schedule(grid: &Grid<'_>, block: *mut Block, count: u32) -> Result<(), Fault> {
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
                    with(|block| {
                        block.threads[index as usize].yielder = Some(NonNull::from(yielder));
                    });
                    body(params);
                },
            ))
        })
        .collect();
    let mut running = count;
    let result = loop {
        // SAFETY: the block outlives this call, and no coroutine runs, so this is the only
        // reference to it until the block's end.
        let next = unsafe {
            let block = &mut *block;
            let next = block.next_ready().or_else(|| block.land_one_load());
            if let Some(index) = next {
                block.current = index;
            }
            next
        };
        let Some(index) = next else {
            if running == 0 {
                break Ok(());
            }
            // SAFETY: as above.
            break Err(unsafe { &*block }.deadlock());
        };
        let slot = &mut coroutines[index as usize];
        let coroutine = slot.as_mut().expect("a ready thread has not exited");
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let step = coroutine.resume(());
            if matches!(step, CoroutineResult::Return(())) {
                with(|block| {
                    block.exit();
                    if running == 1 {
                        block.all_exited();
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
                let block = unsafe { &mut *block };
                break Err(block.fault.take().unwrap_or_else(|| {
                    let text = format!("the kernel panicked: {}", panic_text(&*payload));
                    block.describe(FaultKind::Panic, Some(index), None, text)
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
