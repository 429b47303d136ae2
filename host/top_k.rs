//! The smallest set of candidates that reaches a needed mass, by weighted radix select.
//!
//! ```text
//! threshold(mass, need):
//!     prefix = nothing
//!     for each digit of 11 bits, from the top:
//!         histogram[digit] = Σ mass of the candidates whose leading bits are prefix
//!         walk the digits downwards until the mass above reaches need: that digit joins the prefix
//!     every candidate above the prefix is in; of those equal to it, as many as are still needed, lowest index first
//! ```
//!
//! Sums are integers, so the outcome does not depend on the order of summation; a few linear passes replace a sort, and a GPU
//! takes the same steps.

const DIGIT_BITS: u32 = 11;
const DIGITS: usize = 1 << DIGIT_BITS;

/// The outcome of [`threshold`]: candidates above `mass` are selected, and the first `ties` of those equal to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Threshold {
    /// Mass that a selected candidate exceeds or, for the first `ties`, equals.
    pub mass: u64,
    /// Candidates of exactly this mass that are selected, lowest index first.
    pub ties: usize,
}

/// The threshold of the smallest set whose mass reaches `need`, heaviest first, ties to the lower index.
///
/// Nothing is selected where `need` is 0; everything of nonzero mass where all of it does not suffice.
/// The sum of `masses` must not exceed `u64::MAX`.
///
/// ```
/// use sample_attention::top_k::{Threshold, threshold};
/// let masses = [5, 1, 5, 9, 0];
/// assert_eq!(threshold(&masses, 14), Threshold { mass: 5, ties: 1 });
/// ```
pub fn threshold(masses: &[u64], need: u64) -> Threshold {
    if need == 0 {
        return Threshold {
            mass: u64::MAX,
            ties: 0,
        };
    }
    let everything = Threshold { mass: 0, ties: 0 };
    let heaviest = masses.iter().copied().max().unwrap_or(0);
    let mut missing = need;
    let mut prefix = 0;
    // Bits of a mass below its known prefix.
    let mut low_bits = (u64::BITS - heaviest.leading_zeros()).next_multiple_of(DIGIT_BITS);
    while low_bits > 0 {
        let known = low_bits;
        low_bits -= DIGIT_BITS;
        let mut histogram = [0u64; DIGITS];
        for &mass in masses {
            // A shift by 64 or more is the empty prefix, which all masses share.
            if mass.checked_shr(known).unwrap_or(0) == prefix {
                histogram[(mass >> low_bits) as usize % DIGITS] += mass;
            }
        }
        let chosen = (0..DIGITS).rev().find(|&digit| {
            let reached = histogram[digit] >= missing;
            if !reached {
                missing -= histogram[digit];
            }
            reached
        });
        let Some(digit) = chosen else {
            return everything;
        };
        prefix = prefix << DIGIT_BITS | digit as u64;
    }
    match prefix {
        0 => everything,
        mass => Threshold {
            mass,
            ties: missing.div_ceil(mass) as usize,
        },
    }
}

/// Calls `select` with the index of every selected candidate, ascending, and returns their mass.
pub fn select(masses: &[u64], need: u64, mut select: impl FnMut(usize)) -> u64 {
    let Threshold { mass, mut ties } = threshold(masses, need);
    let mut selected = 0;
    for (index, &candidate) in masses.iter().enumerate() {
        let tied = candidate == mass && ties > 0;
        if candidate > mass || tied {
            ties -= usize::from(tied);
            selected += candidate;
            select(index);
        }
    }
    selected
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// By definition: sort heaviest first, ties to the lower index, take until the need is reached.
    fn by_sorting(masses: &[u64], need: u64) -> Vec<usize> {
        let mut order: Vec<usize> = (0..masses.len()).filter(|&i| masses[i] > 0).collect();
        order.sort_by_key(|&index| (std::cmp::Reverse(masses[index]), index));
        let mut sum = 0;
        let mut chosen: Vec<usize> = order
            .into_iter()
            .take_while(|&index| {
                let needed = sum < need;
                sum += masses[index];
                needed
            })
            .collect();
        chosen.sort_unstable();
        chosen
    }

    fn selected(masses: &[u64], need: u64) -> Vec<usize> {
        let mut chosen = Vec::new();
        let mass = select(masses, need, |index| chosen.push(index));
        assert_eq!(mass, chosen.iter().map(|&index| masses[index]).sum::<u64>());
        chosen
    }

    proptest! {
        #[test]
        fn the_set_is_the_one_that_sorting_gives(
            masses in prop::collection::vec(prop_oneof![0u64..4, 0u64..1 << 20, 0u64..1 << 55], 0..300),
            share in 0.0f64..1.2,
        ) {
            let total: u64 = masses.iter().sum();
            let need = (total as f64 * share) as u64;
            prop_assert_eq!(selected(&masses, need), by_sorting(&masses, need));
        }
    }

    #[test]
    fn extremes_of_need_select_nothing_and_everything() {
        let masses = [3, 0, 7];
        assert_eq!(selected(&masses, 0), [] as [usize; 0]);
        assert_eq!(selected(&masses, 10), [0, 2]);
        assert_eq!(selected(&masses, u64::MAX), [0, 2]);
        assert_eq!(selected(&[], 5), [] as [usize; 0]);
        assert_eq!(selected(&[0, 0], 5), [] as [usize; 0]);
    }

    #[test]
    fn the_widest_masses_are_told_apart() {
        let masses = [u64::MAX / 2, u64::MAX / 2 - 1, 1];
        assert_eq!(selected(&masses, 1), [0]);
        assert_eq!(selected(&masses, u64::MAX - 2), [0, 1]);
        assert_eq!(selected(&masses, u64::MAX - 1), [0, 1, 2]);
    }
}
