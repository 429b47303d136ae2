//! The unit of data, and what an instruction set does with it.

use half::{bf16, f16};

/// Queries that are worked on together: 32 = two AVX-512 registers, four AVX ones. With head_dim 128 a panel's Qᵀ takes
/// 16 KiB, which stays in the first-level cache while keys stream past.
pub(crate) const PANEL: usize = 32;

/// One f32 for each query of a panel.
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Zeroable, bytemuck::Pod)]
#[repr(C, align(64))]
pub(crate) struct Lanes(pub(crate) [f32; PANEL]);

impl Lanes {
    pub(crate) const ZERO: Lanes = Lanes([0.0; PANEL]);
    pub(crate) const NEG_INFINITY: Lanes = Lanes([f32::NEG_INFINITY; PANEL]);
}

/// A vector instruction set. Holding a value proves that the machine has it.
pub(crate) trait Simd: Copy {
    /// A vector register of f32.
    type F32: Copy;
    /// Elements of [`Simd::F32`]; divides [`PANEL`].
    const LANES: usize;

    /// Runs `kernel` compiled for this set.
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output;

    fn splat(self, x: f32) -> Self::F32;
    /// Elements `at..at + LANES` of a panel.
    fn load(self, from: &Lanes, at: usize) -> Self::F32;
    fn store(self, to: &mut Lanes, at: usize, x: Self::F32);
    /// The first `LANES` elements of a row, in any alignment.
    ///
    /// # Panics
    /// Where there are fewer; so do the other loads, and the store, of rows.
    fn load_f32(self, from: &[f32]) -> Self::F32;
    /// The same of f16.
    fn load_f16(self, from: &[f16]) -> Self::F32;
    /// The same of bf16.
    fn load_bf16(self, from: &[bf16]) -> Self::F32;
    /// The first `LANES` elements of a row.
    fn store_f32(self, to: &mut [f32], x: Self::F32);
    /// Asks for the cache line in which `from` begins, which will be read some thousands of cycles later.
    fn prefetch<T>(self, from: &[T]);
    /// The sum of all lanes, always in the same order.
    fn sum_of_lanes(self, x: Self::F32) -> f32;
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// a·b + c, with one rounding where the hardware has it.
    fn mul_add(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;
    /// The larger of both; `b` where either is NaN.
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `yes` where a < b, else `no`.
    fn select_lt(self, a: Self::F32, b: Self::F32, yes: Self::F32, no: Self::F32) -> Self::F32;
    /// 2ⁿ for the integer n in -126..=127 whose float is `n_plus_magic` - [`ROUNDING_MAGIC`].
    fn exp2_of_rounded(self, n_plus_magic: Self::F32) -> Self::F32;

    /// 2ˣ for x ≤ 127 with a relative error below 3e-7 (measured in the tests); 0 below -126, so that -∞ gives 0; NaN stays.
    #[inline(always)]
    fn exp2(self, x: Self::F32) -> Self::F32 {
        let lowest = self.splat(-126.0);
        let clamped = self.max(lowest, x);
        let magic = self.splat(ROUNDING_MAGIC);
        let n_plus_magic = self.add(clamped, magic);
        let fraction = self.sub(clamped, self.sub(n_plus_magic, magic));
        let [highest, rest @ ..] = EXP2_COEFFICIENTS;
        let mut power = self.splat(highest);
        for coefficient in rest {
            power = self.mul_add(power, fraction, self.splat(coefficient));
        }
        let scaled = self.mul(power, self.exp2_of_rounded(n_plus_magic));
        self.select_lt(x, lowest, self.splat(0.0), scaled)
    }
}

/// Elements that a register is loaded from, and converted to f32 on the way.
pub(crate) trait Loadable: Copy + Default + Sync {
    /// The first [`Simd::LANES`] elements.
    fn load<S: Simd>(simd: S, from: &[Self]) -> S::F32;
}

macro_rules! loadable {
    ($type:ty, $load:ident) => {
        impl Loadable for $type {
            #[inline(always)]
            fn load<S: Simd>(simd: S, from: &[Self]) -> S::F32 {
                simd.$load(from)
            }
        }
    };
}
loadable!(f32, load_f32);
loadable!(f16, load_f16);
loadable!(bf16, load_bf16);

/// 1.5 · 2²³: adding it to a small float leaves the nearest integer in the low mantissa bits.
pub(super) const ROUNDING_MAGIC: f32 = 12_582_912.0;

/// 2ᶠ on f in [-0.5, 0.5], highest power first: the Taylor terms ln(2)ⁿ/n!, with a remainder below 2⁻²⁷.
const EXP2_COEFFICIENTS: [f32; 7] = [
    1.540_353e-4,
    1.333_355_8e-3,
    9.618_129e-3,
    5.550_411e-2,
    0.240_226_5,
    std::f32::consts::LN_2,
    1.0,
];

/// Something to run on one of the instruction sets. Everything in `run` must be `#[inline(always)]` to be compiled for
/// that set.
pub(crate) trait Kernel {
    type Output;
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}
