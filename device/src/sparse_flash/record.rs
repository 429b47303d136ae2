//! What a warp needs once a tile, kept in shared memory: S and O leave too few registers for it.

use crate::gpu::{self, Global, Shared};
use crate::tile::WARP;

/// A warp's record: four addresses, then four numbers.
#[derive(Clone, Copy)]
pub(super) struct Record {
    at: Shared<u64>,
}

/// What the record holds.
pub(super) struct Contents {
    /// The heads' first tokens.
    pub k: Global<u16>,
    pub v: Global<u16>,
    /// The query block's list of key blocks.
    pub list: Global<u32>,
    /// The head's stripes.
    pub stripes: Global<u32>,
    /// Entries of the list.
    pub entries: u32,
    /// Candidates for loose keys, sinks before stripes, and how many of them are sinks.
    pub candidates: u32,
    pub sink_candidates: u32,
    /// Keys from this one on are not loose: the own block's, and what no row sees.
    pub end_key: u32,
}

impl Record {
    /// Bytes of a record, a multiple of 16.
    pub const BYTES: u32 = 4 * 8 + 4 * 4 + 16;

    #[inline(always)]
    pub const fn new(at: Shared<u8>) -> Self {
        Self { at: at.cast() }
    }

    /// Writes the record. All lanes of the warp call it.
    #[inline(always)]
    pub fn write(self, contents: &Contents) {
        if gpu::laneid() == 0 {
            let addresses = [contents.k.address(), contents.v.address()];
            gpu::st_shared_v2(self.at, addresses);
            let addresses = [contents.list.address(), contents.stripes.address()];
            gpu::st_shared_v2(self.at.add(2), addresses);
            let numbers = [
                contents.entries,
                contents.candidates,
                contents.sink_candidates,
                contents.end_key,
            ];
            gpu::st_shared_v4(self.numbers(), numbers);
        }
        gpu::bar_warp_sync(WARP);
    }

    #[inline(always)]
    const fn numbers(self) -> Shared<u32> {
        self.at.add(4).cast()
    }

    #[inline(always)]
    #[track_caller]
    fn address<T>(self, index: u32) -> Global<T> {
        Global::from_address(gpu::ld_shared(self.at.add(index)))
    }

    #[inline(always)]
    pub fn k(self) -> Global<u16> {
        self.address(0)
    }

    #[inline(always)]
    pub fn v(self) -> Global<u16> {
        self.address(1)
    }

    #[inline(always)]
    pub fn list(self) -> Global<u32> {
        self.address(2)
    }

    #[inline(always)]
    pub fn stripes(self) -> Global<u32> {
        self.address(3)
    }

    #[inline(always)]
    pub fn entries(self) -> u32 {
        gpu::ld_shared(self.numbers())
    }

    #[inline(always)]
    pub fn candidates(self) -> u32 {
        gpu::ld_shared(self.numbers().add(1))
    }

    #[inline(always)]
    pub fn sink_candidates(self) -> u32 {
        gpu::ld_shared(self.numbers().add(2))
    }

    #[inline(always)]
    pub fn end_key(self) -> u32 {
        gpu::ld_shared(self.numbers().add(3))
    }
}
