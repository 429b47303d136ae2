//! Matrix descriptors: where `wgmma` finds an operand in shared memory.

pub(in super::super) use super::state::wgmma::Operand;
use crate::gpu::Swizzle;

/// A decoded matrix descriptor (PTX ISA, "Matrix Descriptor Format").
pub(super) struct Matrix {
    start: u32,
    leading_bytes: u32,
    stride_bytes: u32,
    swizzle: Swizzle,
    pub(super) mn_major: bool,
}

impl Matrix {
    /// # Errors
    /// What the descriptor breaks.
    pub(super) fn decode(operand: Operand, step: usize) -> Result<Self, String> {
        let bits = operand.descriptor.wrapping_add(operand.offsets[step]);
        let field = |shift: u32| ((bits >> shift & 0x3fff) << 4) as u32;
        let swizzle = match bits >> 62 {
            0 => Swizzle::None,
            1 => Swizzle::Bytes128,
            2 => Swizzle::Bytes64,
            _ => Swizzle::Bytes32,
        };
        let start = field(0);
        let row = swizzle.row_bytes();
        if bits >> 49 & 7 != 0 {
            return Err("its base offset is not 0".into());
        }
        if swizzle != Swizzle::None && start % (8 * row) >= row {
            return Err(format!(
                "it starts at shared address {start:#x}, which is not in the first row of a {}-byte swizzle pattern",
                8 * row
            ));
        }
        Ok(Self {
            start,
            leading_bytes: field(16),
            stride_bytes: field(32),
            swizzle,
            mn_major: operand.mn_major,
        })
    }

    /// The address of 8 elements: along k at (`outer` = m or n, `inner` = k / 8) when K-major,
    /// along m or n at (`outer` = k, `inner` = m or n / 8) when MN-major.
    fn chunk(&self, outer: u32, inner: u32) -> u32 {
        let row = self.swizzle.row_bytes();
        let chunks = row / 16;
        let (leading, stride) = (self.leading_bytes, self.stride_bytes);
        let within = outer / 8 * stride + outer % 8 * row;
        let linear = match (self.swizzle, self.mn_major) {
            // Unswizzled, the two strides change roles with the major dimension.
            (Swizzle::None, false) => outer / 8 * stride + outer % 8 * 16 + inner * leading,
            (Swizzle::None, true) => outer / 8 * leading + outer % 8 * 16 + inner * stride,
            (_, false) => within + inner * 16,
            (_, true) => within + inner / chunks * leading + inner % chunks * 16,
        };
        self.swizzle.apply(self.start + linear)
    }

    /// All chunks of 16 k by `size` m or n: address, outer, inner.
    pub(super) fn chunks(&self, size: u32) -> impl Iterator<Item = (u32, u32, u32)> {
        let (outers, inners) = if self.mn_major {
            (16, size / 8)
        } else {
            (size, 2)
        };
        (0..outers).flat_map(move |outer| {
            (0..inners).map(move |inner| (self.chunk(outer, inner), outer, inner))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The field encodings, with the mode of each swizzle.
    fn descriptor(start: u32, leading: u32, stride: u32, swizzle: Swizzle) -> u64 {
        let mode = [0, 3, 2, 1][swizzle as usize];
        let field = |bytes: u32| u64::from(bytes >> 4);
        field(start) | field(leading) << 16 | field(stride) << 32 | mode << 62
    }

    fn matrix(bits: u64, mn_major: bool) -> Result<Matrix, String> {
        let operand = Operand {
            descriptor: bits,
            mn_major,
            offsets: [0; 8],
        };
        Matrix::decode(operand, 0)
    }

    #[test]
    fn every_layout_packs_a_tile_without_overlap() {
        let sizes = [64u32, 128];
        for swizzle in [
            Swizzle::None,
            Swizzle::Bytes32,
            Swizzle::Bytes64,
            Swizzle::Bytes128,
        ] {
            for (size, mn_major) in sizes.into_iter().flat_map(|n| [(n, false), (n, true)]) {
                let row = swizzle.row_bytes();
                // Patterns of eight rows, packed: along m or n first, then along k.
                let pattern = 8 * row;
                let (leading, stride) = match (swizzle, mn_major) {
                    (Swizzle::None, false) => (pattern * size / 8, pattern),
                    (Swizzle::None, true) => (pattern * size / 8, pattern),
                    (_, false) => (16, pattern),
                    (_, true) => (pattern * 2, pattern),
                };
                let bits = descriptor(1024, leading, stride, swizzle);
                let matrix = matrix(bits, mn_major).expect("a valid descriptor");
                let mut seen: Vec<u32> = matrix.chunks(size).map(|(address, ..)| address).collect();
                seen.sort_unstable();
                seen.dedup();
                assert_eq!(seen.len() as u32, 16 * size / 8, "{swizzle:?}");
                assert!(
                    seen.iter()
                        .all(|address| address % 16 == 0 && *address >= 1024)
                );
            }
        }
    }

    #[test]
    fn tiles_of_128_byte_rows_are_chunk_xor_row() {
        let matrix = matrix(descriptor(1024, 16, 1024, Swizzle::Bytes128), false);
        for (address, row, chunk) in matrix.expect("a valid descriptor").chunks(64) {
            assert_eq!(address, 1024 + row * 128 + ((chunk ^ (row & 7)) << 4));
        }
    }

    #[test]
    fn k_runs_over_rows_when_mn_major() {
        let half = 64 * 128;
        let matrix = matrix(descriptor(1024, half, 1024, Swizzle::Bytes128), true);
        for (address, k, chunk) in matrix.expect("a valid descriptor").chunks(128) {
            let (half_at, chunk) = (chunk / 8 * half, chunk % 8);
            assert_eq!(address, 1024 + half_at + k * 128 + ((chunk ^ (k & 7)) << 4));
        }
    }

    #[test]
    fn a_base_offset_is_refused() {
        let bits = descriptor(1024, 16, 1024, Swizzle::Bytes128) | 1 << 49;
        assert!(matrix(bits, false).is_err());
    }
}
