//! The one test runner: a [`Case`] says what to compute, a [`Backend`] computes it, and [`check`] judges the result by the
//! oracle.
//!
//! ```text
//! check(backend, case):
//!     inputs from the case's seed, in the case's layout; NaN in every gap and before and after every buffer
//!     outputs full of a NaN that no computation makes, gaps and red zones too
//!     run
//!     every output element written, nothing else touched
//!     the selection: window, sinks and own blocks kept; masses as the oracle's; the set exactly the smallest by the
//!         backend's own masses, and reaching the need by the oracle's
//!     O and LSE: the oracle's over the mask that the backend selected
//!     the report: counts and density of that mask, coverage as the oracle's
//! ```

mod attention_checks;
mod backend;
mod buffers;
mod case;
mod cpu;
mod cuda;
mod emulator;
mod gpu_kernels;
mod outcome;
mod poison;
mod report_checks;
mod row_checks;
mod selection_checks;
mod shared_checks;

pub use backend::{Backend, Found, UnitFound};
pub use buffers::{Buffer, Layout};
pub use case::{Attend, Case, Data, PUBLISHED_SHAPES};
pub use cpu::Cpu;
pub use cuda::Cuda;
pub use emulator::Emulator;
pub use outcome::Outcome;
pub use poison::{
    assert_dropped_poison_is_not_seen, assert_poison_stays_where_it_is_seen,
    assert_what_a_policy_drops_may_be_poisoned, loose_lists, poison_key, row_bits,
};

use sample_attention::{Inputs, Outputs, Result};

use crate::oracle::Mask;
use crate::tensor::Qkv;

/// Runs a case on its own inputs and checks everything about it.
///
/// # Panics
/// With the worst element and the case, when anything is wrong.
pub fn check(backend: &dyn Backend, case: &Case) -> Outcome {
    check_with(backend, case, &case.inputs())
}

/// Checks all cases that the backend has kernels for, and says how many it has none for.
///
/// # Panics
/// As [`check`], and when no case is left.
pub fn check_all(backend: &dyn Backend, cases: impl IntoIterator<Item = Case>) {
    let (supported, others): (Vec<Case>, Vec<Case>) = cases
        .into_iter()
        .partition(|case| backend.supports(&case.problem));
    if !others.is_empty() {
        eprintln!(
            "{} has no kernel for {} cases",
            backend.name(),
            others.len()
        );
    }
    assert!(!supported.is_empty(), "{} supports no case", backend.name());
    for case in &supported {
        check(backend, case);
    }
}

/// As [`check`], on other inputs.
///
/// # Panics
/// As [`check`].
pub fn check_with(backend: &dyn Backend, case: &Case, qkv: &Qkv) -> Outcome {
    let outcome = run_with(backend, case, qkv);
    selection_checks::check(case, qkv, &outcome);
    attention_checks::check(backend, case, qkv, &outcome);
    report_checks::check(backend, case, qkv, &outcome);
    outcome
}

/// As [`check_with`], for sequences whose masses would take the oracle too long: the normalisers of a sample of the rows, the
/// sum of the masses, the set by the backend's own masses, and O and LSE of the rows that the case names.
///
/// # Panics
/// As [`check`].
pub fn check_long(backend: &dyn Backend, case: &Case, qkv: &Qkv) -> Outcome {
    let outcome = run_with(backend, case, qkv);
    selection_checks::check_long(case, qkv, &outcome);
    attention_checks::check(backend, case, qkv, &outcome);
    outcome
}

/// Runs a case without judging the result, apart from what it may write.
///
/// # Panics
/// When the backend fails, writes outside its outputs, or leaves an element unwritten.
pub fn run_with(backend: &dyn Backend, case: &Case, qkv: &Qkv) -> Outcome {
    try_run(backend, case, qkv)
        .unwrap_or_else(|error| panic!("{} refused: {error}\n{case:#?}", backend.name()))
}

/// As [`run_with`], where an error is expected: it must have written nothing.
///
/// # Errors
/// The backend's.
///
/// # Panics
/// As [`run_with`].
pub fn try_run(backend: &dyn Backend, case: &Case, qkv: &Qkv) -> Result<Outcome> {
    let problem = &case.problem;
    let q = Buffer::of_input(&qkv.q, case.layout, problem.dtype);
    let k = Buffer::of_input(&qkv.k, case.layout, problem.dtype);
    let v = Buffer::of_input(&qkv.v, case.layout, problem.dtype);
    let mut o = Buffer::of_output(problem.q_shape(), case.layout, case.output);
    let mut lse = Buffer::of_output(
        [1, 1, 1, problem.lse_len()],
        Layout::Bhsd,
        sample_attention::Dtype::F32,
    );
    let inputs = Inputs::new(q.view(), k.view(), v.view());
    let outputs = Outputs::new(o.view_mut()).with_lse(lse.elements_mut());
    let found = backend.run(problem, &case.attend, &inputs, outputs);
    let context = || format!("{}\n{case:#?}", backend.name());
    o.assert_only_elements_written("o", found.is_ok(), context);
    lse.assert_only_elements_written("lse", found.is_ok(), context);
    let found = found?;
    Ok(Outcome {
        o: o.tensor(),
        lse: lse.tensor().values,
        mask: match (&case.attend, &found.selection) {
            (_, Some(selection)) | (Attend::Own(selection), None) => Mask::of(problem, selection),
            (Attend::Dense | Attend::Policy(_), None) => Mask::Dense,
        },
        found,
    })
}
