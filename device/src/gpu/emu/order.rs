//! What orders accesses to shared memory: how each instruction tells the race detector of accesses,
//! and of knowledge that passes between threads.

use super::state::memory::{Access, SHARED_BASE};
use super::state::race::{Agent, Epoch, Knowledge, Proxy};
use super::state::{At, Cta, FaultKind};

/// The epoch and the knowledge under which work is checked.
struct Work {
    agent: Agent,
    time: u32,
    proxy: Proxy,
    op: &'static str,
    at: At,
}

impl Cta {
    /// Ordinary accesses to a live mbarrier are undefined.
    pub(super) fn refuse_live_mbarrier(
        &mut self,
        address: u32,
        bytes: u32,
        op: &'static str,
        at: At,
    ) {
        let touched = self
            .mbarriers
            .iter()
            .find(|mb| address < mb.address + 8 && mb.address < address + bytes);
        if let Some(mb) = touched {
            let message = format!(
                "`{op}` touches the mbarrier at byte {} of shared memory, initialised at {}: only mbarrier \
                 instructions may, until `mbarrier.inval`",
                mb.address - SHARED_BASE,
                mb.initialised_at
            );
            self.fail(FaultKind::Mbarrier, at, message);
        }
    }

    fn note(
        &mut self,
        address: u32,
        bytes: u32,
        access: Access,
        work: Work,
        knowledge: &Knowledge,
    ) {
        let Some(races) = &mut self.races else { return };
        let Work { op, at, .. } = work;
        let epoch = Epoch {
            agent: work.agent as u16,
            site: races.site(op, at),
            time: work.time,
        };
        let offset = address - SHARED_BASE;
        let Err(conflict) = races.access(offset, bytes, access, epoch, knowledge, work.proxy)
        else {
            return;
        };
        let (earlier_op, earlier_at) = races.sites[usize::from(conflict.earlier.site)];
        let who = races.name(usize::from(conflict.earlier.agent));
        let did = if conflict.earlier_is_write {
            "wrote"
        } else {
            "read"
        };
        let does = match access {
            Access::Read => "reads",
            Access::Write => "writes",
            Access::Atomic => "modifies",
        };
        let byte = conflict.byte;
        let why = if conflict.unpublished {
            "that write is ordered before, but only for ordinary accesses: the writer needs `fence.proxy.async` \
             before the barrier that hands the data to bulk copies or wgmma"
        } else {
            "nothing orders the two: a barrier, or a wait for the asynchronous work, is missing between them"
        };
        self.fail(
            FaultKind::Race,
            at,
            format!(
                "data race on byte {byte} of shared memory: `{op}` {does} it here; {who} {did} it in `{earlier_op}` \
                 at {earlier_at}; {why}"
            ),
        );
    }

    /// An access by a thread.
    fn note_thread(
        &mut self,
        thread: u32,
        address: u32,
        bytes: u32,
        access: Access,
        op: &'static str,
        at: At,
    ) {
        let Some(races) = &mut self.races else { return };
        let index = thread as usize;
        // Taken out for the call, which needs the rest of the detector too.
        let known = std::mem::replace(
            &mut races.known[index],
            Knowledge {
                seen: Box::default(),
                published: Box::default(),
            },
        );
        let work = Work {
            agent: index,
            time: known.seen[index],
            proxy: Proxy::Generic,
            op,
            at,
        };
        self.note(address, bytes, access, work, &known);
        if let Some(races) = &mut self.races {
            races.known[index] = known;
        }
    }

    /// An access by the running thread.
    #[inline(always)]
    pub(super) fn note_access(
        &mut self,
        address: u32,
        bytes: u32,
        access: Access,
        op: &'static str,
        at: At,
    ) {
        if self.races.is_some() {
            self.refuse_live_mbarrier(address, bytes, op, at);
            self.note_thread(self.current, address, bytes, access, op, at);
        }
    }

    /// An access by lane `lane` of the running warp.
    pub(super) fn note_lane_access(
        &mut self,
        lane: u32,
        address: u32,
        bytes: u32,
        access: Access,
        op: &'static str,
        at: At,
    ) {
        if self.races.is_some() {
            self.refuse_live_mbarrier(address, bytes, op, at);
            self.note_thread(self.warp() * 32 + lane, address, bytes, access, op, at);
        }
    }

    /// An operation of the running thread on an mbarrier: ordered after its initialisation.
    pub(super) fn note_mbarrier_access(
        &mut self,
        address: u32,
        access: Access,
        op: &'static str,
        at: At,
    ) {
        self.note_thread(self.current, address, 8, access, op, at);
    }

    /// The running thread issued a `cp.async` of its group `group`.
    pub(super) fn note_copy_issued(
        &mut self,
        address: u32,
        bytes: u32,
        group: u32,
        op: &'static str,
        at: At,
    ) {
        let thread = self.current;
        let Some(races) = &self.races else { return };
        let knowledge = races.known[thread as usize].clone();
        let mut knowledge = knowledge;
        let agent = races.copy_agent(thread);
        // The thread's own accesses come before what it issues.
        knowledge.seen[thread as usize] = u32::MAX;
        let work = Work {
            agent,
            time: group + 1,
            proxy: Proxy::Generic,
            op,
            at,
        };
        self.refuse_live_mbarrier(address, bytes, op, at);
        self.note(address, bytes, Access::Write, work, &knowledge);
    }

    /// The `cp.async` groups of the running thread below `groups` have landed.
    pub(super) fn note_copies_landed(&mut self, groups: u32) {
        let thread = self.current;
        let Some(races) = &mut self.races else { return };
        let agent = races.copy_agent(thread);
        let seen = &mut races.known[thread as usize].seen[agent];
        *seen = (*seen).max(groups);
    }

    /// The lanes of `mask` of the running warp order their memory accesses.
    pub(super) fn note_warp_sync(&mut self, mask: u32) {
        let first = self.warp() * 32;
        let Some(races) = &mut self.races else { return };
        let lanes = || {
            (0..32)
                .filter(|lane| mask >> lane & 1 == 1)
                .map(|lane| first + lane)
        };
        let all = races.join_of(lanes());
        for thread in lanes() {
            races.known[thread as usize].join(&all);
            races.tick(thread);
        }
    }

    /// The lanes of `mask` of warp `warp` arrive at the barrier.
    pub(super) fn note_barrier_arrival(&mut self, id: u32, warp: u32, mask: u32) {
        let Some(races) = &mut self.races else { return };
        let lanes = (0..32).filter(|lane| mask >> lane & 1 == 1);
        let threads: Vec<u32> = lanes.map(|lane| warp * 32 + lane).collect();
        let all = races.join_of(threads.iter().copied());
        let agents = races.agents;
        races
            .barriers
            .entry(id)
            .or_insert_with(|| Knowledge::nothing(agents))
            .join(&all);
        for thread in threads {
            races.tick(thread);
        }
    }

    /// The barrier has completed, and `threads` waited for it.
    pub(super) fn note_barrier_completion(&mut self, id: u32, threads: impl Iterator<Item = u32>) {
        let Some(races) = &mut self.races else { return };
        let Some(all) = races.barriers.remove(&id) else {
            return;
        };
        for thread in threads {
            races.known[thread as usize].join(&all);
        }
    }

    /// What the running thread passes to the threads that wait for its arrival.
    pub(super) fn release(&mut self, into: &mut Option<Knowledge>) {
        let thread = self.current;
        let Some(races) = &mut self.races else { return };
        let agents = races.agents;
        into.get_or_insert_with(|| Knowledge::nothing(agents))
            .join(&races.known[thread as usize]);
        races.tick(thread);
    }

    /// Thread `thread` has waited for what `from` holds.
    pub(super) fn acquire(&mut self, thread: u32, from: &Option<Knowledge>) {
        if let (Some(races), Some(from)) = (&mut self.races, from) {
            races.known[thread as usize].join(from);
        }
    }

    /// The running thread publishes all that it has seen to the async proxy.
    pub(super) fn note_proxy_fence(&mut self) {
        let thread = self.current as usize;
        let Some(races) = &mut self.races else { return };
        let known = &mut races.known[thread];
        known.published.copy_from_slice(&known.seen);
    }

    /// The running thread issued a bulk copy into shared memory that completes phase `phase` of an
    /// mbarrier.
    pub(super) fn note_bulk_load(
        &mut self,
        address: u32,
        bytes: u32,
        mbarrier: u32,
        phase: u64,
        op: &'static str,
        at: At,
    ) {
        let thread = self.current as usize;
        let Some(races) = &mut self.races else { return };
        let work = Work {
            agent: races.mbarrier_agent(mbarrier),
            time: phase as u32 + 1,
            proxy: Proxy::Async,
            op,
            at,
        };
        let knowledge = races.known[thread].clone();
        self.refuse_live_mbarrier(address, bytes, op, at);
        self.note(address, bytes, Access::Write, work, &knowledge);
    }

    /// Phase `phase` of an mbarrier has completed, and with it the copies into it.
    pub(super) fn note_phase(&mut self, mbarrier: u32, phase: u64, into: &mut Option<Knowledge>) {
        let Some(races) = &mut self.races else { return };
        let agent = races.mbarrier_agent(mbarrier);
        let agents = races.agents;
        into.get_or_insert_with(|| Knowledge::nothing(agents)).seen[agent] = phase as u32 + 1;
    }

    /// The running thread issued a bulk store of its group `group`, which reads shared memory.
    pub(super) fn note_bulk_store(
        &mut self,
        address: u32,
        bytes: u32,
        group: u32,
        op: &'static str,
        at: At,
    ) {
        let thread = self.current;
        let Some(races) = &self.races else { return };
        let work = Work {
            agent: races.bulk_store_agent(thread),
            time: group + 1,
            proxy: Proxy::Async,
            op,
            at,
        };
        let knowledge = races.known[thread as usize].clone();
        self.note(address, bytes, Access::Read, work, &knowledge);
    }

    /// The bulk-store groups of the running thread below `groups` have read their source.
    pub(super) fn note_bulk_stores_read(&mut self, groups: u32) {
        let thread = self.current;
        let Some(races) = &mut self.races else { return };
        let agent = races.bulk_store_agent(thread);
        let seen = &mut races.known[thread as usize].seen[agent];
        *seen = (*seen).max(groups);
    }

    /// A warpgroup issued a `wgmma` of its group `group` that reads these ranges.
    pub(super) fn note_wgmma(
        &mut self,
        warpgroup: u32,
        group: u32,
        ranges: impl Iterator<Item = (u32, u32)>,
        op: &'static str,
        at: At,
    ) {
        let Some(races) = &self.races else { return };
        let agent = races.wgmma_agent(warpgroup);
        let knowledge = races.join_of(warpgroup * 128..warpgroup * 128 + 128);
        for (address, bytes) in ranges {
            let work = Work {
                agent,
                time: group + 1,
                proxy: Proxy::Async,
                op,
                at,
            };
            self.note(address, bytes, Access::Read, work, &knowledge);
        }
    }

    /// The lanes of the running warp have waited for the `wgmma` groups below `groups`.
    pub(super) fn note_wgmma_waited(&mut self, groups: u32) {
        let warp = self.warp();
        let Some(races) = &mut self.races else { return };
        let agent = races.wgmma_agent(warp / 4);
        for thread in warp * 32..warp * 32 + 32 {
            let seen = &mut races.known[thread as usize].seen[agent];
            *seen = (*seen).max(groups);
        }
    }
}
