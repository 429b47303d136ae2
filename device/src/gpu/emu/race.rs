//! Data races in shared memory, by happens-before.
//!
//! Every byte remembers its last write and its reads since, each as an *epoch*: who, and when on
//! their own clock. Every thread knows how far it has seen each other clock; barriers, warp syncs
//! and mbarriers pass that knowledge on. An access races with an earlier one whose epoch its thread
//! has not seen.
//!
//! Asynchronous work has clocks of its own, which advance where the work is waited for: a thread's
//! `cp.async` groups, its bulk-store groups, a warpgroup's `wgmma` groups, and the transactions of
//! an mbarrier. So an access that overlaps unfinished work races with it.
//!
//! Next to what a thread has *seen*, it knows what is *published*: which generic writes a
//! `fence.proxy.async` made visible to bulk copies and `wgmma`. That spreads by the same ways.

use std::collections::HashMap;

use super::block::{At, Block};
use super::diagnosis::{FaultKind, ThreadName};
use super::memory::{Access, SHARED_BASE};

/// mbarriers that have a clock of their own; any further ones share the last.
const MBARRIER_CLOCKS: usize = 64;

/// Index of a clock: threads first, then the kinds of asynchronous work.
type Agent = usize;

/// How far someone has seen every clock, and how much of it is published to the async proxy.
#[derive(Clone)]
pub(super) struct Knowledge {
    seen: Box<[u32]>,
    published: Box<[u32]>,
}

impl Knowledge {
    fn nothing(agents: usize) -> Self {
        Self {
            seen: vec![0; agents].into(),
            published: vec![0; agents].into(),
        }
    }

    fn join(&mut self, other: &Self) {
        for (mine, theirs) in self.seen.iter_mut().zip(&other.seen) {
            *mine = (*mine).max(*theirs);
        }
        for (mine, theirs) in self.published.iter_mut().zip(&other.published) {
            *mine = (*mine).max(*theirs);
        }
    }
}

/// One access: who, when on their clock, and where in the source.
#[derive(Clone, Copy)]
struct Epoch {
    agent: u16,
    site: u16,
    /// Zero for "never": clocks start at one.
    time: u32,
}

const NEVER: Epoch = Epoch {
    agent: 0,
    site: 0,
    time: 0,
};

/// What a byte remembers.
#[derive(Clone, Copy)]
struct Cell {
    write: Epoch,
    read: Epoch,
    write_is_atomic: bool,
    /// Reads that are not ordered among each other are in `Races::readers`.
    many_readers: bool,
}

/// How an access of asynchronous work sees earlier generic writes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Proxy {
    Generic,
    Async,
}

/// A conflict: the earlier access, and whether only publication is missing.
struct Conflict {
    earlier: Epoch,
    earlier_is_write: bool,
    unpublished: bool,
    byte: u32,
}

pub(super) struct Races {
    threads: usize,
    agents: usize,
    known: Vec<Knowledge>,
    barriers: HashMap<u32, Knowledge>,
    cells: Vec<Cell>,
    readers: HashMap<u32, Vec<Epoch>>,
    sites: Vec<(&'static str, At)>,
    site_numbers: HashMap<(usize, usize), u16>,
    mbarrier_clocks: Vec<u32>,
}

impl Races {
    pub(super) fn new(threads: u32, shared_bytes: u32) -> Self {
        let threads = threads as usize;
        let agents = 3 * threads + threads.div_ceil(128) + MBARRIER_CLOCKS;
        let mut known = vec![Knowledge::nothing(agents); threads];
        for (thread, known) in known.iter_mut().enumerate() {
            known.seen[thread] = 1;
        }
        let fresh = Cell {
            write: NEVER,
            read: NEVER,
            write_is_atomic: false,
            many_readers: false,
        };
        Self {
            threads,
            agents,
            known,
            barriers: HashMap::new(),
            cells: vec![fresh; shared_bytes as usize],
            readers: HashMap::new(),
            sites: Vec::new(),
            site_numbers: HashMap::new(),
            mbarrier_clocks: Vec::new(),
        }
    }

    fn copy_agent(&self, thread: u32) -> Agent {
        self.threads + thread as usize
    }

    fn bulk_store_agent(&self, thread: u32) -> Agent {
        2 * self.threads + thread as usize
    }

    fn wgmma_agent(&self, warpgroup: u32) -> Agent {
        3 * self.threads + warpgroup as usize
    }

    fn mbarrier_agent(&mut self, address: u32) -> Agent {
        let slot = match self.mbarrier_clocks.iter().position(|&a| a == address) {
            Some(slot) => slot,
            None => {
                self.mbarrier_clocks.push(address);
                self.mbarrier_clocks.len() - 1
            }
        };
        self.agents - MBARRIER_CLOCKS + slot.min(MBARRIER_CLOCKS - 1)
    }

    /// Who an epoch belongs to, in words.
    fn name(&self, agent: Agent) -> String {
        let thread = |n: usize| ThreadName(n as u32);
        match agent / self.threads {
            0 => thread(agent).to_string(),
            1 => format!(
                "an asynchronous copy of {}, still in flight as far as this thread knows,",
                thread(agent - self.threads)
            ),
            2 => format!(
                "a bulk store of {}, still in flight as far as this thread knows,",
                thread(agent - 2 * self.threads)
            ),
            _ if agent >= self.agents - MBARRIER_CLOCKS => {
                let slot = agent - (self.agents - MBARRIER_CLOCKS);
                let offset = self.mbarrier_clocks[slot] - SHARED_BASE;
                format!(
                    "a bulk copy that completes on the mbarrier at byte {offset} of shared memory, still in flight as \
                     far as this thread knows,"
                )
            }
            _ => format!(
                "a wgmma of warpgroup {}, still in flight as far as this thread knows,",
                agent - 3 * self.threads
            ),
        }
    }

    fn site(&mut self, op: &'static str, at: At) -> u16 {
        let key = (op.as_ptr() as usize, std::ptr::from_ref(at) as usize);
        let sites = &mut self.sites;
        *self.site_numbers.entry(key).or_insert_with(|| {
            sites.push((op, at));
            (sites.len() - 1).min(usize::from(u16::MAX)) as u16
        })
    }

    /// Checks one access to `bytes` bytes at `offset` and records it under `epoch`.
    fn access(
        &mut self,
        offset: u32,
        bytes: u32,
        access: Access,
        epoch: Epoch,
        knowledge: &Knowledge,
        proxy: Proxy,
    ) -> Result<(), Conflict> {
        let threads = self.threads;
        let own = usize::from(epoch.agent);
        let seen = |earlier: Epoch| {
            usize::from(earlier.agent) == own
                || knowledge.seen[usize::from(earlier.agent)] >= earlier.time
        };
        for byte in offset..offset + bytes {
            let cell = &mut self.cells[byte as usize];
            let conflict = |earlier, earlier_is_write, unpublished| Conflict {
                earlier,
                earlier_is_write,
                unpublished,
                byte,
            };
            let both_atomic = access == Access::Atomic && cell.write_is_atomic;
            if cell.write.time != 0 && !both_atomic {
                if !seen(cell.write) {
                    return Err(conflict(cell.write, true, false));
                }
                // Threads and their `cp.async` write through the generic proxy.
                let writer = usize::from(cell.write.agent);
                if proxy == Proxy::Async
                    && writer < 2 * threads
                    && knowledge.published[writer] < cell.write.time
                {
                    return Err(conflict(cell.write, true, true));
                }
            }
            if access == Access::Read {
                if cell.many_readers {
                    let readers = self.readers.entry(byte).or_default();
                    match readers.iter_mut().find(|r| r.agent == epoch.agent) {
                        Some(reader) => *reader = epoch,
                        None => readers.push(epoch),
                    }
                } else if cell.read.time == 0 || seen(cell.read) {
                    cell.read = epoch;
                } else {
                    cell.many_readers = true;
                    self.readers.insert(byte, vec![cell.read, epoch]);
                }
                continue;
            }
            if cell.many_readers {
                let readers = self.readers.remove(&byte).unwrap_or_default();
                if let Some(&reader) = readers.iter().find(|&&reader| !seen(reader)) {
                    return Err(conflict(reader, false, false));
                }
            } else if cell.read.time != 0 && !seen(cell.read) {
                return Err(conflict(cell.read, false, false));
            }
            *cell = Cell {
                write: epoch,
                read: NEVER,
                write_is_atomic: access == Access::Atomic,
                many_readers: false,
            };
        }
        Ok(())
    }

    fn join_of(&self, threads: impl Iterator<Item = u32>) -> Knowledge {
        let mut all = Knowledge::nothing(self.agents);
        for thread in threads {
            all.join(&self.known[thread as usize]);
        }
        all
    }

    fn tick(&mut self, thread: u32) {
        self.known[thread as usize].seen[thread as usize] += 1;
    }
}

/// The epoch and the knowledge under which work is checked.
struct Work {
    agent: Agent,
    time: u32,
    proxy: Proxy,
}

impl Block {
    fn note(
        &mut self,
        address: u32,
        bytes: u32,
        access: Access,
        work: Work,
        knowledge: &Knowledge,
        op: &'static str,
        at: At,
    ) {
        let Some(races) = &mut self.races else { return };
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
        };
        self.note(address, bytes, access, work, &known, op, at);
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
        };
        self.refuse_live_mbarrier(address, bytes, op, at);
        self.note(address, bytes, Access::Write, work, &knowledge, op, at);
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

    /// What the running thread hands to whoever waits for its arrival.
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
        };
        let knowledge = races.known[thread].clone();
        self.refuse_live_mbarrier(address, bytes, op, at);
        self.note(address, bytes, Access::Write, work, &knowledge, op, at);
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
        };
        let knowledge = races.known[thread as usize].clone();
        self.note(address, bytes, Access::Read, work, &knowledge, op, at);
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
            };
            self.note(address, bytes, Access::Read, work, &knowledge, op, at);
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
