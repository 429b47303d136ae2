//! Tiles of 16-bit elements in shared memory, swizzled so that neither copies nor `ldmatrix` meet a
//! bank twice.
//!
//! A row is `CHUNKS` chunks of 16 bytes (8 elements). Chunk `c` of row `r` lies where chunk
//! `c ^ (r & 7)` would lie without swizzling: eight rows of one column then fill all 32 banks.

use crate::gpu::Shared;

/// A tile whose rows are `CHUNKS` chunks of 16 bytes, a multiple of 8. The base is a multiple of the
/// row's size.
#[derive(Clone, Copy, Debug)]
pub struct SwizzledTile<const CHUNKS: usize> {
    base: Shared<u8>,
}

impl<const CHUNKS: usize> SwizzledTile<CHUNKS> {
    /// Bytes of a row.
    pub const ROW_BYTES: u32 = CHUNKS as u32 * 16;

    /// The tile at `base`.
    #[inline(always)]
    pub const fn new(base: Shared<u8>) -> Self {
        Self { base }
    }

    /// Where chunk `chunk` of row `row` lies.
    #[inline(always)]
    pub const fn chunk(self, row: u32, chunk: u32) -> Shared<u8> {
        self.base
            .byte_add(row * Self::ROW_BYTES + ((chunk ^ row & 7) << 4))
    }

    /// For `ldmatrix.x4` of 16 × 16 blocks from row `first_row` on, a multiple of 8: the matrices in
    /// the order upper left, lower left, upper right, lower right. That is an A operand, or
    /// transposed two B operands side by side.
    #[inline(always)]
    pub fn columns_first(self, first_row: u32, lane: u32) -> LaneRows<CHUNKS> {
        LaneRows {
            row: self.chunk(first_row + lane % 16, lane / 16),
        }
    }

    /// As [`columns_first`](Self::columns_first), in the order upper left, upper right, lower left,
    /// lower right: the B operands of a product with the tile's transpose, eight rows each.
    #[inline(always)]
    pub fn rows_first(self, first_row: u32, lane: u32) -> LaneRows<CHUNKS> {
        LaneRows {
            row: self.chunk(first_row + lane / 16 * 8 + lane % 8, lane / 8 % 2),
        }
    }
}

/// The row that this lane names for `ldmatrix`, in the tile's first block of 16 × 16 elements.
#[derive(Clone, Copy, Debug)]
pub struct LaneRows<const CHUNKS: usize> {
    row: Shared<u8>,
}

impl<const CHUNKS: usize> LaneRows<CHUNKS> {
    /// The same lane's row `rows` further down, a multiple of 8.
    #[inline(always)]
    pub const fn moved(self, rows: u32) -> Self {
        Self {
            row: self.block(rows, 0),
        }
    }

    /// The same lane's row in the block that lies `rows` further down, a multiple of 8, and `blocks`
    /// blocks of 16 columns to the right.
    ///
    /// One exclusive or and one addition, whose operands are constants in unrolled loops: moving to
    /// the right only flips bits of the chunk, and whole groups of 8 rows do not change the swizzle.
    #[inline(always)]
    pub const fn block(self, rows: u32, blocks: u32) -> Shared<u8> {
        Shared::<u8>::from_address(self.row.address() ^ blocks << 5)
            .byte_add(rows * SwizzledTile::<CHUNKS>::ROW_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_bijection<const CHUNKS: usize>() {
        let tile = SwizzledTile::<CHUNKS>::new(Shared::from_address(4096));
        let mut places: Vec<u32> = (0..64 * CHUNKS as u32)
            .map(|i| tile.chunk(i / CHUNKS as u32, i % CHUNKS as u32).address())
            .collect();
        places.sort_unstable();
        let all: Vec<u32> = (0..64 * CHUNKS as u32).map(|i| 4096 + i * 16).collect();
        assert_eq!(places, all);
    }

    #[test]
    fn every_chunk_has_its_own_place() {
        assert_bijection::<8>();
        assert_bijection::<16>();
    }

    #[test]
    fn eight_rows_of_a_column_and_eight_chunks_of_a_row_fill_the_banks() {
        let tile = SwizzledTile::<16>::new(Shared::from_address(0));
        let banks = |chunks: &mut dyn Iterator<Item = (u32, u32)>| {
            chunks.fold(0u32, |seen, (row, chunk)| {
                seen | 1 << (tile.chunk(row, chunk).address() / 16 % 8)
            })
        };
        for fixed in 0..16 {
            for first in [0, 8] {
                assert_eq!(banks(&mut (first..first + 8).map(|row| (row, fixed))), 0xff);
                assert_eq!(banks(&mut (first..first + 8).map(|c| (fixed, c))), 0xff);
            }
        }
    }

    #[test]
    fn a_step_to_the_right_is_an_exclusive_or() {
        fn check<const CHUNKS: usize>() {
            let tile = SwizzledTile::<CHUNKS>::new(Shared::from_address(4096));
            for row in 0..32 {
                for bit in 0..2 {
                    let lane = LaneRows::<CHUNKS> {
                        row: tile.chunk(row, bit),
                    };
                    for block in 0..CHUNKS as u32 / 2 {
                        let want = tile.chunk(row + 24, bit + 2 * block);
                        assert_eq!(lane.block(24, block).address(), want.address());
                    }
                }
            }
        }
        check::<8>();
        check::<16>();
    }
}
