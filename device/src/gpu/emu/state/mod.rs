//! What the emulator's parts share: the state of one CTA, and the words for what went wrong in it.
//!
//! Nothing here knows an instruction. The parts (barriers, copies, matrix products …) define what instructions do to this
//! state; the scheduler runs the threads.

pub mod barrier;
pub mod bulk;
pub mod cp_async;
mod cta;
mod diagnosis;
pub mod half;
pub mod mbarrier;
pub mod memory;
mod mode;
pub mod progress;
pub mod queue;
pub mod race;
pub mod rng;
mod site;
pub mod thread;
pub mod warp;
pub mod wgmma;

pub use cta::CURRENT;
pub use cta::{Cta, spin, suspend, with, with_at};
pub use diagnosis::{Fault, FaultKind, lanes};
pub use mode::Mode;
pub use site::At;
pub use thread::State;
