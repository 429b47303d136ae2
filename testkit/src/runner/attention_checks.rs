//! O and LSE against the oracle.

use sample_attention::Dtype;

use super::{Backend, Case, Outcome};
use crate::oracle::{self, Row};
use crate::tensor::{Qkv, round, rounding_error};

/// f32's unit roundoff, relative.
const EPSILON: f64 = 1.0 / (1u64 << 24) as f64;

/// How far f32 arithmetic may take a scaled score: products and sums of head_dim terms, whose errors add up like a random
/// walk, and the roundings of scale and log2(e).
pub(super) fn score_error(head_dim: usize, score_magnitude: f64) -> f64 {
    EPSILON * (8.0 + 2.0 * (head_dim as f64).sqrt()) * score_magnitude
}

/// How far an f32 sum of `terms` weights may go, relative: roundings add up like a random walk, for kernels sum up tiles by themselves.
/// (Weights added one by one to what many thousands before them have become would all be rounded alike, and miss this.)
fn sum_error(terms: usize) -> f64 {
    EPSILON * (8.0 + 2.0 * (terms as f64).sqrt())
}

/// How far f32 arithmetic may take a probability, relative: numerator and normaliser, exp2's 3e-7 each, and a sum over
/// the kept keys.
fn probability_error(row: &Row, head_dim: usize) -> f64 {
    2.0 * (score_error(head_dim, row.score_magnitude) + 3e-7 + sum_error(row.kept))
}

/// The worst of many comparisons.
struct Worst<'a> {
    case: &'a Case,
    backend: String,
    ratio: f64,
    message: String,
}

impl Worst<'_> {
    /// Fails at once where one is finite and the other is not.
    fn compare(&mut self, what: &str, place: &[usize], got: f64, expected: f64, tolerance: f64) {
        let error = (got - expected).abs();
        let agrees = match (expected.is_finite(), got.is_finite()) {
            (true, true) => true,
            // Of infinite inputs f32 may make NaN where f64 still has infinity: 0·∞.
            (false, false) => got == expected || got.is_nan(),
            _ => false,
        };
        let ratio = match (agrees, error.is_finite()) {
            (false, _) => f64::INFINITY,
            (true, true) => error / tolerance,
            (true, false) => 0.0,
        };
        if ratio > self.ratio {
            self.ratio = ratio;
            self.message = format!(
                "{what} at {place:?}: got {got:e}, expected {expected:e}, off by {error:.3e}, allowed {tolerance:.3e}"
            );
        }
    }

    fn assert_within(&self) {
        assert!(
            self.ratio <= 1.0,
            "{}\n{}\n{:#?}",
            self.message,
            self.backend,
            self.case
        );
    }
}

/// O and LSE of the checked rows.
///
/// A backend that keeps f32 is held to bounds derived from f32 rounding, plus the rounding of the output. For 16-bit
/// inputs the published rule holds besides: the largest error is at most twice that of a 16-bit reference, plus 1e-5.
pub(super) fn check(backend: &dyn Backend, case: &Case, qkv: &Qkv, outcome: &Outcome) {
    let problem = &case.problem;
    let rows = oracle::attention(problem, qkv, &outcome.mask, case.row_step);
    let mut worst = Worst {
        case,
        backend: backend.name(),
        ratio: 0.0,
        message: String::new(),
    };
    let place = |row: &Row| {
        [
            row.head / problem.q_heads,
            row.head % problem.q_heads,
            row.row,
        ]
    };
    for row in &rows {
        let [batch, head, token] = place(row);
        let lse = f64::from(outcome.lse[row.head * problem.q_len + token]);
        let tolerance = probability_error(row, problem.head_dim) + 4.0 * EPSILON * row.lse.abs();
        worst.compare("lse", &[batch, head, token], lse, row.lse, tolerance);
        let relative = probability_error(row, problem.head_dim);
        for (d, &got) in outcome.o.row(batch, head, token).iter().enumerate() {
            let mut tolerance = relative * row.o_magnitude[d] + f64::from(f32::MIN_POSITIVE);
            if case.output != Dtype::F32 {
                tolerance += 1.01 * rounding_error(case.output, row.o[d]);
            }
            if backend.keeps_f32() || !row.o[d].is_finite() {
                worst.compare(
                    "o",
                    &[batch, head, token, d],
                    got.into(),
                    row.o[d],
                    tolerance,
                );
            }
        }
    }
    worst.assert_within();
    if problem.dtype != Dtype::F32 {
        check_published_rule(&mut worst, &rows, outcome);
    }
}

fn check_published_rule(worst: &mut Worst<'_>, rows: &[Row], outcome: &Outcome) {
    let problem = &worst.case.problem;
    let low_precision = |row: &Row, d: usize| {
        row.o_low_precision
            .each_ref()
            .map(|o| round(worst.case.output, o[d]))
    };
    let reference_error = rows
        .iter()
        .flat_map(|row| (0..row.o.len()).map(move |d| (row, d)))
        .flat_map(|(row, d)| low_precision(row, d).map(|o| (o - row.o[d]).abs()))
        .filter(|error| error.is_finite())
        .fold(0.0, f64::max);
    let tolerance = 2.0 * reference_error + 1e-5;
    for row in rows {
        let (batch, head) = (row.head / problem.q_heads, row.head % problem.q_heads);
        for (d, &got) in outcome.o.row(batch, head, row.row).iter().enumerate() {
            let place = [batch, head, row.row, d];
            worst.compare("o (16-bit rule)", &place, got.into(), row.o[d], tolerance);
        }
    }
    worst.assert_within();
}
