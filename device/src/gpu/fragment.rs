//! Which element of a matrix each register of each lane holds (PTX ISA, "Matrix Fragments").
//!
//! The same on every target. Kernels use these for masks and stores; with constants for the
//! register index they fold away.

/// The fragments of `mma.sync.m16n8k16` with 16-bit operands.
pub struct MmaM16N8K16;

impl MmaM16N8K16 {
    /// `[row, k]` of element `i` (of 8, two a register) of the A operand.
    #[inline(always)]
    pub const fn a(lane: u32, i: u32) -> [usize; 2] {
        let row = lane / 4 + 8 * (i >> 1 & 1);
        let k = lane % 4 * 2 + (i & 1) + 8 * (i >> 2);
        [row as usize, k as usize]
    }

    /// `[k, column]` of element `i` (of 4, two a register) of the B operand.
    #[inline(always)]
    pub const fn b(lane: u32, i: u32) -> [usize; 2] {
        let k = lane % 4 * 2 + (i & 1) + 8 * (i >> 1);
        [k as usize, (lane / 4) as usize]
    }

    /// `[row, column]` of element `i` (of 4) of the accumulator.
    #[inline(always)]
    pub const fn c(lane: u32, i: u32) -> [usize; 2] {
        let row = lane / 4 + 8 * (i >> 1);
        let column = lane % 4 * 2 + (i & 1);
        [row as usize, column as usize]
    }
}

/// The fragments of `wgmma.mma_async.m64nNk16` with 16-bit operands.
pub struct WgmmaM64K16;

impl WgmmaM64K16 {
    /// `[row, column]` of element `i` (of N/2) of the accumulator, for a thread of the warpgroup
    /// (0 to 127).
    #[inline(always)]
    pub const fn accumulator(thread: u32, i: u32) -> [usize; 2] {
        let lane = thread % 32;
        let row = thread / 32 * 16 + lane / 4 + 8 * (i >> 1 & 1);
        let column = (i >> 2) * 8 + lane % 4 * 2 + (i & 1);
        [row as usize, column as usize]
    }

    /// `[row, k]` of element `i` (of 8, two a register) of an A operand in registers.
    #[inline(always)]
    pub const fn a(thread: u32, i: u32) -> [usize; 2] {
        let [row, k] = MmaM16N8K16::a(thread % 32, i);
        [(thread / 32 * 16) as usize + row, k]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether `element` maps owners × registers onto rows × columns, one to one.
    fn assert_bijection(
        owners: u32,
        registers: u32,
        shape: [usize; 2],
        element: impl Fn(u32, u32) -> [usize; 2],
    ) {
        let mut seen = vec![false; shape[0] * shape[1]];
        for owner in 0..owners {
            for i in 0..registers {
                let [row, column] = element(owner, i);
                assert!(row < shape[0] && column < shape[1]);
                let cell = &mut seen[row * shape[1] + column];
                assert!(!*cell, "({row}, {column}) has two owners");
                *cell = true;
            }
        }
        assert!(seen.into_iter().all(|seen| seen), "an element has no owner");
    }

    #[test]
    fn mma_fragments_are_bijections() {
        assert_bijection(32, 8, [16, 16], MmaM16N8K16::a);
        assert_bijection(32, 4, [16, 8], MmaM16N8K16::b);
        assert_bijection(32, 4, [16, 8], MmaM16N8K16::c);
    }

    #[test]
    fn wgmma_fragments_are_bijections() {
        for n in [8, 64, 128, 256] {
            assert_bijection(128, n / 2, [64, n as usize], WgmmaM64K16::accumulator);
        }
        assert_bijection(128, 8, [64, 16], WgmmaM64K16::a);
    }

    #[test]
    fn an_accumulator_pair_is_the_a_operand_of_the_next_product() {
        // FlashAttention's P stays in registers: register r of k-step s holds accumulator elements
        // 8s + 2r and 8s + 2r + 1.
        for thread in 0..128 {
            for step in 0..4 {
                for i in 0..8 {
                    let [row, column] = WgmmaM64K16::accumulator(thread, step * 8 + i);
                    let [a_row, k] = WgmmaM64K16::a(thread, i);
                    assert_eq!([row, column], [a_row, k + 16 * step as usize]);
                }
            }
        }
    }
}
