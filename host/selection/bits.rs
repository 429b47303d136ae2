//! Rows of bits, 64 a word.

/// Indices of the bits that are set, ascending.
pub(super) fn set_bits(row: &[u64]) -> impl Iterator<Item = usize> {
    row.iter().enumerate().flat_map(|(at, &word)| {
        let mut left = word;
        std::iter::from_fn(move || {
            let bit = (left != 0).then(|| left.trailing_zeros() as usize)?;
            left &= left - 1;
            Some(at * 64 + bit)
        })
    })
}

pub(super) fn set_bit(row: &mut [u64], index: usize) {
    row[index / 64] |= 1 << (index % 64);
}
