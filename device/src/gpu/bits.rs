//! The bits of a word, the same on every target.

/// A value of at most 64 bits that is nothing but its bits.
pub trait Bits: Copy {
    /// The bits, zero-extended.
    #[doc(hidden)]
    fn to_bits64(self) -> u64;
    /// The value whose bits are the low ones of `bits`.
    #[doc(hidden)]
    fn from_bits64(bits: u64) -> Self;
}

/// `Bits` of a type that is `float` or `int`, through the unsigned type of its size.
macro_rules! bits {
    (float $t:ty, $bits:ty) => {
        impl Bits for $t {
            #[inline(always)]
            fn to_bits64(self) -> u64 {
                u64::from(self.to_bits())
            }

            #[inline(always)]
            fn from_bits64(bits: u64) -> Self {
                <$t>::from_bits(bits as $bits)
            }
        }
    };
    (int $t:ty, $bits:ty) => {
        impl Bits for $t {
            #[inline(always)]
            fn to_bits64(self) -> u64 {
                self as $bits as u64
            }

            #[inline(always)]
            fn from_bits64(bits: u64) -> Self {
                bits as $t
            }
        }
    };
}

bits!(int u8, u8);
bits!(int u16, u16);
bits!(int u32, u32);
bits!(int i32, u32);
bits!(float f32, u32);
bits!(int u64, u64);
bits!(int i64, u64);
bits!(float f64, u64);
