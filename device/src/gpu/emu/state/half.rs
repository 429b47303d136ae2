//! The 16-bit float formats of matrix operands.

/// A 16-bit float format.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Half {
    Bf16,
    F16,
}

impl Half {
    #[inline(always)]
    pub fn to_f32(self, bits: u16) -> f32 {
        match self {
            Self::Bf16 => f32::from_bits(u32::from(bits) << 16),
            Self::F16 => half::f16::from_bits(bits).to_f32(),
        }
    }
}
