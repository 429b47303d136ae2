//! What went wrong, where, and how to see it again.

use std::fmt;
use std::panic::Location;

use super::mode::Mode;

/// The class of a [`Fault`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FaultKind {
    /// The launch itself is malformed: its shape, or its shared memory.
    Launch,
    /// An access outside every allocation.
    OutOfBounds,
    /// An address that its access does not allow.
    Misaligned,
    /// Lanes of a warp are at different instructions where the hardware needs one.
    Divergence,
    /// Participants of a barrier disagree.
    Barrier,
    /// Every thread waits.
    Deadlock,
    /// Threads spin and none makes progress.
    Livelock,
    /// An `mbarrier` is used against its rules.
    Mbarrier,
    /// An asynchronous copy is malformed, or was never waited for.
    AsyncCopy,
    /// A `wgmma` is malformed, or was never waited for.
    Wgmma,
    /// A `setmaxnreg` is malformed.
    Registers,
    /// Two accesses to shared memory, one a write, that nothing orders.
    Race,
    /// The kernel stopped itself.
    Trap,
    /// The kernel's Rust code panicked.
    Panic,
}

/// Why a launch ended early. Its text is meant to be read without knowing the emulator.
#[derive(Debug, Clone)]
pub struct Fault {
    pub(in crate::gpu::emu) kind: FaultKind,
    pub(in crate::gpu::emu) message: String,
    pub(in crate::gpu::emu) kernel: &'static str,
    pub(in crate::gpu::emu) cta: Option<[u32; 3]>,
    pub(in crate::gpu::emu) thread: Option<ThreadName>,
    pub(in crate::gpu::emu) at: Option<&'static Location<'static>>,
    pub(in crate::gpu::emu) mode: Mode,
}

impl Fault {
    /// The class of the fault.
    pub fn kind(&self) -> FaultKind {
        self.kind
    }

    /// The source line that the faulting thread had reached, as `file:line:column`.
    pub fn location(&self) -> Option<String> {
        self.at.map(ToString::to_string)
    }

    /// The mode of the launch, with the seed that replays it.
    pub fn mode(&self) -> Mode {
        self.mode
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kernel `{}`", self.kernel)?;
        if let Some([x, y, z]) = self.cta {
            write!(f, ", CTA ({x}, {y}, {z})")?;
        }
        if let Some(thread) = &self.thread {
            write!(f, ", {thread}")?;
        }
        if let Some(at) = self.at {
            write!(f, ", at {at}")?;
        }
        write!(f, ":\n  {}\n  ", self.message.replace('\n', "\n  "))?;
        match self.mode {
            Mode::Fast => write!(
                f,
                "(fast mode; Mode::Checked {{ seed }} also detects races)"
            ),
            Mode::Checked { seed } => write!(f, "(replay with Mode::Checked {{ seed: {seed} }})"),
        }
    }
}

impl std::error::Error for Fault {}

/// A thread of a CTA by its linear index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ThreadName(pub(in crate::gpu::emu) u32);

impl fmt::Display for ThreadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "thread {} (warp {}, lane {})",
            self.0,
            self.0 / 32,
            self.0 % 32
        )
    }
}

/// Ascending numbers as ranges: `0-31, 40, 64-95`.
pub fn ranges(numbers: impl IntoIterator<Item = u32>) -> String {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for n in numbers {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == n => *last = n,
            _ => runs.push((n, n)),
        }
    }
    let text: Vec<String> = runs
        .iter()
        .map(|&(first, last)| {
            if first == last {
                first.to_string()
            } else {
                format!("{first}-{last}")
            }
        })
        .collect();
    text.join(", ")
}

/// The lanes of `mask` as ranges.
pub fn lanes(mask: u32) -> String {
    ranges((0..32).filter(|lane| mask >> lane & 1 == 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_join_neighbours_only() {
        assert_eq!(ranges([0, 1, 2, 5, 7, 8]), "0-2, 5, 7-8");
        assert_eq!(lanes(0x8000_0003), "0-1, 31");
    }
}
