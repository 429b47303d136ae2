//! An mbarrier in shared memory.

use super::memory::SHARED_BASE;
use super::race::Knowledge;
use super::site::At;

/// What a phase's transaction count may reach, in bytes.
pub const MAX_TX: i64 = (1 << 20) - 1;

pub struct Mbarrier {
    pub address: u32,
    pub initialised_at: At,
    /// Arrivals that complete a phase.
    pub count: u32,
    pub pending: u32,
    /// Bytes expected and not yet there; below zero when they came first.
    pub tx: i64,
    /// Phases completed: also the number of the current phase.
    pub completed: u64,
    /// The last phase that each thread waited for: -1 is the one before the first.
    pub waited: Vec<Option<i64>>,
    pub waiters: Vec<(u32, u64)>,
    pub arriving: Option<Knowledge>,
    pub arrived: Option<Knowledge>,
}

impl Mbarrier {
    /// What is missing for the current phase to complete.
    pub fn lacks(&self) -> String {
        format!(
            "mbarrier at byte {} of shared memory (initialised at {}): in phase {} (parity {}), {} of {} arrivals and \
             {} transaction bytes are missing",
            self.address - SHARED_BASE,
            self.initialised_at,
            self.completed,
            self.completed & 1,
            self.pending,
            self.count,
            self.tx
        )
    }

    pub fn has_waiters(&self) -> bool {
        !self.waiters.is_empty()
    }
}
