//! Compares what the kernels wrote with the definitions.

use sample_attention_device::geometry::Unit;
use sample_attention_device::tile::scale;

use crate::case::{Case, Inputs, Sampling};
use crate::pipeline::{Budget, Outcome};
use crate::reference::{self, BLOCK, Head, ONE};

/// Log2-domain error of a normaliser: 64 products of size 16 or less, added in `f32`, and two approximate functions.
const LOG2_TOLERANCE: f64 = 1e-4;
/// Relative error of a normaliser: that of the scale in the log2 domain, and of its product.
const RELATIVE_TOLERANCE: f64 = 3e-7;
/// Keys whose share of their row is below 2 to the minus this may be off altogether: 2^-68 of the last bit of a mass.
const NOTHING_LOG2: f64 = 100.0;
/// Relative error of a mass, which is 2 to the power of the difference of two such numbers.
const MASS_TOLERANCE: f64 = 2e-4;

/// How far a number of the log2 domain may be from `x`.
fn tolerance(x: f64) -> f64 {
    LOG2_TOLERANCE + RELATIVE_TOLERANCE * x.abs()
}

/// Masses of one unit by definition, in rows.
struct Expected {
    mass: Vec<f64>,
    outside: Vec<f64>,
    covered: f64,
    rows: usize,
}

/// The sampled rows of a unit.
fn rows_of(head: &Head, unit: Unit) -> Vec<usize> {
    let positions = unit.first_block as usize * BLOCK..unit.end_block as usize * BLOCK;
    (0..head.positions.len())
        .filter(|&row| positions.contains(&head.positions[row]))
        .collect()
}

fn expected(case: &Case, budget: Budget, head: &Head, unit: Unit, candidates: usize) -> Expected {
    let rows = rows_of(head, unit);
    let mut all = vec![0.0; candidates];
    let mut outside = vec![0.0; candidates];
    let mut covered = 0.0;
    for &row in &rows {
        let query_block = head.positions[row] / BLOCK;
        for key in 0..=head.positions[row] {
            let candidate = match budget {
                Budget::Blocks => {
                    let first = unit.first_block as usize;
                    (query_block - first) * case.blocks() + key / BLOCK
                }
                Budget::Residual | Budget::Paper => key,
            };
            let share = head.share(row, key);
            all[candidate] += share;
            if key < case.sinks || key / BLOCK + case.window_blocks() > query_block {
                covered += share;
            } else {
                outside[candidate] += share;
            }
        }
    }
    Expected {
        mass: if budget == Budget::Paper {
            all
        } else {
            outside.clone()
        },
        outside,
        covered,
        rows: rows.len(),
    }
}

fn assert_mass(got: u64, want: f64, what: impl Fn() -> String) {
    let got = got as f64 / ONE;
    let error = (got - want).abs();
    assert!(
        error <= MASS_TOLERANCE * want + 1e-6,
        "{}: {got}, not {want}",
        what()
    );
}

/// What turns references into numbers of the log2 domain.
fn scale_magnitude(case: &Case) -> f64 {
    let scale_log2 = case.softmax_scale * std::f32::consts::LOG2_E;
    f64::from(scale::magnitude(scale_log2))
}

/// A row's log-sum-exp in the log2 domain.
pub fn row_lse(case: &Case, outcome: &Outcome, row: usize) -> f64 {
    let [reference, log2_sum] =
        [0, 1].map(|part| f64::from(f32::from_bits(outcome.row_lse[2 * row + part])));
    reference * scale_magnitude(case) + log2_sum
}

/// Everything that one run wrote.
pub fn check(case: &Case, budget: Budget, inputs: &Inputs, outcome: &Outcome) {
    let units = &outcome.units;
    let heads: Vec<Head> = (0..case.heads())
        .map(|head| Head::new(case, budget, inputs, head))
        .collect();
    for slot in 0..units.count {
        let unit = units.unit(slot);
        let head = &heads[unit.head as usize];
        check_sampling(case, budget, outcome, slot, head);
        let candidates = outcome.mass.len() / units.count as usize;
        let expected = expected(case, budget, head, unit, candidates);
        check_masses(case, outcome, slot, &expected);
        check_selection(case, budget, outcome, slot, &expected);
    }
    for head in 0..case.heads() {
        let lists = &outcome.lists[head];
        for (query_block, list) in lists.iter().enumerate() {
            assert!(list.is_sorted_by(|x, y| x < y), "{case:?}: {list:?}");
            let first = (query_block + 1).saturating_sub(case.window_blocks());
            let window: Vec<u32> = (first as u32..=query_block as u32).collect();
            assert!(list.ends_with(&window), "{case:?}: {list:?}");
        }
        let dense = reference::is_dense(case, lists, &outcome.stripes[head]);
        assert_eq!(
            outcome.dense[head],
            u32::from(dense),
            "{case:?}: head {head}"
        );
    }
}

fn check_sampling(case: &Case, budget: Budget, outcome: &Outcome, slot: u32, head: &Head) {
    let units = &outcome.units;
    let capacity = units.row_capacity as usize;
    let rows = rows_of(head, units.unit(slot));
    assert!(rows.len() <= capacity);
    let same_mass = |got: f64, want: f64, what: &str, rank: usize| {
        assert!(
            got == want || (got - want).abs() <= tolerance(want),
            "{case:?}: {what} of unit {slot}, rank {rank}: {got}, not {want}"
        );
    };
    for (rank, &row) in rows.iter().enumerate() {
        let lse = row_lse(case, outcome, slot as usize * capacity + rank);
        same_mass(lse, head.lse[row], "row_lse", rank);
        if budget != Budget::Blocks {
            continue;
        }
        let scores = &head.scores[row];
        let check_stats = |stats: &[u32], of_keys: &[f64], what: &str| {
            let [reference, sum] = [stats[0], stats[1]].map(|x| f64::from(f32::from_bits(x)));
            let reference = reference * scale_magnitude(case);
            let maximum = reference::maximum(of_keys);
            match case.sampling {
                Sampling::Portable => same_mass(reference, maximum, what, rank),
                Sampling::Hopper => assert!(
                    reference <= reference::maximum(scores) + tolerance(reference),
                    "{case:?}: the reference of {what} of unit {slot}, rank {rank} is {reference}"
                ),
            }
            let got = reference + sum.log2();
            let want = reference::log2_sum_exp2(of_keys);
            if want > head.lse[row] - NOTHING_LOG2 {
                same_mass(got, want, what, rank);
            } else {
                assert!(
                    got <= head.lse[row] - NOTHING_LOG2 + tolerance(head.lse[row]),
                    "{case:?}: {what} of unit {slot}, rank {rank}: {got}, not {want}"
                );
            }
        };
        for key_block in 0..=head.positions[row] / BLOCK {
            let place = (slot as usize * case.blocks() + key_block) * capacity + rank;
            let end = ((key_block + 1) * BLOCK).min(scores.len());
            let first = (key_block * BLOCK).max(case.sinks).min(end);
            let what = format!("key block {key_block}");
            check_stats(&outcome.stats[2 * place..], &scores[first..end], &what);
        }
        if case.sinks > 0 {
            let place = slot as usize * capacity + rank;
            let scores = &scores[..case.sinks.min(scores.len())];
            check_stats(&outcome.sink_stats[2 * place..], scores, "sinks");
        }
    }
}

fn of_unit<T>(all: &[T], slot: u32, count: u32) -> &[T] {
    let each = all.len() / count as usize;
    &all[slot as usize * each..][..each]
}

fn check_masses(case: &Case, outcome: &Outcome, slot: u32, expected: &Expected) {
    let count = outcome.units.count;
    let mass = of_unit(&outcome.mass, slot, count);
    for (candidate, (&got, &want)) in mass.iter().zip(&expected.mass).enumerate() {
        assert_mass(got, want, || {
            format!("{case:?}: mass of candidate {candidate} of unit {slot}")
        });
    }
    let outside = of_unit(&outcome.outside, slot, count);
    for (candidate, (&got, &want)) in outside.iter().zip(&expected.outside).enumerate() {
        assert_mass(got, want, || {
            format!("outside of candidate {candidate} of unit {slot}")
        });
    }
    let covered = of_unit(&outcome.covered, slot, count).iter().sum();
    assert_mass(covered, expected.covered, || {
        format!("covered of unit {slot}")
    });
}

/// The selected candidates of a unit.
pub fn selected(case: &Case, budget: Budget, outcome: &Outcome, slot: u32) -> Vec<usize> {
    let unit = outcome.units.unit(slot);
    if budget != Budget::Blocks {
        let stripes = &outcome.stripes[unit.head as usize];
        return stripes.iter().map(|&key| key as usize).collect();
    }
    let lists = &outcome.lists[unit.head as usize];
    (unit.first_block as usize..unit.end_block as usize)
        .flat_map(|query_block| {
            let window = (query_block + 1).min(case.window_blocks());
            let list = &lists[query_block];
            let row = (query_block - unit.first_block as usize) * case.blocks();
            list[..list.len() - window]
                .iter()
                .map(move |&block| row + block as usize)
        })
        .collect()
}

/// What a unit must reach, in fixed point.
pub fn need(case: &Case, budget: Budget, rows: usize, covered: u64) -> u64 {
    let goal = (f64::from(case.coverage) * rows as f64 * ONE).ceil() as u64;
    match budget {
        Budget::Paper => goal,
        Budget::Blocks | Budget::Residual => goal.saturating_sub(covered),
    }
}

fn check_selection(case: &Case, budget: Budget, outcome: &Outcome, slot: u32, expected: &Expected) {
    let count = outcome.units.count;
    let selected = selected(case, budget, outcome, slot);
    if budget == Budget::Blocks {
        assert!(outcome.stripes[outcome.units.unit(slot).head as usize].is_empty());
    }

    // Exactly the set that a sort of the kernels' own masses gives.
    let mass = of_unit(&outcome.mass, slot, count);
    let covered: u64 = of_unit(&outcome.covered, slot, count).iter().sum();
    let need = need(case, budget, expected.rows, covered);
    assert_eq!(
        selected,
        reference::top_k(mass, need),
        "{case:?}: unit {slot}"
    );
    let worth = match budget {
        Budget::Paper => of_unit(&outcome.outside, slot, count),
        Budget::Blocks | Budget::Residual => mass,
    };
    let kept: u64 = covered
        + selected
            .iter()
            .map(|&candidate| worth[candidate])
            .sum::<u64>();
    assert_eq!(outcome.kept[slot as usize], kept, "{case:?}: unit {slot}");

    // And as large as the exact masses ask for, give or take their error.
    let need = f64::from(case.coverage) * expected.rows as f64;
    let need = match budget {
        Budget::Paper => need,
        Budget::Blocks | Budget::Residual => need - expected.covered,
    };
    let error = 2.0 * MASS_TOLERANCE * expected.rows as f64;
    let fewest = reference::top_k(&expected.mass, need - error).len();
    let most = reference::top_k(&expected.mass, need + error).len();
    assert!(
        (fewest..=most).contains(&selected.len()),
        "{case:?}: unit {slot} selects {}, not {fewest} to {most}",
        selected.len()
    );
    let reached: f64 = selected
        .iter()
        .map(|&candidate| expected.mass[candidate])
        .sum();
    let all: f64 = expected.mass.iter().sum();
    assert!(reached + error >= need.min(all), "{case:?}: unit {slot}");
}
