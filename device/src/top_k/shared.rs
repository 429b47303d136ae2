//! The shared memory of a selecting CTA.

use crate::gpu::{self, Shared};
use crate::launch::TOP_K_THREADS as THREADS;

/// Bits of a digit: 2048 counters of mass, two a thread.
pub(super) const DIGIT_BITS: u32 = 11;
/// Values of a digit.
pub(super) const DIGITS: u32 = 1 << DIGIT_BITS;
pub(super) const WARPS: u32 = THREADS / 32;

/// The block's shared memory.
#[derive(Clone, Copy)]
pub(super) struct SharedMemory {
    base: Shared<u8>,
}

impl SharedMemory {
    pub(super) const HISTOGRAM_BYTES: u32 = DIGITS * 8;
    pub(super) const TOTALS_BYTES: u32 = WARPS * 8;
    pub(super) const COUNTS_BYTES: u32 = 2 * MAX_RANGES * 4;
    pub(super) const SUMS_BYTES: u32 = 16;
    pub(super) const BYTES: u32 =
        Self::HISTOGRAM_BYTES + Self::TOTALS_BYTES + Self::COUNTS_BYTES + Self::SUMS_BYTES;

    #[inline(always)]
    pub(super) fn new() -> Self {
        SharedMemory {
            base: gpu::dynamic_shared(),
        }
    }

    /// Mass by digit.
    #[inline(always)]
    pub(super) const fn histogram(self) -> Shared<u64> {
        self.base.cast()
    }

    /// Mass by warp.
    #[inline(always)]
    pub(super) const fn totals(self) -> Shared<u64> {
        self.base.byte_add(Self::HISTOGRAM_BYTES).cast()
    }

    /// What each range of candidates holds: above the threshold, and equal to it.
    #[inline(always)]
    pub(super) const fn counts(self) -> Shared<u32> {
        self.base
            .byte_add(Self::HISTOGRAM_BYTES + Self::TOTALS_BYTES)
            .cast()
    }

    /// Two sums over the block.
    #[inline(always)]
    pub(super) const fn sums(self) -> Shared<u64> {
        self.base
            .byte_add(Self::HISTOGRAM_BYTES + Self::TOTALS_BYTES + Self::COUNTS_BYTES)
            .cast()
    }
}

/// Ranges of candidates that are written independently: query blocks of a unit, or one a warp.
pub(super) const MAX_RANGES: u32 = 64;
