//! What a policy selected: masses against the oracle's, the set against the definition.

use sample_attention::{Budget, Policy, Problem};

use super::attention_checks::score_error;
use super::shared_checks::{MASS_ONE, check_window_and_sinks, relative_error, window_and_sinks};
use super::{Attend, Case, Outcome, UnitFound, row_checks};
use crate::oracle::{self, HeadMask, Mask, Unit};
use crate::tensor::Qkv;

/// Everything about the selection of a policy; nothing for other cases.
pub(super) fn check(case: &Case, qkv: &Qkv, outcome: &Outcome) {
    let (Attend::Policy(policy), Mask::Heads(heads)) = (&case.attend, &outcome.mask) else {
        return;
    };
    let problem = &case.problem;
    let context = || format!("{case:#?}");
    check_sampled_rows(problem, policy, qkv, outcome, &context);
    if policy.budget == Budget::Rows {
        for (head, mask) in heads.iter().enumerate() {
            row_checks::check_lists(problem, policy, (qkv, head), 1, mask, &context);
        }
        return;
    }
    let oracle_units = oracle::units(problem, policy, qkv);
    if !outcome.found.units.is_empty() {
        assert_eq!(
            outcome.found.units.len(),
            oracle_units.len(),
            "units\n{}",
            context()
        );
        for (found, oracle) in outcome.found.units.iter().zip(&oracle_units) {
            check_masses(problem, found, oracle, &context);
            check_reached(problem, policy, found, oracle, &context);
        }
    }
    check_all_lists(problem, policy, heads, outcome, &context);
}

/// As [`check`], but of the masses only their sum, to which every sampled row brings a whole, and the need that it leaves; and for
/// the budget of rows only some query blocks.
pub(super) fn check_long(case: &Case, qkv: &Qkv, outcome: &Outcome) {
    let (Attend::Policy(policy), Mask::Heads(heads)) = (&case.attend, &outcome.mask) else {
        return;
    };
    let problem = &case.problem;
    let context = || format!("{case:#?}");
    check_sampled_rows(problem, policy, qkv, outcome, &context);
    if policy.budget == Budget::Rows {
        for (head, mask) in heads.iter().enumerate() {
            row_checks::check_lists(problem, policy, (qkv, head), 9, mask, &context);
        }
        return;
    }
    for unit in &outcome.found.units {
        // The paper's masses hold what window and sinks cover as well.
        let covered = match policy.budget {
            Budget::Paper => 0,
            Budget::Blocks | Budget::Residual => unit.covered,
            other => unimplemented!("{other:?}"),
        };
        let all = (unit.mass.iter().sum::<u64>() + covered) as f64 / MASS_ONE;
        let rows = unit.rows as f64;
        // Scores have the magnitude of a log-sum-exp, some tens; their errors average out over rows and keys.
        let relative = relative_error(problem, 20.0);
        let tolerance = rows * relative + 4.0 * (unit.mass.len() as f64 + 1.0) / MASS_ONE;
        let (batch, head, block) = (unit.batch, unit.q_head, unit.first_query_block);
        assert!(
            (all - rows).abs() <= tolerance,
            "the masses of unit {:?} add up to {all}, not to its {rows} rows, allowed {tolerance:e}\n{}",
            (batch, head, block),
            context()
        );
        let need = (f64::from(policy.coverage) * rows - covered as f64 / MASS_ONE).max(0.0);
        let given = unit.need as f64 / MASS_ONE;
        assert!(
            (given - need).abs() <= 1e-6 * rows,
            "the need of unit {:?} is {given}, not {need}\n{}",
            (batch, head, block),
            context()
        );
    }
    check_all_lists(problem, policy, heads, outcome, &context);
}

fn check_all_lists(
    problem: &Problem,
    policy: &Policy,
    heads: &[HeadMask],
    outcome: &Outcome,
    context: &dyn Fn() -> String,
) {
    for (head, mask) in heads.iter().enumerate() {
        let units = outcome
            .found
            .units
            .iter()
            .filter(|unit| unit.batch * problem.q_heads + unit.q_head == head);
        check_lists(problem, policy, mask, units, context);
    }
}

/// Exactly the rows of the definition, each with its normaliser.
fn check_sampled_rows(
    problem: &Problem,
    policy: &Policy,
    qkv: &Qkv,
    outcome: &Outcome,
    context: &dyn Fn() -> String,
) {
    let found = &outcome.found.sampled;
    if found.is_empty() {
        return;
    }
    for head in 0..problem.batch * problem.q_heads {
        let own = found
            .iter()
            .filter(|row| row.batch * problem.q_heads + row.q_head == head);
        let rows = oracle::sampled_rows(problem, policy, head);
        let listed: Vec<usize> = own.clone().map(|row| row.row).collect();
        assert_eq!(listed, rows, "sampled rows of head {head}\n{}", context());
        // All normalisers of long problems would take the oracle as long as the masses do.
        for row in own.step_by(1 + rows.len() / 64) {
            let expected = oracle::normaliser(problem, qkv, head, row.row);
            let tolerance =
                1e-5 + 1e-6 * expected.abs() + score_error(problem.head_dim, expected.abs() + 50.0);
            let error = (row.lse - expected).abs();
            assert!(
                error <= tolerance
                    || row.lse == expected
                    || (expected.is_nan() && row.lse.is_nan()),
                "normaliser of {row:?}: expected {expected}, allowed {tolerance:e}\n{}",
                context()
            );
        }
    }
}

/// By how many units a candidate may be off: it adds up the shares of at most eight rows (of a query block, at the default row stride) and
/// perhaps the head's last, or of as many lanes, each rounded down to a unit.
const CANDIDATE_ROUNDINGS: f64 = 9.0;

/// Masses, covered mass and need, in units of one row's mass.
fn check_masses(problem: &Problem, found: &UnitFound, oracle: &Unit, context: &dyn Fn() -> String) {
    let place = (found.batch, found.q_head, found.first_query_block);
    assert_eq!(
        (place, found.rows),
        (
            (oracle.batch, oracle.q_head, oracle.first_query_block),
            oracle.rows
        ),
        "unit and its sampled rows\n{}",
        context()
    );
    let relative = relative_error(problem, oracle.score_magnitude);
    let compare = |what: &str, got: u64, expected: f64, roundings: f64| {
        let tolerance = relative * (expected + roundings / MASS_ONE) + roundings / MASS_ONE;
        let got = got as f64 / MASS_ONE;
        assert!(
            (got - expected).abs() <= tolerance,
            "{what} of unit {place:?}: got {got}, expected {expected}, allowed {tolerance:e}\n{}",
            context()
        );
    };
    for (index, &mass) in found.mass.iter().enumerate() {
        let expected = oracle.mass.get(index).copied().unwrap_or(0.0);
        compare(
            &format!("mass of candidate {index}"),
            mass,
            expected,
            CANDIDATE_ROUNDINGS,
        );
    }
    assert!(
        found.mass.len() >= oracle.mass.len(),
        "candidates missing\n{}",
        context()
    );
    // Every candidate that window or sinks cover was rounded down by itself.
    let roundings = 2.0 * found.mass.len() as f64 + 2.0;
    compare("covered mass", found.covered, oracle.covered, roundings);
    let uncertainty = 2.0 * oracle.covered * MASS_ONE * relative;
    compare("need", found.need, oracle.need, roundings + uncertainty);
}

/// By the oracle's masses too, the backend's set reaches the need and would not without its lightest member.
fn check_reached(
    problem: &Problem,
    policy: &Policy,
    found: &UnitFound,
    oracle: &Unit,
    context: &dyn Fn() -> String,
) {
    let chosen = oracle::smallest_set(&found.mass, found.need);
    let reached: f64 = chosen.iter().map(|&index| oracle.mass[index]).sum();
    let all: f64 = oracle.mass.iter().sum();
    let lightest = chosen
        .iter()
        .map(|&index| oracle.mass[index])
        .fold(f64::INFINITY, f64::min);
    let slack = relative_error(problem, oracle.score_magnitude) * (oracle.rows as f64 + 1.0)
        + 4.0 * found.mass.len() as f64 / MASS_ONE;
    let place = (oracle.batch, oracle.q_head, oracle.first_query_block);
    assert!(
        reached >= oracle.need.min(all) - slack,
        "unit {place:?}: reached {reached} of {} ({} of coverage {})\n{}",
        oracle.need,
        all,
        policy.coverage,
        context()
    );
    if !chosen.is_empty() {
        assert!(
            reached - lightest <= oracle.need + slack,
            "unit {place:?}: {} candidates reach {reached}, more than {} by more than the lightest, {lightest}\n{}",
            chosen.len(),
            oracle.need,
            context()
        );
    }
}

/// The lists are window, sinks, and exactly the smallest sets by the backend's own masses.
fn check_lists<'a>(
    problem: &Problem,
    policy: &Policy,
    mask: &HeadMask,
    units: impl Iterator<Item = &'a UnitFound>,
    context: &dyn Fn() -> String,
) {
    let mut expected = window_and_sinks(problem, policy, mask.dense);
    let mut units = units.peekable();
    if units.peek().is_none() {
        // A backend that does not tell its masses, as none does for the budget of rows.
        check_window_and_sinks(problem, policy, mask, context);
        return;
    }
    for unit in units {
        for index in oracle::smallest_set(&unit.mass, unit.need) {
            match policy.budget {
                Budget::Blocks => {
                    let query_block = unit.first_query_block + index / unit.candidates_per_row;
                    expected.blocks[query_block][index % unit.candidates_per_row] = true;
                }
                Budget::Rows => unreachable!("rows tell no masses"),
                Budget::Residual | Budget::Paper => expected.stripes[index] = true,
                other => unimplemented!("{other:?}"),
            }
        }
    }
    assert!(
        *mask == expected,
        "the lists are not the smallest set by the backend's own masses:\n{mask:?}\nexpected\n{expected:?}\n{}",
        context()
    );
}
