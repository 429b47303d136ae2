//! Places in a kernel's source.

use std::panic::Location;

/// Where in the source an instruction was called.
pub type At = &'static Location<'static>;
