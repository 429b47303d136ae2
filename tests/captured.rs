//! Attention of a real model: two heads of a layer that is easily sparse, and two of one that is not.

use std::path::{Path, PathBuf};

use sample_attention::{Budget, Fallback, Policy};
use testkit::capture::Capture;
use testkit::runner::{Attend, Case, Cpu, Data, Layout, Outcome, check_with, run_with};
use testkit::tensor::{Qkv, relative_error};

fn easily_sparse() -> (Case, Qkv) {
    Case::of_capture(&Capture::carried())
}

/// Not in the repository: `SAMPLE_ATTENTION_LM` names its directory, or it lies beside the repository.
fn hard_to_make_sparse() -> Option<(Case, Qkv)> {
    let directory = match std::env::var_os("SAMPLE_ATTENTION_LM") {
        Some(directory) => PathBuf::from(directory),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/lm"),
    };
    let path = directory.join("qkv-layer5-4096.safetensors");
    if path.exists() {
        return Some(Case::captured(&path));
    }
    eprintln!(
        "\n*** SKIPPED: no {}. Set SAMPLE_ATTENTION_LM to the directory that has it. ***\n",
        path.display()
    );
    None
}

fn with(case: &Case, policy: Policy) -> Case {
    Case {
        attend: Attend::Policy(policy),
        ..case.clone()
    }
}

fn densities(outcome: &Outcome) -> Vec<f64> {
    let report = outcome.found.report.as_ref().expect("the CPU reports");
    report.heads.iter().map(|head| head.density).collect()
}

/// Every budget is what the definition says, and the closer to dense the more coverage is asked for;
/// at coverage 0.99 O is off by at most `largest_error`, relative.
fn check_capture((case, qkv): (Case, Qkv), largest_error: f64) {
    let backend = Cpu::default();
    let dense = check_with(&backend, &case, &qkv);
    for budget in [
        Budget::Rows,
        Budget::Blocks,
        Budget::Residual,
        Budget::Paper,
    ] {
        let base = Policy::of(budget);
        let mut errors = Vec::new();
        for coverage in [0.80, 0.95, 0.99] {
            let policy = base.with_coverage(coverage);
            let outcome = run_with(&backend, &with(&case, policy), &qkv);
            errors.push(relative_error(&outcome.o.values, &dense.o.values));
            let report = outcome.found.report.as_ref().expect("the CPU reports");
            for head in &report.heads {
                let reached = head.sampled_coverage.expect("rows were sampled");
                assert!(
                    reached >= f64::from(coverage) - 1e-6,
                    "{budget:?}: {reached} of {coverage}"
                );
            }
        }
        assert!(errors.is_sorted_by(|a, b| a >= b), "{budget:?}: {errors:?}");
        assert!(errors[2] < largest_error, "{budget:?}: {errors:?}");
        check_with(
            &backend,
            &with(
                &case,
                base.with_budget(budget).with_fallback(Fallback::Never),
            ),
            &qkv,
        );
    }
}

#[test]
fn the_easily_sparse_layer_is_attended_to_as_defined() {
    check_capture(easily_sparse(), 0.1);
}

#[test]
fn the_layer_that_is_hard_to_make_sparse_is_attended_to_as_defined() {
    if let Some(capture) = hard_to_make_sparse() {
        check_capture(capture, 0.2);
    }
}

#[test]
fn the_easily_sparse_layer_is_sparse_and_stays_close_to_dense() {
    let (case, qkv) = easily_sparse();
    let backend = Cpu {
        coverage: true,
        ..Cpu::default()
    };
    let dense = run_with(&backend, &case, &qkv);
    let outcome = run_with(&backend, &with(&case, Policy::default()), &qkv);
    assert!(
        densities(&outcome).iter().all(|&density| density < 0.35),
        "{:?}",
        densities(&outcome)
    );
    let error = relative_error(&outcome.o.values, &dense.o.values);
    assert!(error < 0.1, "{error}");
    for head in outcome.found.coverage.expect("asked for") {
        assert!(
            head.mean > 0.95 && head.min <= head.percentile_1 && head.percentile_1 <= head.mean,
            "{head:?}"
        );
    }
    for head in dense.found.coverage.expect("asked for") {
        assert!(head.min > 0.999_99, "{head:?}");
    }
}

#[test]
fn the_layout_of_a_capture_does_not_change_a_bit() {
    let (case, qkv) = easily_sparse();
    let case = with(&case, Policy::default());
    let expected = run_with(&Cpu::default(), &case, &qkv);
    let sliced = Case {
        layout: Layout::Sliced,
        data: Data::Normal,
        ..case
    };
    let outcome = run_with(
        &Cpu {
            threads: 1,
            ..Cpu::default()
        },
        &sliced,
        &qkv,
    );
    assert_eq!(outcome.bits(), expected.bits());
    assert_eq!(outcome.found.units, expected.found.units);
}
