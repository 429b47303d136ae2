//! The phases of mbarriers: arrivals, transaction bytes, completion.

use super::state::mbarrier::MAX_TX;
use super::state::memory::{Access, SHARED_BASE};
use super::state::{At, Cta, FaultKind};

impl Cta {
    pub(super) fn mbarrier(&mut self, address: u32, op: &'static str, at: At) -> usize {
        self.shared(address, 8, 8, op, at);
        match self.mbarriers.iter().position(|mb| mb.address == address) {
            Some(index) => index,
            None => self.fail(
                FaultKind::Mbarrier,
                at,
                format!(
                    "`{op}` on byte {} of shared memory, where no mbarrier is initialised",
                    address - SHARED_BASE
                ),
            ),
        }
    }

    /// The phase that an asynchronous copy completing on the mbarrier takes part in.
    pub(super) fn current_phase(&mut self, address: u32, op: &'static str, at: At) -> u64 {
        let index = self.mbarrier(address, op, at);
        self.mbarriers[index].completed
    }

    /// Completes the phase if nothing is missing.
    fn settle(&mut self, index: usize) {
        let mb = &mut self.mbarriers[index];
        if mb.pending != 0 || mb.tx != 0 {
            return;
        }
        let phase = mb.completed;
        let address = mb.address;
        mb.completed += 1;
        mb.pending = mb.count;
        let mut knowledge = mb.arriving.take();
        self.note_phase(address, phase, &mut knowledge);
        // Phases follow each other: the next knows what this one did.
        self.mbarriers[index].arriving = knowledge.clone();
        self.mbarriers[index].arrived = knowledge;
        let waiters = std::mem::take(&mut self.mbarriers[index].waiters);
        for (thread, _) in waiters {
            self.make_ready(thread);
        }
    }

    pub(super) fn arrive_at(
        &mut self,
        address: u32,
        expect_bytes: u32,
        arrivals: u32,
        op: &'static str,
        at: At,
    ) {
        let index = self.mbarrier(address, op, at);
        self.note_mbarrier_access(address, Access::Atomic, op, at);
        let mb = &mut self.mbarriers[index];
        if mb.pending < arrivals {
            let message = format!("`{op}`: an arrival too many; {}", mb.lacks());
            self.fail(FaultKind::Mbarrier, at, message);
        }
        mb.tx += i64::from(expect_bytes);
        if mb.tx > MAX_TX {
            let message = format!("`{op}`: a phase may expect {MAX_TX} bytes; {}", mb.lacks());
            self.fail(FaultKind::Mbarrier, at, message);
        }
        mb.pending -= arrivals;
        let mut knowledge = mb.arriving.take();
        self.release(&mut knowledge);
        self.mbarriers[index].arriving = knowledge;
        self.settle(index);
    }

    /// `bytes` bytes of a bulk copy have landed.
    pub(super) fn complete_tx(&mut self, address: u32, bytes: u32) {
        if let Some(index) = self.mbarriers.iter().position(|mb| mb.address == address) {
            self.mbarriers[index].tx -= i64::from(bytes);
            self.settle(index);
        }
    }
}
