//! Inputs and references that tests share.

#![allow(dead_code, reason = "each test binary uses its part")]

/// `len` numbers in [-1, 1) as `bf16` bits.
pub fn random_bf16(len: usize, seed: u64) -> Vec<u16> {
    let mut state = seed;
    let mut next = || {
        state = state
            .wrapping_mul(0x5851_f42d_4c95_7f2d)
            .wrapping_add(0x1405_7b7e_f767_814f);
        (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    };
    (0..len)
        .map(|_| half::bf16::from_f32(next()).to_bits())
        .collect()
}

/// Checks row-major C [m, n] against A [m, k] · B [k, n] in `f64`.
pub fn assert_matmul(c: &[f32], a: &[u16], b: &[u16], [m, n, k]: [usize; 3]) {
    let wide = |bits: u16| half::bf16::from_bits(bits).to_f64();
    for row in 0..m {
        for column in 0..n {
            let terms = (0..k).map(|i| wide(a[row * k + i]) * wide(b[i * n + column]));
            let want: f64 = terms.clone().sum();
            // k roundings to f32 of sums no greater than that of the magnitudes.
            let bound = terms.map(f64::abs).sum::<f64>() * k as f64 * f64::from(f32::EPSILON);
            let got = f64::from(c[row * n + column]);
            assert!(
                (got - want).abs() <= bound,
                "C[{row}, {column}] is {got}, not {want} (± {bound:e})"
            );
        }
    }
}
