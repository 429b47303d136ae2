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

use super::diagnosis::ThreadName;
use super::memory::{Access, SHARED_BASE};
use super::site::At;

/// mbarriers that have a clock of their own; any further ones share the last.
const MBARRIER_CLOCKS: usize = 64;

/// Index of a clock: threads first, then the kinds of asynchronous work.
pub type Agent = usize;

/// How far someone has seen every clock, and how much of it is published to the async proxy.
#[derive(Clone)]
pub struct Knowledge {
    pub seen: Box<[u32]>,
    pub published: Box<[u32]>,
}

impl Knowledge {
    pub fn nothing(agents: usize) -> Self {
        Self {
            seen: vec![0; agents].into(),
            published: vec![0; agents].into(),
        }
    }

    pub fn join(&mut self, other: &Self) {
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
pub struct Epoch {
    pub agent: u16,
    pub site: u16,
    /// Zero for "never": clocks start at one.
    pub time: u32,
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
pub enum Proxy {
    Generic,
    Async,
}

/// A conflict: the earlier access, and whether only publication is missing.
pub struct Conflict {
    pub earlier: Epoch,
    pub earlier_is_write: bool,
    pub unpublished: bool,
    pub byte: u32,
}

pub struct Races {
    threads: usize,
    pub agents: usize,
    pub known: Vec<Knowledge>,
    pub barriers: HashMap<u32, Knowledge>,
    cells: Vec<Cell>,
    readers: HashMap<u32, Vec<Epoch>>,
    pub sites: Vec<(&'static str, At)>,
    site_numbers: HashMap<(usize, usize), u16>,
    mbarrier_clocks: Vec<u32>,
}

impl Races {
    pub fn new(threads: u32, shared_bytes: u32) -> Self {
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

    pub fn copy_agent(&self, thread: u32) -> Agent {
        self.threads + thread as usize
    }

    pub fn bulk_store_agent(&self, thread: u32) -> Agent {
        2 * self.threads + thread as usize
    }

    pub fn wgmma_agent(&self, warpgroup: u32) -> Agent {
        3 * self.threads + warpgroup as usize
    }

    pub fn mbarrier_agent(&mut self, address: u32) -> Agent {
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
    pub fn name(&self, agent: Agent) -> String {
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

    pub fn site(&mut self, op: &'static str, at: At) -> u16 {
        let key = (op.as_ptr() as usize, std::ptr::from_ref(at) as usize);
        let sites = &mut self.sites;
        *self.site_numbers.entry(key).or_insert_with(|| {
            sites.push((op, at));
            (sites.len() - 1).min(usize::from(u16::MAX)) as u16
        })
    }

    /// Checks one access to `bytes` bytes at `offset` and records it under `epoch`.
    pub fn access(
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

    pub fn join_of(&self, threads: impl Iterator<Item = u32>) -> Knowledge {
        let mut all = Knowledge::nothing(self.agents);
        for thread in threads {
            all.join(&self.known[thread as usize]);
        }
        all
    }

    pub fn tick(&mut self, thread: u32) {
        self.known[thread as usize].seen[thread as usize] += 1;
    }
}
