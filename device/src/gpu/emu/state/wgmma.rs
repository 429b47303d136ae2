//! The products of a warpgroup that are in flight.

use std::collections::{HashMap, VecDeque};

use super::half::Half;
use super::site::At;

/// One operand in shared memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Operand {
    pub descriptor: u64,
    pub mn_major: bool,
    /// What each k-step adds to the descriptor.
    pub offsets: [u64; 8],
}

/// A product that has been issued and not executed.
pub struct Pending {
    pub group: u32,
    pub token: u32,
    pub op: &'static str,
    pub at: At,
    pub format: Half,
    /// Registers of A: thread-major, then k-step.
    pub a_registers: Vec<[u32; 4]>,
    pub a: Option<Operand>,
    pub b: Operand,
    pub steps: usize,
}

/// The accumulators of products that not every thread has taken.
pub struct Tile {
    pub columns: usize,
    /// Row-major, 64 × `columns`.
    pub values: Vec<f32>,
    pub pending: u32,
    pub delivered: usize,
}

#[derive(Default)]
pub struct Warpgroup {
    pub arrivals: Vec<(u32, At, [*mut (); 32])>,
    pub pending: VecDeque<Pending>,
    pub groups: u32,
    pub tiles: HashMap<u32, Tile>,
    pub tokens: u32,
}
