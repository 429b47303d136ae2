//! Where the lanes of a warp meet.

use super::site::At;

/// Every lane of a warp.
pub const ALL_LANES: u32 = u32::MAX;

/// Lanes that wait for each other.
pub struct Round {
    /// Zero when the slot is free.
    pub mask: u32,
    pub arrived: u32,
    pub op: &'static str,
    /// Whether all lanes must be at one call site, and where that is.
    pub aligned: bool,
    pub at: At,
    /// What must agree between lanes besides the instruction, such as a barrier's number.
    pub operand: u64,
    pub arguments: [*mut (); 32],
}

/// The meeting points of one warp. Disjoint masks may meet at the same time.
pub struct Warp {
    /// The lanes that exist: all but in the last warp of an odd CTA.
    pub present: u32,
    pub exited: u32,
    pub rounds: Vec<Round>,
}

impl Warp {
    pub fn all_of(threads: u32) -> Vec<Self> {
        (0..threads.div_ceil(32))
            .map(|warp| Self {
                present: ALL_LANES >> (32 - (threads - warp * 32).min(32)),
                exited: 0,
                rounds: Vec::new(),
            })
            .collect()
    }
}
