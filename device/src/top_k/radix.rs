//! Weighted radix select: the threshold of the smallest set whose mass reaches a need.
//!
//! ```text
//! threshold(mass, need):
//!     digit = the exponent of 2 and the next 5 bits               first a digit that grows with the logarithm …
//!     repeat:
//!         histogram[digit] = Σ mass of the candidates whose leading bits are prefix
//!         walk the digits downwards until the mass above reaches need: that digit joins the prefix
//!         digit = the next 11 bits                                … then the bits that are left
//! ```
//!
//! Masses span many powers of two. A first digit of leading bits would put nearly all of them into one counter, which every
//! thread would queue for, and leave three more digits to find; the logarithmic one spreads them, and leaves only the bits
//! below the threshold's own sixth. Sums are integers: the outcome does not depend on the order of the additions.
//!
//! The walk: thread t owns the digits 2047 − 2t and 2046 − 2t; a scan over the block gives each the mass above its own, and
//! exactly one finds the need between what is above and what it adds. Three barriers a digit.

use super::shared::{DIGIT_BITS, DIGITS, SharedMemory, WARPS};
use crate::gpu::{self, Global, Shared};
use crate::launch::TOP_K_THREADS as THREADS;
use crate::tile::panel;
use crate::tile::sum::{from_lane, sum_up_to_lane};

/// Bits after the leading one in the first digit: 64 exponents × 2^5.
const FIRST_FRACTION_BITS: u32 = DIGIT_BITS - 6;

const _: () = assert!(DIGITS == 2 * THREADS);

/// Candidates above `mass` are selected, and the first `ties` of those equal to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Threshold {
    pub(super) mass: u64,
    pub(super) ties: u32,
}

/// Whether a candidate is selected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Selected {
    Yes,
    /// It is equal to the threshold.
    IfFirst,
    No,
}

impl Threshold {
    /// Whether a candidate of mass `x` is selected.
    #[inline(always)]
    pub(super) fn kind(self, x: u64) -> Selected {
        if x > self.mass {
            Selected::Yes
        } else if x == self.mass && self.ties > 0 {
            Selected::IfFirst
        } else {
            Selected::No
        }
    }
}

/// What is known of the threshold: its leading bits.
#[derive(Clone, Copy)]
struct Prefix {
    bits: u64,
    /// Bits below them.
    low_bits: u32,
}

impl Prefix {
    /// From a first digit.
    #[inline(always)]
    fn of_first_digit(digit: u32) -> Self {
        let exponent = digit >> FIRST_FRACTION_BITS;
        let one = 1 << FIRST_FRACTION_BITS;
        let leading = one | (digit % one);
        if exponent <= FIRST_FRACTION_BITS {
            // Small numbers have no more bits: the digit is all of them.
            Prefix {
                bits: u64::from(leading >> (FIRST_FRACTION_BITS - exponent)),
                low_bits: 0,
            }
        } else {
            Prefix {
                bits: leading.into(),
                low_bits: exponent - FIRST_FRACTION_BITS,
            }
        }
    }
}

/// Exponent and leading fraction of a mass above 0: not less for a greater mass.
#[inline(always)]
fn first_digit(mass: u64) -> u32 {
    let exponent = 63 - mass.leading_zeros();
    // The leading one moves to bit 63 and out; the fraction follows.
    let fraction = mass << (63 - exponent) << 1 >> (64 - FIRST_FRACTION_BITS);
    exponent << FIRST_FRACTION_BITS | fraction as u32
}

/// The threshold of the smallest set whose mass reaches `need`. Nothing is selected where `need` is 0; everything of nonzero
/// mass where all of it does not suffice. All threads of the block call it.
#[inline(always)]
pub(super) fn threshold(
    shared: SharedMemory,
    mass: Global<u64>,
    candidates: u32,
    need: u64,
) -> Threshold {
    if need == 0 {
        return Threshold {
            mass: u64::MAX,
            ties: 0,
        };
    }
    let everything = Threshold { mass: 0, ties: 0 };
    fill_histogram(shared, mass, candidates, |x| {
        (x > 0).then(|| first_digit(x))
    });
    let Some((digit, mut missing)) = walk(shared, need) else {
        return everything;
    };
    let mut prefix = Prefix::of_first_digit(digit);
    while prefix.low_bits > 0 {
        let bits = prefix.low_bits.min(DIGIT_BITS);
        let low_bits = prefix.low_bits - bits;
        fill_histogram(shared, mass, candidates, |x| {
            (x >> prefix.low_bits == prefix.bits).then(|| (x >> low_bits) as u32 % (1 << bits))
        });
        let Some((digit, still_missing)) = walk(shared, missing) else {
            return everything;
        };
        missing = still_missing;
        prefix = Prefix {
            bits: prefix.bits << bits | u64::from(digit),
            low_bits,
        };
    }
    Threshold {
        mass: prefix.bits,
        ties: missing.div_ceil(prefix.bits) as u32,
    }
}

/// Candidates that a thread loads before it uses the first: enough to hide the way to memory.
const LOADS: usize = 4;

/// Adds up the mass of candidates by digit; those without one are left out.
#[inline(always)]
fn fill_histogram(
    shared: SharedMemory,
    mass: Global<u64>,
    candidates: u32,
    digit: impl Fn(u64) -> Option<u32>,
) {
    let histogram = shared.histogram();
    gpu::st_shared_v2(histogram.add(2 * gpu::tid_x()), [0, 0]);
    gpu::bar_sync(0);
    let mut first = gpu::tid_x();
    while first < candidates {
        let mut masses = [0; LOADS];
        for (i, x) in masses.iter_mut().enumerate() {
            let at = first + i as u32 * THREADS;
            if at < candidates {
                *x = gpu::ld_global_nc(mass.add(at.into()));
            }
        }
        for &x in &masses {
            // A mass of 0 changes no sum.
            if x > 0
                && let Some(digit) = digit(x)
            {
                add(histogram, digit, x);
            }
        }
        first += LOADS as u32 * THREADS;
    }
    gpu::bar_sync(0);
}

/// Adds to a counter, half by half: hardware adds 32 bits in shared memory at once, 64 only by trying until nobody comes
/// between. Whoever makes the low half overflow carries, so that the counter is right when all have added.
#[inline(always)]
fn add(histogram: Shared<u64>, digit: u32, x: u64) {
    let low = histogram.add(digit).cast::<u32>();
    let before = gpu::atom_shared_add_u32(low, x as u32);
    let carry = before.checked_add(x as u32).is_none();
    let high = (x >> 32) as u32 + u32::from(carry);
    if high > 0 {
        gpu::atom_shared_add_u32(low.add(1), high);
    }
}

/// The greatest digit down to which the masses reach `missing`, and what is then missing from its own; or none.
#[inline(always)]
fn walk(shared: SharedMemory, missing: u64) -> Option<(u32, u64)> {
    let lower = DIGITS - 2 - 2 * gpu::tid_x();
    let [of_lower, of_upper] = gpu::ld_shared_v2(shared.histogram().add(lower));
    let lane = gpu::laneid();
    let warp = panel::warp();
    let own = of_lower + of_upper;
    let in_warp = sum_up_to_lane(own);
    if lane == 31 {
        gpu::st_shared(shared.totals().add(warp), in_warp);
    }
    gpu::bar_sync(0);
    let totals = sum_up_to_lane(gpu::ld_shared(shared.totals().add(lane)));
    let before_warp = from_lane(totals, warp.saturating_sub(1));
    let total = from_lane(totals, WARPS - 1);
    let above = in_warp - own + if warp > 0 { before_warp } else { 0 };
    let chosen = shared.sums();
    if above < missing && missing - above <= own {
        let (digit, still_missing) = if missing - above <= of_upper {
            (lower + 1, missing - above)
        } else {
            (lower, missing - above - of_upper)
        };
        gpu::st_shared_v2(chosen, [digit.into(), still_missing]);
    }
    gpu::bar_sync(0);
    (total >= missing).then(|| {
        let [digit, still_missing] = gpu::ld_shared_v2(chosen);
        (digit as u32, still_missing)
    })
}

const _: () = assert!(
    WARPS == 32,
    "a scan over the warps' totals is one warp wide"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_digit_grows_with_the_mass_and_gives_its_leading_bits() {
        let mut masses: Vec<u64> = (1..5000).collect();
        for exponent in 12..64 {
            for offset in [0, 1, 5, 1 << 11] {
                masses.push((1 << exponent) - 1);
                masses.push((1 << exponent) + offset);
                masses.push((1 << exponent) | (1 << (exponent - 1)) | offset);
            }
        }
        masses.push(u64::MAX);
        masses.sort_unstable();
        for pair in masses.windows(2) {
            assert!(first_digit(pair[0]) <= first_digit(pair[1]));
        }
        for mass in masses {
            let digit = first_digit(mass);
            assert!(digit < DIGITS);
            let prefix = Prefix::of_first_digit(digit);
            assert_eq!(mass >> prefix.low_bits, prefix.bits, "{mass}");
        }
    }
}
