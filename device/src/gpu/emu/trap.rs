//! `trap`.

use std::panic::Location;

use super::state::{FaultKind, with};

/// Ends the launch as PTX `trap` does.
#[track_caller]
pub(in super::super) fn trap() -> ! {
    let at = Location::caller();
    with(|cta| {
        cta.fail(
            FaultKind::Trap,
            at,
            "trap: the kernel stopped itself".into(),
        )
    })
}
