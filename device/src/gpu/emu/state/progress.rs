//! When a CTA counts as stuck although its threads run.
//!
//! A CTA makes progress when a thread exits, or when it writes to a line of global memory that it has not written before. Both
//! happen a finite number of times, so a bound on the instructions between two of them ends every loop that holds an instruction
//! the emulator sees, whatever the loop reads, writes or waits for.
//!
//! # The bound
//! Between two lines of output an honest kernel reads its inputs a bounded number of times. Attention is the most expensive here: to
//! multiply 128 rows of queries by a tile, a CTA of `mma` calls some 50,000 instructions (all threads together) for the 32 KiB of
//! 64 keys and values with head_dim 128, which is 1.6 a byte, and 2.4 with head_dim 64; ranking candidates takes 12 a byte. So
//! [`CALLS_PER_BYTE`] calls for each byte of global memory, and [`CALLS`] more for what does not depend on memory, are far from
//! all of them. In the tests of this crate no CTA uses more than 1/60 of its bound.
//!
//! # Limits
//! Only calls into the emulator are counted. Arithmetic is not (`ex2`, `max`, conversions: they run as plain code), so a loop of
//! nothing else is not seen.

/// Calls without progress that any launch may make: 1,024 threads with 16,384 each.
const CALLS: u64 = 1 << 24;

/// Further calls without progress for each byte of global memory.
const CALLS_PER_BYTE: u64 = 64;

/// Turns of the scheduler in which threads only polled, before that counts as livelock.
pub const POLL_LIMIT: u64 = 1 << 22;

/// Bytes of a line, log2.
const LINE_BYTES_LOG2: u32 = 7;

/// What a CTA has done since it last made progress.
pub struct Progress {
    calls: u64,
    limit: u64,
    /// Turns in which nothing happened but polls.
    pub polls: u64,
    /// A bit for each line of each buffer: whether the CTA has written to it.
    written: Vec<Vec<u64>>,
}

impl Progress {
    /// For a launch on a device with this many bytes in buffers.
    pub fn new(global_bytes: u64) -> Self {
        Self {
            calls: 0,
            limit: CALLS.saturating_add(global_bytes.saturating_mul(CALLS_PER_BYTE)),
            polls: 0,
            written: Vec::new(),
        }
    }

    /// Counts a call; whether there were too many.
    #[inline(always)]
    pub fn is_stuck_after_call(&mut self) -> bool {
        self.calls += 1;
        self.calls > self.limit
    }

    /// How many calls there may be without progress.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// A thread has exited.
    pub fn made(&mut self) {
        self.calls = 0;
    }

    /// The CTA writes to these bytes of a buffer.
    pub fn wrote(&mut self, buffer: usize, first_byte: u64, bytes: u64) {
        if self.written.len() <= buffer {
            self.written.resize_with(buffer + 1, Vec::new);
        }
        let lines = &mut self.written[buffer];
        let last_byte = first_byte + bytes.max(1) - 1;
        for line in first_byte >> LINE_BYTES_LOG2..=last_byte >> LINE_BYTES_LOG2 {
            let (word, bit) = ((line / 64) as usize, 1 << (line % 64));
            if lines.len() <= word {
                lines.resize(word + 1, 0);
            }
            if lines[word] & bit == 0 {
                lines[word] |= bit;
                self.calls = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lines_that_were_not_written_before_are_progress() {
        let mut progress = Progress::new(0);
        let calls_after = |progress: &mut Progress, first_byte, bytes| {
            progress.calls = 5;
            progress.wrote(3, first_byte, bytes);
            progress.calls
        };
        assert_eq!(calls_after(&mut progress, 256, 4), 0);
        assert_eq!(calls_after(&mut progress, 380, 4), 5, "the same line");
        assert_eq!(calls_after(&mut progress, 380, 8), 0, "the next line too");
        assert_eq!(calls_after(&mut progress, 1 << 20, 1), 0);
        assert_eq!(calls_after(&mut progress, 256, 256), 5);
    }

    #[test]
    fn the_bound_grows_with_memory() {
        let mut small = Progress::new(0);
        small.calls = small.limit() - 1;
        assert!(!small.is_stuck_after_call());
        assert!(small.is_stuck_after_call());
        assert!(Progress::new(1 << 30).limit() > 64 << 30);
        assert_eq!(Progress::new(u64::MAX).limit(), u64::MAX);
    }
}
