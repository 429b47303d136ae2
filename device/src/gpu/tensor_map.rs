//! Tensor maps: how bulk tensor copies see a tensor in global memory.
//!
//! A kernel takes the address of an opaque, encoded map. The [layout](TensorMapLayout) behind it is
//! plain data, which a CUDA host hands to `cuTensorMapEncodeTiled` and the emulator to its own
//! encoder.

/// How 16-byte chunks of a tile are permuted in shared memory, so that rows and columns both meet
/// every bank once.
///
/// Of a byte address, bits 4 and up are XORed with those from bit 7 on: three bits for 128, two for
/// 64, one for 32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Swizzle {
    /// In order.
    None = 0,
    /// Over rows of 32 bytes; the pattern repeats after 256.
    Bytes32 = 1,
    /// Over rows of 64 bytes; the pattern repeats after 512.
    Bytes64 = 2,
    /// Over rows of 128 bytes; the pattern repeats after 1024.
    Bytes128 = 3,
}

impl Swizzle {
    /// Where the byte that lies at `address` without a swizzle lies with it. Its own inverse.
    #[inline(always)]
    pub const fn apply(self, address: u32) -> u32 {
        address ^ ((address >> 7 & ((1 << self as u32) - 1)) << 4)
    }

    /// The bytes of a swizzled row; 16 without a swizzle.
    #[inline(always)]
    pub const fn row_bytes(self) -> u32 {
        16 << self as u32
    }
}

/// An encoded tensor map, opaque. Copies want it at a multiple of 64 bytes; rustc passes parameters of no more than 16, so a
/// struct of parameters has its maps at multiples of 64 bytes, and `cargo xtask ptx build` aligns the whole.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(16))]
pub struct TensorMap {
    words: [u64; 16],
}

impl TensorMap {
    /// The map whose encoding is `words`.
    pub const fn from_words(words: [u64; 16]) -> Self {
        Self { words }
    }

    /// The encoding.
    pub const fn words(&self) -> &[u64; 16] {
        &self.words
    }
}

/// A tensor of rank 1 to 5 and the box that one copy moves. Dimension 0 is contiguous; entries
/// beyond the rank are ignored.
#[derive(Debug, Clone, Copy)]
pub struct TensorMapLayout {
    /// The byte address of the first element.
    pub base: u64,
    /// Bytes of an element: 1, 2, 4 or 8.
    pub element_bytes: u32,
    /// How many dimensions there are.
    pub rank: u32,
    /// Elements of each dimension.
    pub dims: [u64; 5],
    /// Bytes between neighbours in dimension `i + 1`.
    pub strides_bytes: [u64; 4],
    /// Elements of the box in each dimension.
    pub box_dims: [u32; 5],
    /// How the box lies in shared memory.
    pub swizzle: Swizzle,
}

impl TensorMapLayout {
    /// The bytes of a box, which each copy adds to its mbarrier's transaction count, in bounds or
    /// not.
    pub const fn box_bytes(&self) -> u32 {
        let mut bytes = self.element_bytes;
        let mut i = 0;
        while i < self.rank as usize {
            bytes *= self.box_dims[i];
            i += 1;
        }
        bytes
    }

    /// Checks what the hardware demands, and that a swizzled box has whole rows.
    ///
    /// # Errors
    /// The rule that is broken.
    pub const fn check(&self) -> Result<(), &'static str> {
        if self.rank < 1 || self.rank > 5 {
            return Err("a tensor map has 1 to 5 dimensions");
        }
        if !self.element_bytes.is_power_of_two() || self.element_bytes > 8 {
            return Err("an element has 1, 2, 4 or 8 bytes");
        }
        if !self.base.is_multiple_of(16) {
            return Err("the base address is a multiple of 16 bytes");
        }
        let mut i = 0;
        while i < self.rank as usize {
            if self.dims[i] == 0 || self.dims[i] > 1 << 32 {
                return Err("a dimension has 1 to 2^32 elements");
            }
            if self.box_dims[i] == 0 || self.box_dims[i] > 256 {
                return Err("a box has 1 to 256 elements a dimension");
            }
            if i > 0
                && (!self.strides_bytes[i - 1].is_multiple_of(16)
                    || self.strides_bytes[i - 1] >= 1 << 40)
            {
                return Err("a stride is a multiple of 16 bytes, below 2^40");
            }
            i += 1;
        }
        let row_bytes = self.box_dims[0] * self.element_bytes;
        if !row_bytes.is_multiple_of(16) {
            return Err("the box has a multiple of 16 bytes in dimension 0");
        }
        if !matches!(self.swizzle, Swizzle::None) && row_bytes != self.swizzle.row_bytes() {
            return Err("a swizzled box has as many bytes in dimension 0 as the swizzle's rows");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swizzles_are_bijections_of_their_period() {
        for swizzle in [
            Swizzle::None,
            Swizzle::Bytes32,
            Swizzle::Bytes64,
            Swizzle::Bytes128,
        ] {
            let mut seen = [false; 1024];
            for address in 0..1024 {
                let to = swizzle.apply(address);
                assert_eq!(swizzle.apply(to), address, "an involution");
                assert_eq!(
                    to / swizzle.row_bytes(),
                    address / swizzle.row_bytes(),
                    "rows stay rows"
                );
                assert!(!std::mem::replace(&mut seen[to as usize], true));
            }
        }
    }

    #[test]
    fn the_128_byte_swizzle_is_chunk_xor_row() {
        for row in 0..64 {
            for chunk in 0..8 {
                let want = row * 128 + ((chunk ^ (row & 7)) << 4);
                assert_eq!(Swizzle::Bytes128.apply(row * 128 + chunk * 16), want);
            }
        }
    }

    #[test]
    fn a_box_wider_than_its_swizzle_is_refused() {
        let layout = TensorMapLayout {
            base: 0,
            element_bytes: 2,
            rank: 2,
            dims: [128, 100, 0, 0, 0],
            strides_bytes: [256, 0, 0, 0],
            box_dims: [64, 8, 0, 0, 0],
            swizzle: Swizzle::Bytes128,
        };
        assert_eq!(layout.check(), Ok(()));
        assert_eq!(layout.box_bytes(), 1024);
        let wide = TensorMapLayout {
            box_dims: [128, 8, 0, 0, 0],
            ..layout
        };
        assert!(wide.check().is_err());
    }
}
