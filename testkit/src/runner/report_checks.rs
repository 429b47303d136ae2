//! What a run reports, against counts and masses of the oracle.

use sample_attention::{Budget, Coverage, Fallback, HeadPath, HeadReport, Policy, Problem};

use super::shared_checks::MASS_ONE;
use super::{Attend, Backend, Case, Outcome, row_checks};
use crate::oracle::{self, HeadMask, Mask};
use crate::tensor::Qkv;

/// Report and true coverage, where there are any.
pub(super) fn check(backend: &dyn Backend, case: &Case, qkv: &Qkv, outcome: &Outcome) {
    let problem = &case.problem;
    let heads = problem.batch * problem.q_heads;
    if let Some(report) = &outcome.found.report {
        assert_eq!(report.heads.len(), heads, "{case:#?}");
        for (head, report) in report.heads.iter().enumerate() {
            assert_eq!(
                report.batch * problem.q_heads + report.q_head,
                head,
                "{case:#?}"
            );
            let density = outcome.mask.density(problem, head);
            assert!(
                (report.density - density).abs() < 1e-12,
                "density of head {head}: reported {}, counted {density}\n{case:#?}",
                report.density
            );
            assert_eq!(
                report.path,
                expected_path(backend, case, outcome, head),
                "path of head {head}\n{case:#?}"
            );
            if let (Attend::Policy(policy), Mask::Heads(masks)) = (&case.attend, &outcome.mask) {
                check_counts(problem, report, &masks[head], case);
                check_sampled_coverage(policy, report, (head, qkv), (&masks[head], outcome), case);
                check_rows(policy, report, (head, qkv), &masks[head], case);
            } else {
                assert_eq!((report.stripes, report.blocks_kept), (0, 0), "{case:#?}");
                assert_eq!(report.sampled_coverage, None, "{case:#?}");
            }
        }
    }
    if let Some(coverage) = &outcome.found.coverage {
        assert_eq!(coverage.len(), heads, "{case:#?}");
        for (head, coverage) in coverage.iter().enumerate() {
            check_true_coverage(case, qkv, outcome, head, coverage);
        }
    }
}

fn expected_path(backend: &dyn Backend, case: &Case, outcome: &Outcome, head: usize) -> HeadPath {
    let Attend::Policy(policy) = &case.attend else {
        return HeadPath::Dense;
    };
    let short = case.problem.k_len < backend.break_even_tokens();
    assert!(
        policy.fallback == Fallback::Auto || !matches!(outcome.mask, Mask::Dense),
        "nothing was selected\n{case:#?}"
    );
    match (policy.fallback, &outcome.mask) {
        // A backend may have other reasons to attend to everything than the number of keys.
        (Fallback::Auto, Mask::Dense) => HeadPath::BelowBreakEven,
        (Fallback::Auto, _) if short => HeadPath::BelowBreakEven,
        (Fallback::Auto, Mask::Heads(heads)) if heads[head].dense => HeadPath::Fallback,
        _ => HeadPath::Sparse,
    }
}

fn check_counts(problem: &Problem, report: &HeadReport, mask: &HeadMask, case: &Case) {
    let stripes = mask.stripes.iter().filter(|&&kept| kept).count();
    assert_eq!(report.stripes, stripes, "stripes\n{case:#?}");
    let first = problem.k_len.saturating_sub(problem.q_len) / 128;
    let blocks = mask.blocks[first..]
        .iter()
        .flatten()
        .filter(|&&kept| kept)
        .count();
    assert_eq!(report.blocks_kept, blocks, "blocks kept\n{case:#?}");
}

/// Covered mass plus the selected candidates' mass beyond window and sinks, over the sampled rows.
fn check_sampled_coverage(
    policy: &Policy,
    report: &HeadReport,
    (head, qkv): (usize, &Qkv),
    (mask, outcome): (&HeadMask, &Outcome),
    case: &Case,
) {
    let problem = &case.problem;
    let own = |batch: usize, q_head: usize| batch * problem.q_heads + q_head == head;
    let units: Vec<_> = outcome
        .found
        .units
        .iter()
        .filter(|unit| own(unit.batch, unit.q_head))
        .collect();
    let oracle_units: Vec<_> = match policy.budget {
        // The backend's own masses tell it all, and were compared with the oracle's.
        Budget::Rows | Budget::Blocks | Budget::Residual => Vec::new(),
        Budget::Paper => oracle::units(problem, policy, qkv)
            .into_iter()
            .filter(|unit| own(unit.batch, unit.q_head))
            .collect(),
        other => unimplemented!("{other:?}"),
    };
    let rows: usize = units.iter().map(|unit| unit.rows).sum();
    let kept: f64 = units
        .iter()
        .enumerate()
        .map(|(index, unit)| {
            let beyond = |candidate: usize| match oracle_units.get(index) {
                Some(oracle) => oracle.beyond[candidate],
                None => unit.mass[candidate] as f64 / MASS_ONE,
            };
            let chosen = oracle::smallest_set(&unit.mass, unit.need);
            unit.covered as f64 / MASS_ONE + chosen.into_iter().map(beyond).sum::<f64>()
        })
        .sum();
    let expected = match policy.budget {
        Budget::Rows => row_checks::sampled_coverage(problem, policy, (qkv, head), mask),
        _ => (rows > 0).then(|| kept / rows as f64),
    };
    match (report.sampled_coverage, expected) {
        (None, None) => {}
        (Some(got), Some(expected)) if (got - expected).abs() < 1e-4 && got < 1.0 + 1e-5 => {}
        (got, expected) => {
            panic!("sampled coverage of head {head}: {got:?}, expected {expected:?}\n{case:#?}")
        }
    }
}

/// How many sampled rows are not finite, and which of the others keeps the least.
fn check_rows(
    policy: &Policy,
    report: &HeadReport,
    (head, qkv): (usize, &Qkv),
    mask: &HeadMask,
    case: &Case,
) {
    let problem = &case.problem;
    let Some(non_finite) = report.non_finite_rows else {
        return;
    };
    // The report is of the selection, also where the head runs dense.
    let selected = HeadMask {
        dense: false,
        ..mask.clone()
    };
    let heads = vec![selected; problem.batch * problem.q_heads];
    let selection = Mask::Heads(heads);
    let sampled = oracle::sampled_rows(problem, policy, head);
    let shares: Vec<(usize, f64)> = sampled
        .iter()
        .map(|&row| (row, oracle::normaliser(problem, qkv, head, row)))
        .filter(|(_, normaliser)| normaliser.is_finite())
        .map(|(row, normaliser)| {
            let kept = selection.kept_keys(problem, head, row);
            let kept = oracle::attention_row(problem, qkv, head, row, &kept).lse;
            (row, (kept - normaliser).exp())
        })
        .collect();
    assert_eq!(
        non_finite,
        sampled.len() - shares.len(),
        "rows that are not finite, of head {head}\n{case:#?}"
    );
    if !matches!(policy.budget, Budget::Rows | Budget::Blocks) {
        assert_eq!(report.least_covered_row, None, "{case:#?}");
        return;
    }
    let close = |got: f64, expected: f64| (got - expected).abs() < 1e-4 && got <= 1.0;
    let least = shares.iter().map(|row| row.1).reduce(f64::min);
    match (report.least_covered_row, least) {
        (None, None) => {}
        (Some(found), Some(least)) => {
            let of_row = shares.iter().find(|share| share.0 == found.row);
            let right = of_row.is_some_and(|of_row| close(found.coverage, of_row.1));
            assert!(
                right && close(found.coverage, least),
                "least covered row of head {head}: {found:?}, which keeps {of_row:?}, the least is {least}\n{case:#?}"
            );
        }
        (found, least) => panic!("head {head}: {found:?}, expected {least:?}\n{case:#?}"),
    }
    let last = shares.iter().find(|share| share.0 + 1 == problem.q_len);
    match (report.last_row_coverage, last) {
        (None, None) => {}
        (Some(found), Some(&(_, last))) if close(found, last) => {}
        (found, last) => panic!("last row of head {head}: {found:?}, expected {last:?}\n{case:#?}"),
    }
}

/// Mean, 1st percentile and minimum over the rows that see something of exp(kept LSE − dense LSE).
fn check_true_coverage(case: &Case, qkv: &Qkv, outcome: &Outcome, head: usize, found: &Coverage) {
    let problem = &case.problem;
    assert_eq!(found.batch * problem.q_heads + found.q_head, head);
    let mut shares: Vec<f64> = (0..problem.q_len)
        .filter(|&row| oracle::sees(problem, row, 0))
        .map(|row| {
            let kept = outcome.mask.kept_keys(problem, head, row);
            let kept = oracle::attention_row(problem, qkv, head, row, &kept).lse;
            // Nothing kept is known to be nothing.
            let known = kept.abs() <= 16384.0 || kept == f64::NEG_INFINITY;
            let share = (kept - oracle::normaliser(problem, qkv, head, row)).exp();
            if known { share } else { f64::NAN }
        })
        .collect();
    let rows = shares.len();
    shares.retain(|share| !share.is_nan());
    shares.sort_by(f64::total_cmp);
    assert_eq!(found.unknown_rows, rows - shares.len(), "{case:#?}");
    let expected = if shares.is_empty() {
        [if rows == 0 { 1.0 } else { f64::NAN }; 3]
    } else {
        let mean = shares.iter().sum::<f64>() / shares.len() as f64;
        // At least 99 % of the rows reach it.
        [mean, shares[shares.len() / 100], shares[0]]
    };
    let got = [found.mean, found.percentile_1, found.min];
    let agrees = got.iter().zip(expected).all(|(got, expected)| {
        (got - expected).abs() < 1e-4 || (got.is_nan() && expected.is_nan())
    });
    assert!(
        agrees,
        "true coverage of head {head}: {got:?}, expected {expected:?}\n{case:#?}"
    );
}
