//! How a launch is emulated.

/// How a launch is emulated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Natural thread order, CTAs in parallel, no race detection.
    Fast,
    /// Race detection in shared memory; threads and CTAs in an order drawn from `seed`, one
    /// CTA after another.
    Checked {
        /// Names the order: the same seed replays it.
        seed: u64,
    },
}
