//! One row of attention over several sets of keys.

/// Merges attention over other keys into O and its natural log-sum-exp. Of no keys (−∞) nothing is taken, and what is NaN stays.
pub(super) fn merge((o, lse): (&mut [f32], &mut f32), (part, part_lse): (&[f32], f32)) {
    if part_lse == f32::NEG_INFINITY {
        return;
    }
    if *lse == f32::NEG_INFINITY {
        o.copy_from_slice(part);
        *lse = part_lse;
        return;
    }
    let (own, other) = (f64::from(*lse), f64::from(part_lse));
    let max = own.max(other);
    let (own, other) = ((own - max).exp(), (other - max).exp());
    let sum = own + other;
    for (o, &part) in o.iter_mut().zip(part) {
        *o = ((own * f64::from(*o) + other * f64::from(part)) / sum) as f32;
    }
    *lse = (max + sum.ln()) as f32;
}
