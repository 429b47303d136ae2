//! Shuffles, votes and reductions of a warp.

use std::panic::Location;

use super::collective::{Lanes, Op, Then, collective};
use super::state::{FaultKind, lanes};

/// Runs `execute` over the values of the lanes of `mask`; each lane gets its result.
#[track_caller]
fn exchange(
    op: Op,
    value: u32,
    execute: impl FnOnce(&Lanes<'_, (u32, u32)>, u32) -> u32 + Copy,
) -> u32 {
    let at = Location::caller();
    let mut slot = (value, 0);
    collective(op, at, &mut slot, |_, mut lanes| {
        for lane in lanes.lanes() {
            lanes.get_mut(lane).1 = execute(&lanes, lane);
        }
        Then::GoOn
    });
    slot.1
}

/// How a shuffle finds the lane to read.
#[derive(Clone, Copy)]
pub(in super::super) enum Source {
    Index(u32),
    Xor(u32),
    Up(u32),
    Down(u32),
}

#[track_caller]
pub(in super::super) fn shfl(op: &'static str, mask: u32, value: u32, source: Source) -> u32 {
    struct Shuffle {
        value: u32,
        source: Source,
        result: u32,
    }
    let at = Location::caller();
    let mut slot = Shuffle {
        value,
        source,
        result: 0,
    };
    collective(Op::sync(op, mask), at, &mut slot, |cta, mut arrived| {
        for lane in arrived.lanes() {
            let from = match arrived.get(lane).source {
                Source::Index(index) => index % 32,
                Source::Xor(bits) => lane ^ (bits % 32),
                Source::Up(by) => lane.checked_sub(by).unwrap_or(lane),
                Source::Down(by) => Some(lane.saturating_add(by))
                    .filter(|&from| from < 32)
                    .unwrap_or(lane),
            };
            if mask >> from & 1 == 0 {
                cta.fail(
                    FaultKind::Divergence,
                    at,
                    format!(
                        "`{op}`: lane {lane} reads lane {from}, which is not in the mask (lanes {})",
                        lanes(mask)
                    ),
                );
            }
            arrived.get_mut(lane).result = arrived.get(from).value;
        }
        Then::GoOn
    });
    slot.result
}

/// The lanes of `mask` whose predicate holds.
#[track_caller]
pub(in super::super) fn ballot(op: &'static str, mask: u32, predicate: bool) -> u32 {
    exchange(Op::sync(op, mask), u32::from(predicate), |lanes, _| {
        lanes
            .lanes()
            .fold(0, |ballot, lane| ballot | lanes.get(lane).0 << lane)
    })
}

/// The lanes of `mask` whose value equals the lane's own.
#[track_caller]
pub(in super::super) fn match_any(mask: u32, value: u32) -> u32 {
    exchange(Op::sync("match.any.sync.b32", mask), value, |lanes, me| {
        let mine = lanes.get(me).0;
        lanes.lanes().fold(0, |same, lane| {
            same | u32::from(lanes.get(lane).0 == mine) << lane
        })
    })
}

#[track_caller]
pub(in super::super) fn redux(
    op: &'static str,
    mask: u32,
    value: u32,
    combine: fn(u32, u32) -> u32,
) -> u32 {
    exchange(Op::sync(op, mask), value, |lanes, _| {
        lanes
            .lanes()
            .map(|lane| lanes.get(lane).0)
            .reduce(combine)
            .unwrap_or(0)
    })
}

/// Whether this is the one lane of `mask` that is elected: the lowest, here.
#[track_caller]
pub(in super::super) fn elect(mask: u32) -> bool {
    exchange(Op::sync("elect.sync", mask), 0, |lanes, me| {
        u32::from(lanes.mask.trailing_zeros() == me)
    }) == 1
}

#[track_caller]
pub(in super::super) fn bar_warp_sync(mask: u32) {
    let at = Location::caller();
    collective(Op::sync("bar.warp.sync", mask), at, &mut (), |cta, _| {
        cta.note_warp_sync(mask);
        Then::GoOn
    });
}
