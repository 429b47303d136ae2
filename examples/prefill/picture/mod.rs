//! To be drawn.
use crate::{args::Request, compute::Outcome, failure::Failure, input::Input};
use std::io::Write;
pub fn write(
    _to: &mut dyn Write,
    _r: &Request,
    _input: &Input,
    _outcome: &Outcome,
) -> Result<(), Failure> {
    Err(Failure::new("not yet"))
}
