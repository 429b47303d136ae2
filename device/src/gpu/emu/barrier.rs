//! The sixteen named barriers of a CTA. Warps arrive whole, as on hardware.

use std::panic::Location;

use super::collective::{Lanes, Op, Then, collective};
use super::state::barrier::{Arrival, BARRIERS};
use super::state::{At, Cta, FaultKind, State};

/// A lane's predicate, and the result that the barrier gives it.
struct Vote {
    predicate: bool,
    result: u32,
}

/// How a barrier combines the lanes' predicates.
#[derive(Clone, Copy)]
pub(in super::super) enum Combine {
    Nothing,
    Popc,
    And,
    Or,
}

/// `bar.sync`, `bar.red` (`waits`) and `bar.arrive`. `threads` is `None` for the whole CTA.
#[track_caller]
pub(in super::super) fn arrive(
    name: &'static str,
    id: u32,
    threads: Option<u32>,
    waits: bool,
    combine: Combine,
    predicate: bool,
) -> u32 {
    let at = Location::caller();
    let mut vote = Vote {
        predicate,
        result: 0,
    };
    let op = Op::aligned(name).operand(u64::from(threads.unwrap_or(0)) << 32 | u64::from(id));
    collective(op, at, &mut vote, |cta, lanes| {
        cta.warp_arrives(name, id, threads, waits, combine, lanes, at)
    });
    vote.result
}

impl Cta {
    #[expect(
        clippy::too_many_arguments,
        reason = "an instruction with its operands"
    )]
    fn warp_arrives(
        &mut self,
        name: &'static str,
        id: u32,
        threads: Option<u32>,
        waits: bool,
        combine: Combine,
        lanes: Lanes<'_, Vote>,
        at: At,
    ) -> Then {
        let cta_warps = self.warps.len() as u32;
        let all = cta_warps * 32;
        let count = threads.unwrap_or(all);
        if id >= BARRIERS || count == 0 || !count.is_multiple_of(32) || count > all {
            self.fail(
                FaultKind::Barrier,
                at,
                format!(
                    "`{name}` on barrier {id} for {count} threads: barriers are 0 to {}, and the count is a \
                     multiple of 32, at most the CTA's {all}",
                    BARRIERS - 1
                ),
            );
        }
        let warp = self.warp();
        let barrier = &mut self.barriers.0[id as usize];
        if let Some(first) = barrier.arrivals.first()
            && barrier.expected_warps != count / 32
        {
            let message = format!(
                "barrier {id}: this warp expects {count} threads, but warp {} arrived for {} threads at {}",
                first.warp,
                barrier.expected_warps * 32,
                first.at
            );
            self.fail(FaultKind::Barrier, at, message);
        }
        if let Some(before) = barrier.arrivals.iter().find(|before| before.warp == warp) {
            let message = format!(
                "barrier {id}: warp {warp} arrives a second time before the barrier completed; it arrived at {}",
                before.at
            );
            self.fail(FaultKind::Barrier, at, message);
        }
        barrier.expected_warps = count / 32;
        barrier.arrivals.push(Arrival {
            warp,
            waits,
            at,
            mask: lanes.mask,
            votes: lanes.arguments,
        });
        let complete_now = barrier.arrivals.len() as u32 == barrier.expected_warps;
        self.note_barrier_arrival(id, warp, lanes.mask);
        if !complete_now {
            return if waits {
                Then::Wait(State::Barrier { id, at })
            } else {
                Then::GoOn
            };
        }
        let mut arrivals = std::mem::take(&mut self.barriers.0[id as usize].arrivals);
        complete(&arrivals, combine);
        let waiting = arrivals.iter().filter(|arrival| arrival.waits);
        let threads = waiting.flat_map(|arrival| {
            let (warp, mask) = (arrival.warp, arrival.mask);
            let lanes = (0..32).filter(move |lane| mask >> lane & 1 == 1);
            lanes.map(move |lane| warp * 32 + lane)
        });
        self.note_barrier_completion(id, threads);
        for arrival in &arrivals {
            if arrival.waits && arrival.warp != warp {
                for lane in (0..32).filter(|lane| arrival.mask >> lane & 1 == 1) {
                    self.make_ready(arrival.warp * 32 + lane);
                }
            }
        }
        // Keeps the allocation for the next time.
        arrivals.clear();
        self.barriers.0[id as usize].arrivals = arrivals;
        Then::GoOn
    }
}

/// Hands every waiting lane the combination of all predicates.
fn complete(arrivals: &[Arrival], combine: Combine) {
    if matches!(combine, Combine::Nothing) {
        return;
    }
    let votes = || {
        arrivals
            .iter()
            .filter(|arrival| arrival.waits)
            .flat_map(|arrival| {
                let mask = arrival.mask;
                let lanes = (0..32).filter(move |lane| mask >> lane & 1 == 1);
                lanes.map(|lane| arrival.votes[lane as usize].cast::<Vote>())
            })
    };
    let (mut count, mut total) = (0, 0);
    for vote in votes() {
        // SAFETY: the lane waits: it is suspended in `arrive`, its vote alive on its stack.
        count += u32::from(unsafe { (*vote).predicate });
        total += 1;
    }
    let result = match combine {
        Combine::Nothing => unreachable!("returned above"),
        Combine::Popc => count,
        Combine::And => u32::from(count == total),
        Combine::Or => u32::from(count > 0),
    };
    for vote in votes() {
        // SAFETY: as above; no reference to a vote is alive.
        unsafe { (*vote).result = result };
    }
}
