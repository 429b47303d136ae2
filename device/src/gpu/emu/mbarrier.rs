//! `mbarrier` instructions, with phases as integers.
//!
//! Hardware tells phases apart by one parity bit. Here each thread's waits are counted, so a wait
//! whose parity matches a phase other than the one that is meant is diagnosed.

use std::panic::Location;

use super::state::mbarrier::{MAX_TX, Mbarrier};
use super::state::memory::{Access, SHARED_BASE};
use super::state::{At, Cta, FaultKind, State, spin, suspend, with};

impl Cta {
    /// Whether the phase with this parity has completed; checks that it is the phase that the
    /// thread must mean.
    fn phase_done(&mut self, index: usize, parity: u32, op: &'static str, at: At) -> bool {
        let thread = self.current as usize;
        let mb = &self.mbarriers[index];
        let done = mb.completed & 1 != u64::from(parity);
        let seen = mb.completed as i64 - 1;
        if let Some(last) = mb.waited.get(thread).copied().flatten() {
            let problem = if done && last == seen {
                format!(
                    "this thread has already waited for phase {last}, and waits for parity {parity} again: the wait \
                     returns at once on old data; flip the parity after each wait"
                )
            } else if seen - last >= 2 {
                format!(
                    "this thread last waited for phase {last}, but phase {seen} has completed meanwhile: the barrier \
                     ran ahead, and one parity bit cannot tell; the threads that arrive must wait for this one"
                )
            } else {
                return done;
            };
            let message = format!(
                "`{op}` on the mbarrier at byte {} of shared memory: {problem}",
                mb.address - SHARED_BASE
            );
            self.fail(FaultKind::Mbarrier, at, message);
        }
        done
    }

    fn waited_for(&mut self, index: usize, phase: i64) {
        let thread = self.current as usize;
        let count = self.threads.len();
        let mb = &mut self.mbarriers[index];
        mb.waited.resize(count, None);
        mb.waited[thread] = Some(phase);
        let knowledge = mb.arrived.take();
        self.acquire(thread as u32, &knowledge);
        self.mbarriers[index].arrived = knowledge;
    }
}

#[track_caller]
pub(in super::super) fn init(address: u32, count: u32) {
    let op = "mbarrier.init";
    let at = Location::caller();
    with(|cta| {
        cta.shared(address, 8, 8, op, at);
        if !(1..=MAX_TX as u32).contains(&count) {
            cta.fail(
                FaultKind::Mbarrier,
                at,
                format!("`{op}` for {count} arrivals; it takes 1 to {MAX_TX}"),
            );
        }
        cta.refuse_live_mbarrier(address, 8, op, at);
        cta.note_mbarrier_access(address, Access::Write, op, at);
        cta.mbarriers.push(Mbarrier {
            address,
            initialised_at: at,
            count,
            pending: count,
            tx: 0,
            completed: 0,
            waited: Vec::new(),
            waiters: Vec::new(),
            arriving: None,
            arrived: None,
        });
    });
}

#[track_caller]
pub(in super::super) fn inval(address: u32) {
    let op = "mbarrier.inval";
    let at = Location::caller();
    with(|cta| {
        let index = cta.mbarrier(address, op, at);
        cta.note_mbarrier_access(address, Access::Write, op, at);
        let mb = &cta.mbarriers[index];
        if mb.has_waiters() {
            let message = format!("`{op}` while threads wait; {}", mb.lacks());
            cta.fail(FaultKind::Mbarrier, at, message);
        }
        cta.mbarriers.swap_remove(index);
    });
}

#[track_caller]
pub(in super::super) fn arrive(op: &'static str, address: u32, expect_bytes: u32, arrivals: u32) {
    let at = Location::caller();
    with(|cta| cta.arrive_at(address, expect_bytes, arrivals, op, at));
}

/// Arrives when the `cp.async` copies of the running thread have landed. They land now.
#[track_caller]
pub(in super::super) fn arrive_after_copies(address: u32) {
    let at = Location::caller();
    super::cp_async::wait_all();
    with(|cta| cta.arrive_at(address, 0, 1, "cp.async.mbarrier.arrive.noinc", at));
}

#[track_caller]
pub(in super::super) fn test_wait(address: u32, parity: u32) -> bool {
    let op = "mbarrier.test_wait.parity";
    let at = Location::caller();
    spin(at);
    with(|cta| {
        let index = cta.mbarrier(address, op, at);
        cta.note_mbarrier_access(address, Access::Atomic, op, at);
        cta.land_bulk_loads(Some(address));
        let done = cta.mbarriers[index].completed & 1 != u64::from(parity);
        if done {
            let knowledge = cta.mbarriers[index].arrived.clone();
            cta.acquire(cta.current, &knowledge);
        }
        done
    })
}

/// Waits until the phase with this parity has completed.
#[track_caller]
pub(in super::super) fn wait(address: u32, parity: u32) {
    let op = "mbarrier.try_wait.parity";
    let at = Location::caller();
    let blocked = with(|cta| {
        let index = cta.mbarrier(address, op, at);
        cta.note_mbarrier_access(address, Access::Atomic, op, at);
        if parity > 1 {
            cta.fail(
                FaultKind::Mbarrier,
                at,
                format!("`{op}` for parity {parity}; a parity is 0 or 1"),
            );
        }
        if !cta.phase_done(index, parity, op, at) {
            cta.land_bulk_loads(Some(address));
        }
        if cta.phase_done(index, parity, op, at) {
            let phase = cta.mbarriers[index].completed as i64 - 1;
            cta.waited_for(index, phase);
            return None;
        }
        let phase = cta.mbarriers[index].completed;
        let thread = cta.current;
        cta.mbarriers[index].waiters.push((thread, phase));
        cta.thread().state = State::Mbarrier {
            address,
            parity,
            at,
        };
        Some(phase)
    });
    let Some(phase) = blocked else { return };
    suspend();
    with(|cta| {
        let index = cta.mbarrier(address, op, at);
        let completed = cta.mbarriers[index].completed;
        if completed > phase + 1 {
            cta.fail(
                FaultKind::Mbarrier,
                at,
                format!(
                    "`{op}` on the mbarrier at byte {} of shared memory: this thread waits for phase {phase}, but the \
                     barrier ran on to phase {completed} before the thread could see it; on hardware one parity bit \
                     cannot tell. The threads that arrive must wait for this one",
                    address - SHARED_BASE
                ),
            );
        }
        cta.waited_for(index, phase as i64);
    });
}
