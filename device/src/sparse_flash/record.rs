//! What a warp needs once a tile, kept in shared memory: S and O leave too few registers for it.

use crate::gpu::{self, Global, Shared};
use crate::params::ProblemSizes;
use crate::tile::{WARP, scale};

/// A warp's record: six words of 64 bits, four numbers, the task, and the scale.
#[derive(Clone, Copy)]
pub(super) struct Record {
    at: Shared<u64>,
}

/// What the record holds.
pub(super) struct Contents {
    /// The head's keys and values.
    pub k: Tokens,
    pub v: Tokens,
    /// The query block's list of key blocks. Null: all of them, in order.
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
    pub task: Task,
    /// softmax_scale · log2(e).
    pub scale_log2: f32,
}

/// The tokens of one head of K or V.
#[derive(Clone, Copy)]
pub(super) struct Tokens {
    pub first: Global<u16>,
    /// Elements from a token to the next.
    pub stride: u64,
}

impl Tokens {
    /// A token's first element.
    #[inline(always)]
    pub const fn token(self, token: u32) -> Global<u16> {
        self.first.add(token as u64 * self.stride)
    }
}

/// Where one query block of one head is.
#[derive(Clone, Copy)]
pub(super) struct Task {
    pub batch: u32,
    pub head: u32,
    pub kv_head: u32,
    pub query_block: u32,
}

impl Task {
    #[inline(always)]
    pub const fn new(sizes: &ProblemSizes, batch: u32, head: u32, query_block: u32) -> Self {
        Self {
            batch,
            head,
            kv_head: sizes.kv_head(head),
            query_block,
        }
    }
}

impl Record {
    /// Bytes of a record, some of them spare, so that the tiles behind all records are aligned.
    pub const BYTES: u32 = 128;

    #[inline(always)]
    pub const fn new(at: Shared<u8>) -> Self {
        Self { at: at.cast() }
    }

    /// Writes the record. All lanes of the warp call it.
    #[inline(always)]
    pub fn write(self, contents: &Contents) {
        if gpu::laneid() == 0 {
            let Contents { k, v, .. } = contents;
            gpu::st_shared_v2(self.at, [k.first.address(), k.stride]);
            gpu::st_shared_v2(self.at.add(2), [v.first.address(), v.stride]);
            let addresses = [contents.list.address(), contents.stripes.address()];
            gpu::st_shared_v2(self.at.add(4), addresses);
            let numbers = [
                contents.entries,
                contents.candidates,
                contents.sink_candidates,
                contents.end_key,
            ];
            gpu::st_shared_v4(self.numbers(), numbers);
            let Task {
                batch,
                head,
                kv_head,
                query_block,
            } = contents.task;
            gpu::st_shared_v4(self.numbers().add(4), [batch, head, kv_head, query_block]);
            let scale_bits = contents.scale_log2.to_bits();
            gpu::st_shared(self.numbers().add(8), scale_bits);
        }
        gpu::bar_warp_sync(WARP);
    }

    #[inline(always)]
    const fn numbers(self) -> Shared<u32> {
        self.at.add(6).cast()
    }

    #[inline(always)]
    fn tokens(self, at: u32) -> Tokens {
        let [address, stride] = gpu::ld_shared_v2(self.at.add(at));
        Tokens {
            first: Global::from_address(address),
            stride,
        }
    }

    #[inline(always)]
    pub fn k(self) -> Tokens {
        self.tokens(0)
    }

    #[inline(always)]
    pub fn v(self) -> Tokens {
        self.tokens(2)
    }

    #[inline(always)]
    pub fn list(self) -> Global<u32> {
        Global::from_address(gpu::ld_shared(self.at.add(4)))
    }

    #[inline(always)]
    pub fn stripes(self) -> Global<u32> {
        Global::from_address(gpu::ld_shared(self.at.add(5)))
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

    /// The magnitude of softmax_scale · log2(e).
    #[inline(always)]
    pub fn scale_log2(self) -> f32 {
        scale::magnitude(f32::from_bits(gpu::ld_shared(self.numbers().add(8))))
    }

    #[inline(always)]
    pub fn query_block(self) -> u32 {
        gpu::ld_shared(self.numbers().add(7))
    }

    #[inline(always)]
    pub fn task(self) -> Task {
        let [batch, head, kv_head, query_block] = gpu::ld_shared_v4(self.numbers().add(4));
        Task {
            batch,
            head,
            kv_head,
            query_block,
        }
    }
}
