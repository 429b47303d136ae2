//! What a warp needs once a tile, kept in shared memory: S and O leave too few registers for it.

use super::SparseFlashParams;
use super::work::{Keys, QueryRows, Tokens, WorkTile};
use crate::abi::KvTensor;
use crate::gpu::{self, Global, Shared};

/// A warp's context: eight words of 64 bits, and sixteen of 32.
#[derive(Clone, Copy)]
pub(super) struct WarpContext {
    at: Shared<u64>,
}

/// What a work tile attends to by its lists.
pub(super) struct Listed {
    /// The list of key blocks. Null: all of them, in order.
    pub blocks: Global<u32>,
    /// The single keys.
    pub keys: Global<u32>,
    /// Entries of the list.
    pub entries: u32,
    /// Candidates for gathered keys, sinks before single keys, and how many of them are sinks.
    pub candidates: u32,
    pub sink_candidates: u32,
    /// Key blocks from this one on are not walked.
    pub end_block: u32,
}

impl WarpContext {
    /// Bytes of a context.
    pub const BYTES: u32 = 128;

    #[inline(always)]
    pub const fn new(at: Shared<u8>) -> Self {
        Self { at: at.cast() }
    }

    /// Writes the rows and keys of a work tile. One lane calls it, and what is not written yet must not be kept in registers: hence
    /// the parts.
    #[inline(always)]
    pub fn write_work(self, work: &WorkTile, scale_log2: f32) {
        let WorkTile { rows, keys, .. } = work;
        let keys = [keys.start, keys.len, work.query_block, scale_log2.to_bits()];
        gpu::st_shared_v4(self.numbers().add(4), keys);
        let rows = [rows.batch, rows.start, rows.first as u32, rows.end];
        gpu::st_shared_v4(self.numbers().add(8), rows);
        let names = [work.q_head, work.kv_head, work.number, work.keys.sequence];
        gpu::st_shared_v4(self.numbers().add(12), names);
    }

    /// Writes where the head's keys lie.
    #[inline(always)]
    pub fn write_k(self, k: Tokens) {
        gpu::st_shared_v2(self.at, [k.first.address(), k.stride]);
        gpu::st_shared(self.at.add(6), k.pages.address());
    }

    /// Writes where the head's values lie.
    #[inline(always)]
    pub fn write_v(self, v: Tokens) {
        gpu::st_shared_v2(self.at.add(2), [v.first.address(), v.stride]);
        gpu::st_shared(self.at.add(7), v.pages.address());
    }

    /// Writes what is attended to.
    #[inline(always)]
    pub fn write_listed(self, listed: &Listed) {
        let addresses = [listed.blocks.address(), listed.keys.address()];
        gpu::st_shared_v2(self.at.add(4), addresses);
        let numbers = [
            listed.entries,
            listed.candidates,
            listed.sink_candidates,
            listed.end_block,
        ];
        gpu::st_shared_v4(self.numbers(), numbers);
    }

    #[inline(always)]
    const fn numbers(self) -> Shared<u32> {
        self.at.add(8).cast()
    }

    #[inline(always)]
    fn number(self, index: u32) -> u32 {
        gpu::ld_shared(self.numbers().add(index))
    }

    #[inline(always)]
    fn address(self, index: u32) -> Global<u32> {
        Global::from_address(gpu::ld_shared(self.at.add(index)))
    }

    #[inline(always)]
    fn tokens(self, tensor: &KvTensor, at: u32, pages_at: u32) -> Tokens {
        let [address, stride] = gpu::ld_shared_v2(self.at.add(at));
        Tokens {
            first: Global::from_address(address),
            stride,
            pages: if tensor.is_paged() {
                self.address(pages_at)
            } else {
                Global::NULL
            },
        }
    }

    /// The head's keys.
    #[inline(always)]
    pub fn k(self, p: &SparseFlashParams) -> Tokens {
        self.tokens(&p.k, 0, 6)
    }

    /// The head's values.
    #[inline(always)]
    pub fn v(self, p: &SparseFlashParams) -> Tokens {
        self.tokens(&p.v, 2, 7)
    }

    #[inline(always)]
    pub fn list(self) -> Global<u32> {
        self.address(4)
    }

    #[inline(always)]
    pub fn stripes(self) -> Global<u32> {
        self.address(5)
    }

    #[inline(always)]
    pub fn entries(self) -> u32 {
        self.number(0)
    }

    #[inline(always)]
    pub fn candidates(self) -> u32 {
        self.number(1)
    }

    #[inline(always)]
    pub fn sink_candidates(self) -> u32 {
        self.number(2)
    }

    #[inline(always)]
    pub fn end_block(self) -> u32 {
        self.number(3)
    }

    /// Where a key lies in the tensors: `[token, head, batch]`. The token of a gathered tile's `start` means nothing.
    #[inline(always)]
    pub fn place_of_key(self, key: u32) -> [i32; 3] {
        let token = self.number(4).wrapping_add(key);
        [token, self.number(13), self.number(8)].map(|i| i as i32)
    }

    #[inline(always)]
    pub fn k_len(self) -> u32 {
        self.number(5)
    }

    #[inline(always)]
    pub fn query_block(self) -> u32 {
        self.number(6)
    }

    /// The magnitude of softmax_scale · log2(e).
    #[inline(always)]
    pub fn scale_log2(self) -> f32 {
        f32::from_bits(self.number(7))
    }

    #[inline(always)]
    pub fn work(self) -> WorkTile {
        let [start, len, query_block, _] = gpu::ld_shared_v4(self.numbers().add(4));
        let [batch, q_start, first, end] = gpu::ld_shared_v4(self.numbers().add(8));
        let [q_head, kv_head, number, sequence] = gpu::ld_shared_v4(self.numbers().add(12));
        WorkTile {
            q_head,
            kv_head,
            number,
            query_block,
            rows: QueryRows {
                batch,
                start: q_start,
                first: first as i32,
                end,
            },
            keys: Keys {
                sequence,
                start,
                len,
            },
        }
    }
}
