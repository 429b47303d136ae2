//! The named barriers of a CTA.

use std::fmt::Write;

use super::diagnosis::ranges;
use super::site::At;

/// How many named barriers a CTA has.
pub const BARRIERS: u32 = 16;

pub struct Arrival {
    pub warp: u32,
    pub waits: bool,
    pub at: At,
    pub mask: u32,
    pub votes: [*mut (); 32],
}

#[derive(Default)]
pub struct Barrier {
    pub expected_warps: u32,
    pub arrivals: Vec<Arrival>,
}

#[derive(Default)]
pub struct Barriers(pub [Barrier; BARRIERS as usize]);

impl Barriers {
    /// For each barrier that someone waits at: who has not arrived.
    pub fn who_is_missing(&self, warps: u32) -> String {
        let mut text = String::new();
        for (id, barrier) in self.0.iter().enumerate() {
            let Some(first) = barrier.arrivals.first() else {
                continue;
            };
            let absent: Vec<u32> = (0..warps)
                .filter(|&warp| barrier.arrivals.iter().all(|arrival| arrival.warp != warp))
                .collect();
            let _ = write!(
                text,
                "\nbarrier {id} (first reached at {}) expects {} warps and has {}: warps {} have not arrived",
                first.at,
                barrier.expected_warps,
                barrier.arrivals.len(),
                ranges(absent)
            );
        }
        text
    }
}
