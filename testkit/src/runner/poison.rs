//! NaN and infinities in keys: where they must not matter, and where they must.

use sample_attention::{Fallback, Policy, Problem, Selection};

use super::{Attend, Backend, Case, Data, Outcome, run_with};
use crate::random::Random;
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

/// Poisons `keys`; rows that keep none of them must not change a bit. For one sequence, and a mask that does not depend on the keys.
/// Gives the outcome, and head and row of those that keep one.
///
/// # Panics
/// Where a row does otherwise.
pub fn assert_dropped_poison_is_not_seen(
    backend: &dyn Backend,
    case: &Case,
    keys: &[usize],
    poison: f32,
) -> (Outcome, Vec<(usize, usize)>) {
    let clean = run_with(backend, case, &case.inputs());
    let mut qkv = case.inputs();
    keys.iter()
        .for_each(|&key| poison_key(&mut qkv, key, poison));
    let poisoned = run_with(backend, case, &qkv);
    let problem = &case.problem;
    let mut seeing = Vec::new();
    for head in 0..problem.q_heads {
        for row in 0..problem.q_len {
            let keeps = |&key: &usize| clean.mask.keeps(problem, head, row, key);
            if keys.iter().any(keeps) {
                seeing.push((head, row));
            } else {
                assert_eq!(
                    row_bits(&clean, head, row),
                    row_bits(&poisoned, head, row),
                    "a dropped key's {poison} is seen\nrow {row} of head {head}, {}\n{case:?}",
                    backend.name()
                );
            }
        }
    }
    (poisoned, seeing)
}

/// As [`assert_dropped_poison_is_not_seen`], and the rows that keep a poisoned key must see it.
///
/// # Panics
/// Where a row does otherwise, and when all rows are of one kind.
pub fn assert_poison_stays_where_it_is_seen(
    backend: &dyn Backend,
    case: &Case,
    keys: &[usize],
    poison: f32,
) {
    let (poisoned, seeing) = assert_dropped_poison_is_not_seen(backend, case, keys, poison);
    for &(head, row) in &seeing {
        let o = poisoned.o.row(0, head, row);
        assert!(
            o.iter().all(|x| x.is_nan()),
            "{poison} is hidden: {o:?}\nrow {row} of head {head}, {}\n{case:?}",
            backend.name()
        );
    }
    let unseeing = case.problem.q_heads * case.problem.q_len - seeing.len();
    assert!(
        !seeing.is_empty() && unseeing > 0,
        "the test tests nothing: {} {unseeing}",
        seeing.len()
    );
}

/// Sinks and random stripes for both heads of a problem with 250 keys or more, and keys that are neither: their own block alone
/// keeps them.
///
/// # Panics
/// Where the problem is too small.
pub fn loose_lists(problem: Problem, random: &mut Random) -> (Case, Vec<usize>) {
    let mut selection = Selection::new(&problem).expect("a valid problem");
    selection.set_sinks(3);
    for head in 0..2 {
        let stripes = (0..problem.k_len as u32).filter(|_| random.chance(0.05));
        let stripes: Vec<u32> = stripes.collect();
        let set = selection.set_stripes(0, head, &stripes);
        set.expect("stripes of the problem");
        if !problem.causal {
            let set = selection.set_blocks(0, head, 1, &[1]);
            set.expect("blocks of the problem");
        }
    }
    let lists = [0, 1].map(|head| selection.head(0, head).stripes().to_vec());
    let loose = (130..250)
        .filter(|key| lists.iter().all(|stripes| !stripes.contains(key)))
        .map(|key| key as usize);
    let keys = loose.take(20).collect();
    (Case::new(problem, Attend::Own(selection)), keys)
}

/// What a policy drops of a problem of 1600 tokens may be poisoned when its selection is attended to again.
///
/// # Panics
/// Where the backend does otherwise.
pub fn assert_what_a_policy_drops_may_be_poisoned(
    backend: &dyn Backend,
    problem: Problem,
    fallback: Fallback,
) {
    let policy = Policy::of(sample_attention::Budget::Blocks)
        .with_coverage(0.7)
        .with_fallback(fallback);
    let case = Case {
        data: Data::Structured,
        ..Case::new(problem, Attend::Policy(policy))
    };
    let clean = run_with(backend, &case, &case.inputs());
    let selection = clean.found.selection.clone();
    let again = Case {
        attend: Attend::Own(selection.expect("long enough to select")),
        ..case
    };
    let given = run_with(backend, &again, &again.inputs());
    assert_eq!(given.bits(), clean.bits());
    assert_poison_stays_where_it_is_seen(backend, &again, &[200, 201, 640, 1111], f32::NAN);
}
