//! NaN and infinities in keys: where they must not matter, and where they must.

use super::{Backend, Case, Outcome, run_with};
use crate::tensor::Qkv;

/// Fills a key and its value in every head.
pub fn poison_key(qkv: &mut Qkv, key: usize, poison: f32) {
    for batch in 0..qkv.k.shape[0] {
        for head in 0..qkv.k.shape[1] {
            qkv.k.row_mut(batch, head, key).fill(poison);
            qkv.v.row_mut(batch, head, key).fill(poison);
        }
    }
}

/// O and LSE of one row of the first sequence.
pub fn row_bits(outcome: &Outcome, head: usize, row: usize) -> Vec<u32> {
    let [_, _, q_len, _] = outcome.o.shape;
    let o = outcome.o.row(0, head, row).iter().map(|x| x.to_bits());
    o.chain([outcome.lse[head * q_len + row].to_bits()])
        .collect()
}

/// Poisons `keys`; rows that keep none of them must not change a bit, the others must see it. For one sequence, and a mask
/// that does not depend on the keys.
///
/// # Panics
/// Where a row does otherwise, and when all rows are of one kind.
pub fn assert_poison_stays_where_it_is_seen(
    backend: &dyn Backend,
    case: &Case,
    keys: &[usize],
    poison: f32,
) {
    let clean = run_with(backend, case, &case.inputs());
    let mut qkv = case.inputs();
    keys.iter()
        .for_each(|&key| poison_key(&mut qkv, key, poison));
    let poisoned = run_with(backend, case, &qkv);
    let problem = &case.problem;
    let (mut seeing, mut unseeing) = (0, 0);
    for head in 0..problem.q_heads {
        for row in 0..problem.q_len {
            let context = || format!("row {row} of head {head}, {}\n{case:?}", backend.name());
            if keys
                .iter()
                .any(|&key| clean.mask.keeps(problem, head, row, key))
            {
                seeing += 1;
                let o = poisoned.o.row(0, head, row);
                assert!(
                    o.iter().all(|x| x.is_nan()),
                    "{poison} is hidden: {o:?}\n{}",
                    context()
                );
            } else {
                unseeing += 1;
                assert_eq!(
                    row_bits(&clean, head, row),
                    row_bits(&poisoned, head, row),
                    "a dropped key's {poison} is seen\n{}",
                    context()
                );
            }
        }
    }
    assert!(
        seeing > 0 && unseeing > 0,
        "the test tests nothing: {seeing} {unseeing}"
    );
}
