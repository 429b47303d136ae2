//! A plan's workspace, carved from the caller's bytes.

use super::planned::Planned;
use super::units::Units;
use super::workspace::Workspace;
use crate::error::{Error, Result};

/// The plan's workspace, with room for the selection of `units`, or refused where the plan needs more bytes.
pub(super) fn workspace<'a>(
    plan: &Planned,
    bytes: &'a mut [u8],
    units: Option<&Units>,
) -> Result<Workspace<'a>> {
    let needed = plan.workspace_bytes;
    let given = bytes.len();
    let too_small = Error::WorkspaceTooSmall { needed, given };
    if given < needed {
        return Err(too_small);
    }
    Workspace::carve(
        bytes,
        &plan.problem,
        units,
        (plan.threads, plan.instruction_set),
    )
    .ok_or(too_small)
}
