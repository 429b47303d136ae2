//! Watching a long run.

use crate::stage::Stage;

/// Told of every piece of work that ends, from the threads that did it: keep it short.
pub trait Progress: Sync {
    /// `done` of `total` pieces of this stage have ended. Stages take turns on long inputs, one group of heads after the
    /// other; `total` is the whole run's.
    fn advance(&self, stage: Stage, done: usize, total: usize);
}

/// Watches nothing.
impl Progress for () {
    fn advance(&self, _: Stage, _: usize, _: usize) {}
}
