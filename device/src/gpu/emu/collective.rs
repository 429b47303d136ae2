//! Where the lanes of a warp meet: the last one to arrive executes the instruction for all.

use std::marker::PhantomData;

pub(super) use super::state::warp::ALL_LANES;
use super::state::warp::Round;
use super::state::{At, Cta, FaultKind, State, lanes, suspend, with_at};

/// An instruction that lanes execute together.
#[derive(Clone, Copy)]
pub(super) struct Op {
    pub(super) name: &'static str,
    pub(super) aligned: bool,
    pub(super) mask: u32,
    pub(super) operand: u64,
}

impl Op {
    /// An `.aligned` instruction of the whole warp.
    pub(super) fn aligned(name: &'static str) -> Self {
        Self {
            name,
            aligned: true,
            mask: ALL_LANES,
            operand: 0,
        }
    }

    /// A `.sync` instruction of the lanes of `mask`.
    pub(super) fn sync(name: &'static str, mask: u32) -> Self {
        Self {
            name,
            aligned: false,
            mask,
            operand: 0,
        }
    }

    pub(super) fn operand(self, operand: u64) -> Self {
        Self { operand, ..self }
    }
}

/// The arguments of all lanes of a collective, while it executes.
pub(super) struct Lanes<'a, A> {
    pub(super) mask: u32,
    pub(super) arguments: [*mut (); 32],
    kind: PhantomData<&'a mut A>,
}

impl<A> Lanes<'_, A> {
    /// The argument of a lane of the mask.
    #[inline(always)]
    pub(super) fn get(&self, lane: u32) -> &A {
        debug_assert!(self.mask >> lane & 1 == 1, "the lane takes part");
        // SAFETY: the lane waits inside `collective` with this `A` alive on its stack; all lanes of
        // a round run the same instruction, so the type is the same.
        unsafe { &*self.arguments[lane as usize].cast::<A>() }
    }

    /// As [`Self::get`], to write a result.
    #[inline(always)]
    pub(super) fn get_mut(&mut self, lane: u32) -> &mut A {
        debug_assert!(self.mask >> lane & 1 == 1, "the lane takes part");
        // SAFETY: as in `get`, and `self` is borrowed exclusively.
        unsafe { &mut *self.arguments[lane as usize].cast::<A>() }
    }

    /// The lanes that take part, ascending.
    pub(super) fn lanes(&self) -> impl Iterator<Item = u32> + use<A> {
        let mask = self.mask;
        (0..32).filter(move |lane| mask >> lane & 1 == 1)
    }
}

/// Whether the lanes of a finished round go on, or wait for more than their warp.
pub(super) enum Then {
    GoOn,
    /// They wait in this state, until someone else makes them ready.
    Wait(State),
}

/// Waits until every lane of `op.mask` is here, and has the last one run `execute` once.
#[inline]
pub(super) fn collective<A>(
    op: Op,
    at: At,
    argument: &mut A,
    execute: impl FnOnce(&mut Cta, Lanes<'_, A>) -> Then,
) {
    let waits = with_at(at, |cta| {
        let Some((mask, arguments)) = cta.arrive(op, at, std::ptr::from_mut(argument).cast::<()>())
        else {
            return true;
        };
        let arrived = Lanes {
            mask,
            arguments,
            kind: PhantomData,
        };
        let first = cta.warp() * 32;
        match execute(cta, arrived) {
            Then::GoOn => {
                let me = cta.current;
                for lane in (0..32).filter(|lane| mask >> lane & 1 == 1) {
                    if first + lane != me {
                        cta.make_ready(first + lane);
                    }
                }
                false
            }
            Then::Wait(state) => {
                for lane in (0..32).filter(|lane| mask >> lane & 1 == 1) {
                    cta.threads[(first + lane) as usize].state = state;
                }
                true
            }
        }
    });
    if waits {
        suspend();
    }
}

impl Cta {
    /// Notes that the running lane is at `op`. Once all lanes are, returns them and their arguments.
    fn arrive(&mut self, op: Op, at: At, argument: *mut ()) -> Option<(u32, [*mut (); 32])> {
        let warp_index = self.warp() as usize;
        let lane = self.lane();
        let present = self.warps[warp_index].present;
        let mask = if op.aligned {
            op.mask & present
        } else {
            op.mask
        };
        if mask >> lane & 1 == 0 || mask & !present != 0 {
            self.fail(
                FaultKind::Divergence,
                at,
                format!(
                    "`{}` with lane mask {mask:#010x}: the mask must hold the lane that executes it, \
                     and only lanes that exist ({present:#010x})",
                    op.name
                ),
            );
        }
        let warp = &mut self.warps[warp_index];
        if mask & warp.exited != 0 {
            let exited = lanes(mask & warp.exited);
            self.fail(
                FaultKind::Divergence,
                at,
                format!(
                    "`{}` needs lanes {} of warp {warp_index}, but lanes {exited} have exited the kernel",
                    op.name,
                    lanes(mask)
                ),
            );
        }
        let slot = match warp.rounds.iter().position(|round| round.mask == mask) {
            Some(slot) => slot,
            None => {
                let round = Round {
                    mask,
                    arrived: 0,
                    op: op.name,
                    aligned: op.aligned,
                    at,
                    operand: op.operand,
                    arguments: [std::ptr::null_mut(); 32],
                };
                match warp.rounds.iter().position(|round| round.mask == 0) {
                    Some(slot) => {
                        warp.rounds[slot] = round;
                        slot
                    }
                    None => {
                        warp.rounds.push(round);
                        warp.rounds.len() - 1
                    }
                }
            }
        };
        let round = &mut warp.rounds[slot];
        let same_site = !round.aligned || std::ptr::eq(round.at, at) || round.at == at;
        let same_op = std::ptr::eq(round.op, op.name) || round.op == op.name;
        if !same_op || round.operand != op.operand || !same_site {
            let (other, other_at, others) = (round.op, round.at, lanes(round.arrived));
            let rule = if round.aligned && op.aligned {
                "all lanes of a warp must execute an `.aligned` instruction together, at one call site"
            } else {
                "lanes that name the same mask must execute the same instruction with the same operands"
            };
            let operands = if same_op && same_site {
                format!(
                    " with other operands ({:#x}, here {:#x})",
                    round.operand, op.operand
                )
            } else {
                String::new()
            };
            self.fail(
                FaultKind::Divergence,
                at,
                format!(
                    "divergence in warp {warp_index}: this lane is at `{}`, but lanes {others} wait in `{other}` \
                     at {other_at}{operands}; {rule}",
                    op.name
                ),
            );
        }
        round.arguments[lane as usize] = argument;
        round.arrived |= 1 << lane;
        if round.arrived == mask {
            let arguments = round.arguments;
            round.mask = 0;
            return Some((mask, arguments));
        }
        self.thread().state = State::Collective {
            op: op.name,
            mask,
            at,
        };
        None
    }

    /// The running lane has exited: no collective of its warp can count on it any more.
    pub(super) fn lane_exits(&mut self) {
        let (warp_index, lane) = (self.warp() as usize, self.lane());
        let warp = &mut self.warps[warp_index];
        warp.exited |= 1 << lane;
        if let Some(round) = warp.rounds.iter().find(|round| round.mask >> lane & 1 == 1) {
            let (at, message) = (
                round.at,
                format!(
                    "this lane exited the kernel, but lanes {} of warp {warp_index} wait for it in `{}`",
                    lanes(round.arrived),
                    round.op
                ),
            );
            self.fail(FaultKind::Divergence, at, message);
        }
    }
}
