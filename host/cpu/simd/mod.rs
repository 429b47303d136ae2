//! The instruction sets behind one tiny trait. The algorithms above are written once over [`Simd`], and [`InstructionSet::run`]
//! compiles them for each set.
//!
//! The unit of data is a [`Lanes`]: one f32 for each of the [`PANEL`] queries that are worked on together. Softmax
//! statistics are then per lane, and no operation goes across lanes. Few queries over many keys (`few_queries`) have the elements of
//! one row in the lanes instead: they load keys and values of any [`Loadable`] type from where they lie, and add lanes up at the end.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;
mod vector;

use crate::error::{Error, Result};
pub(crate) use vector::{Kernel, Lanes, Loadable, PANEL, Simd};

/// A vector instruction set of the CPU backend.
///
/// The same call gives the same bits on every machine and with any number of threads, as long as the set is the same;
/// between sets results differ by rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum InstructionSet {
    /// AVX-512F and VL: 16 lanes.
    Avx512,
    /// AVX2 with FMA: 8 lanes.
    Avx2,
    /// Plain Rust, for the compiler to vectorise with the target's baseline (NEON on aarch64).
    Portable,
}

impl InstructionSet {
    /// The sets that this machine has, the widest first.
    pub fn available() -> impl Iterator<Item = Self> {
        [Self::Avx512, Self::Avx2, Self::Portable]
            .into_iter()
            .filter(|set| set.is_available())
    }

    /// The widest set that this machine has.
    pub fn widest() -> Self {
        Self::available().next().unwrap_or(Self::Portable)
    }

    /// Whether this machine has the set.
    pub fn is_available(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => avx512::Avx512::new().is_some(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => avx2::Avx2::new().is_some(),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx512 | Self::Avx2 => false,
            Self::Portable => true,
        }
    }

    /// The same set, which this machine must have.
    pub(crate) fn checked(self) -> Result<Self> {
        if self.is_available() {
            return Ok(self);
        }
        Err(Error::NoSuchInstructionSet {
            instruction_set: self.name(),
        })
    }

    /// What people call the set.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Avx512 => "AVX-512",
            Self::Avx2 => "AVX2",
            Self::Portable => "portable",
        }
    }

    /// Runs `kernel` compiled for this set; in portable code where the machine does not have it.
    #[inline]
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[cfg(target_arch = "x86_64")]
        {
            if self == Self::Avx512
                && let Some(simd) = avx512::Avx512::new()
            {
                return simd.vectorize(kernel);
            }
            if self == Self::Avx2
                && let Some(simd) = avx2::Avx2::new()
            {
                return simd.vectorize(kernel);
            }
        }
        portable::Portable.vectorize(kernel)
    }
}

impl std::fmt::Display for InstructionSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Runs a kernel on every instruction set that this machine has, and hands each result to `check` with the set's name.
#[cfg(test)]
pub(crate) fn on_every_set<K: Kernel>(
    kernel: impl Fn() -> K,
    mut check: impl FnMut(&str, K::Output),
) {
    for set in InstructionSet::available() {
        check(&set.to_string(), set.run(kernel()));
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;

    struct Exp2<'a>(&'a mut Lanes);

    impl Kernel for Exp2<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            for at in (0..PANEL).step_by(S::LANES) {
                let x = simd.load(self.0, at);
                simd.store(self.0, at, simd.exp2(x));
            }
        }
    }

    fn on_every_set(check: impl Fn(InstructionSet, &dyn Fn(&mut Lanes))) {
        for set in InstructionSet::available() {
            check(set, &|x| set.run(Exp2(x)));
        }
    }

    /// Loads a row of each type, sums its lanes and stores it.
    struct LoadRow<'a>(&'a [f32], &'a mut [f32]);

    impl Kernel for LoadRow<'_> {
        type Output = [f32; 3];
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> [f32; 3] {
            let (f16s, bf16s): (Vec<f16>, Vec<bf16>) = self
                .0
                .iter()
                .map(|&x| (f16::from_f32(x), bf16::from_f32(x)))
                .unzip();
            simd.store_f32(self.1, f16::load(simd, &f16s));
            [
                f32::load(simd, self.0),
                f16::load(simd, &f16s),
                bf16::load(simd, &bf16s),
            ]
            .map(|x| simd.sum_of_lanes(x) / S::LANES as f32)
        }
    }

    #[test]
    fn rows_of_any_type_are_loaded_from_any_alignment_and_no_further_than_a_register() {
        for set in InstructionSet::available() {
            for start in 0..4 {
                let lanes = if set == InstructionSet::Avx512 { 16 } else { 8 };
                // 0.5, 1.5, … and what must not be read or written.
                let mut row: Vec<f32> = (0..start + lanes)
                    .map(|i| (i as f32 - start as f32) + 0.5)
                    .collect();
                row.extend([f32::NAN; 3]);
                let mut stored = [7.0; 24];
                let means = set.run(LoadRow(&row[start..], &mut stored));
                assert_eq!(means, [lanes as f32 / 2.0; 3], "{set}");
                assert_eq!(stored[..lanes], row[start..start + lanes], "{set}");
                assert_eq!(stored[lanes..], [7.0; 24][lanes..], "{set}");
            }
            let special = [
                f32::INFINITY,
                f32::NEG_INFINITY,
                6e-8,
                -0.0,
                65504.0,
                1.0,
                0.0,
                0.0,
            ];
            let row = [special, special].concat();
            let mut stored = [7.0; 16];
            let means = set.run(LoadRow(&row, &mut stored));
            assert!(means.iter().all(|x| x.is_nan()), "{set}: ∞ - ∞");
            let halves = special.map(|x| f16::from_f32(x).to_f32().to_bits());
            assert_eq!(stored.map(f32::to_bits)[..8], halves, "{set}");
        }
    }

    #[test]
    fn exp2_is_accurate_to_a_few_units_in_the_last_place() {
        on_every_set(|set, exp2| {
            let mut worst = 0f64;
            for step in 0..200_000 {
                let x = -126.0 + step as f32 * (130.0 / 200_000.0);
                let mut lanes = Lanes([x; PANEL]);
                exp2(&mut lanes);
                let exact = (x as f64).exp2();
                worst = worst.max((lanes.0[7] as f64 - exact).abs() / exact);
            }
            assert!(worst < 3e-7, "{set}: {worst:e}");
        });
    }

    #[test]
    fn exp2_keeps_zero_and_nan() {
        on_every_set(|set, exp2| {
            let nan_with_payload = f32::from_bits(0x7fc0_1357);
            for (x, expected) in [
                (f32::NEG_INFINITY, 0.0),
                (-127.0, 0.0),
                (-1e30, 0.0),
                (0.0, 1.0),
                (-0.0, 1.0),
                (-1.0, 0.5),
                (f32::NAN, f32::NAN),
                (nan_with_payload, f32::NAN),
            ] {
                let mut lanes = Lanes([x; PANEL]);
                exp2(&mut lanes);
                for got in lanes.0 {
                    assert!(
                        got == expected || (got.is_nan() && expected.is_nan()),
                        "{set}: 2^{x} = {got}"
                    );
                }
            }
        });
    }
}
