//! Plain Rust, for the compiler to vectorise with whatever the target's baseline has (NEON on aarch64).

use half::{bf16, f16};

use super::{Kernel, Lanes, Simd};

const LANES: usize = 8;

#[derive(Clone, Copy)]
pub(super) struct Portable;

#[inline(always)]
fn zip(a: [f32; LANES], b: [f32; LANES], op: impl Fn(f32, f32) -> f32) -> [f32; LANES] {
    std::array::from_fn(|lane| op(a[lane], b[lane]))
}

impl Simd for Portable {
    type F32 = [f32; LANES];
    const LANES: usize = LANES;

    #[inline(always)]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }
    #[inline(always)]
    fn splat(self, x: f32) -> Self::F32 {
        [x; LANES]
    }
    #[inline(always)]
    fn load(self, from: &Lanes, at: usize) -> Self::F32 {
        std::array::from_fn(|lane| from.0[at + lane])
    }
    #[inline(always)]
    fn store(self, to: &mut Lanes, at: usize, x: Self::F32) {
        to.0[at..at + LANES].copy_from_slice(&x);
    }
    #[inline(always)]
    fn load_f32(self, from: &[f32]) -> Self::F32 {
        let from = &from[..LANES];
        std::array::from_fn(|lane| from[lane])
    }
    #[inline(always)]
    fn load_f16(self, from: &[f16]) -> Self::F32 {
        let from = &from[..LANES];
        std::array::from_fn(|lane| from[lane].to_f32())
    }
    #[inline(always)]
    fn load_bf16(self, from: &[bf16]) -> Self::F32 {
        // A bf16 is the upper half of an f32; written out so that it vectorises.
        let from = &from[..LANES];
        std::array::from_fn(|lane| f32::from_bits(u32::from(from[lane].to_bits()) << 16))
    }
    #[inline(always)]
    fn store_f32(self, to: &mut [f32], x: Self::F32) {
        to[..LANES].copy_from_slice(&x);
    }
    #[inline(always)]
    fn prefetch<T>(self, _from: &[T]) {}
    #[inline(always)]
    fn sum_of_lanes(self, x: Self::F32) -> f32 {
        let [a, b, c, d, e, f, g, h] = x;
        ((a + e) + (c + g)) + ((b + f) + (d + h))
    }
    #[inline(always)]
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn mul_add(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32 {
        // `f32::mul_add` is a library call where the baseline has no fused instruction; aarch64 always has one.
        if cfg!(target_arch = "aarch64") {
            std::array::from_fn(|lane| a[lane].mul_add(b[lane], c[lane]))
        } else {
            std::array::from_fn(|lane| a[lane] * b[lane] + c[lane])
        }
    }
    #[inline(always)]
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn select_lt(self, a: Self::F32, b: Self::F32, yes: Self::F32, no: Self::F32) -> Self::F32 {
        std::array::from_fn(|lane| {
            if a[lane] < b[lane] {
                yes[lane]
            } else {
                no[lane]
            }
        })
    }
    #[inline(always)]
    fn exp2_of_rounded(self, n_plus_magic: Self::F32) -> Self::F32 {
        n_plus_magic.map(|x| f32::from_bits(x.to_bits().wrapping_add(127) << 23))
    }
}
