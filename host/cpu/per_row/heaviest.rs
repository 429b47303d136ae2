//! The smallest set of one row's candidates that reaches a needed mass, by a select that halves what is undecided.
//!
//! A radix select, as [`crate::top_k`] has it, takes thousands of steps whatever the number of candidates; a row has some tens or
//! hundreds.

/// A key block with its mass in one integer: heavier candidates are larger, and among equal ones the lower block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Candidate(u64);

/// Bits of the block. A mass takes the 33 others: at most [`MASS_ONE`](crate::cpu::MASS_ONE).
const BLOCK_BITS: u32 = 31;
const BLOCK_MASK: u64 = (1 << BLOCK_BITS) - 1;

impl Candidate {
    pub(super) fn new(mass: u64, block: usize) -> Self {
        debug_assert!(mass < 1 << (u64::BITS - BLOCK_BITS) && block as u64 <= BLOCK_MASK);
        Candidate(mass << BLOCK_BITS | (BLOCK_MASK - block as u64))
    }

    pub(super) fn packed(self) -> u64 {
        self.0
    }

    pub(super) fn of_packed(packed: u64) -> Self {
        Candidate(packed)
    }

    fn mass(self) -> u64 {
        self.0 >> BLOCK_BITS
    }

    pub(super) fn block(self) -> usize {
        (BLOCK_MASK - (self.0 & BLOCK_MASK)) as usize
    }
}

/// Brings the smallest set of packed [`Candidate`]s whose mass reaches `need`, which is not 0, to the front, and returns how many they
/// are: all where all do not suffice.
pub(super) fn heaviest(candidates: &mut [u64], need: u64) -> usize {
    let mut missing = need;
    // Candidates before `start` are in, those from `end` on are out.
    let (mut start, mut end) = (0, candidates.len());
    while end - start > 1 {
        let middle = (end - start) / 2;
        let undecided = &mut candidates[start..end];
        undecided.select_nth_unstable_by(middle, |a, b| b.cmp(a));
        let heavier = undecided[..middle].iter();
        let mass: u64 = heavier.map(|&packed| Candidate(packed).mass()).sum();
        if mass >= missing {
            end = start + middle;
        } else {
            missing -= mass;
            start += middle;
        }
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::top_k;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_set_is_that_of_the_radix_select(
            masses in prop::collection::vec(prop_oneof![1u64..4, 1u64..1 << 20, 1u64..=1 << 32], 0..300),
            share in 0.0f64..1.2,
        ) {
            let total: u64 = masses.iter().sum();
            let need = ((total as f64 * share) as u64).max(1);
            let mut expected = Vec::new();
            top_k::select(&masses, need, |index| expected.push(index));

            let mut packed: Vec<u64> = masses
                .iter()
                .enumerate()
                .map(|(block, &mass)| Candidate::new(mass, block).packed())
                .collect();
            let len = heaviest(&mut packed, need);
            let mut chosen: Vec<usize> =
                packed[..len].iter().map(|&packed| Candidate::of_packed(packed).block()).collect();
            chosen.sort_unstable();
            prop_assert_eq!(chosen, expected);
        }
    }
}
