//! Plain Rust, for the compiler to vectorise with whatever the target's baseline has (NEON on aarch64).

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
