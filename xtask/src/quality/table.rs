//! Measurements as a table for people and as JSON.

use std::fmt::Write;

use sample_attention::{Budget, HeadPath, Policy, Window};
use serde_json::{Value, json};

use super::attention::By;
use super::measure::{Comparison, Measurement, Reference};
use super::retrieval::{Answered, Place, share_right};

/// What the dense model does.
pub struct Dense<'a> {
    pub references: &'a [Reference<'a>],
    pub answers: Vec<Answered>,
}

/// Names of the columns, and the line under them.
pub const HEADER: &str = "\
| budget | coverage | window | row stride | tail | doubles from | sinks | fallback | cost | asked at the end | in the middle | density | row coverage | 1st percentile | KL, bits | agree | loss | dense heads | selection |
|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|";

/// What the columns mean.
pub const LEGEND: &str = "\
cost: density + 1.3 / (2 · row stride) and what the tail brings besides, dense attention being 1. asked: share of the \
questions answered right. density: share of the causal area that attention ran over, mean over layers and heads. row coverage: share of a row's \
dense attention mass that was kept, mean over layers, heads and rows; beside it the 1st percentile of the rows, mean over \
layers and heads. KL: mean divergence of the next-byte distributions from the dense model's. agree: same most likely byte. \
loss: change of the loss in bits per byte. selection: time of sampling, reduction and top-k over the time of dense attention.";

/// One line of the table: means over the stretches.
pub fn row(measurement: &Measurement<'_>) -> String {
    let settings = match &measurement.by {
        By::Dense => "dense |  |  |  |  |  |  |".to_owned(),
        By::Policy(policy) => settings(policy),
        By::Profile(_) => "profile |  |  |  |  |  |  |".to_owned(),
    };
    let asked = |share: Option<f64>| share.map_or("".to_owned(), |share| format!("{share:.3}"));
    let share = |known: Option<f64>| known.map_or("".to_owned(), |share| format!("{share:.4}"));
    format!(
        "| {settings} | {:.3} | {} | {} | {:.3} | {} | {} | {:.5} | {:.4} | {:+.2} % | {:.0} % | {:.1} % |",
        measurement.cost(),
        asked(measurement.share_right(Place::End)),
        asked(measurement.share_right(Place::Middle)),
        measurement.mean(Comparison::density),
        share(measurement.mean_known(Comparison::row_coverage)),
        share(measurement.mean_known(Comparison::row_coverage_percentile_1)),
        measurement.mean(|stretch| stretch.divergence),
        measurement.mean(|stretch| stretch.agreement),
        100.0 * measurement.mean(|stretch| stretch.loss_change),
        100.0 * measurement.mean(Comparison::dense_heads),
        100.0 * measurement.mean(|stretch| stretch.selection_cost),
    )
}

/// The columns that say what a policy is.
fn settings(policy: &Policy) -> String {
    format!(
        "{} | {} | {} | {} | {} | {} | {} | {}",
        budget(policy),
        policy.coverage,
        window(policy),
        policy.row_stride,
        tail(policy),
        doubles_from(policy).map_or("never".to_owned(), |from| from.to_string()),
        policy.sinks,
        fallback(policy),
    )
}

/// The tail as rows and stride.
fn tail(policy: &Policy) -> String {
    match policy.budget == Budget::Rows && policy.tail > 0 {
        true => format!("{}, 1 in {}", policy.tail, policy.tail_stride),
        false => "none".to_owned(),
    }
}

/// Where the row stride begins to double, if it does.
fn doubles_from(policy: &Policy) -> Option<usize> {
    (policy.budget == Budget::Blocks && policy.stride_doubles_from != usize::MAX)
        .then_some(policy.stride_doubles_from)
}

/// Density of every layer (rows) and head (columns) under one policy: means over the stretches.
pub fn heads(measurement: &Measurement<'_>) -> String {
    let mut table = String::new();
    let Some(first) = measurement.stretches.first() else {
        return table;
    };
    let layers = first.heads.last().map_or(0, |head| head.layer + 1);
    let per_layer = first.heads.len() / layers.max(1);
    let _ = write!(table, "| layer |");
    for head in 0..per_layer {
        let _ = write!(table, " head {head} |");
    }
    let _ = write!(table, "\n|---|{}", "---|".repeat(per_layer));
    for layer in 0..layers {
        let _ = write!(table, "\n| {layer} |");
        for head in layer * per_layer..(layer + 1) * per_layer {
            let density = measurement.mean(|stretch| stretch.heads[head].density);
            let _ = write!(table, " {} {density:.3} |", first.heads[head].kind);
        }
    }
    table
}

/// The whole measurement in Markdown.
pub fn markdown(dense: &Dense<'_>, measurements: &[Measurement<'_>]) -> String {
    let mut text = String::from("| offset | bytes | dense loss, bits per byte |\n|---|---|---|\n");
    for reference in dense.references {
        let stretch = &reference.stretch;
        let _ = writeln!(
            text,
            "| {} | {} | {:.4} |",
            stretch.offset,
            stretch.bytes.len(),
            reference.loss
        );
    }
    for place in Place::ALL {
        if let Some(share) = share_right(&dense.answers, place) {
            let place = place.name();
            let _ = writeln!(text, "\nAsked, {place}: {share:.3} right, dense.");
        }
    }
    let _ = writeln!(text, "\n{HEADER}");
    for measurement in measurements {
        let _ = writeln!(text, "{}", row(measurement));
    }
    let _ = writeln!(text, "\n{LEGEND}");
    if let [measurement] = measurements {
        let _ = writeln!(text, "\nDensity of each head:\n\n{}", heads(measurement));
    }
    text
}

/// The whole measurement, every stretch and head by itself.
pub fn json(dense: &Dense<'_>, measurements: &[Measurement<'_>]) -> Value {
    let stretches: Vec<Value> = dense
        .references
        .iter()
        .map(|reference| {
            json!({
                "offset": reference.stretch.offset,
                "bytes": reference.stretch.bytes.len(),
                "loss": reference.loss,
                "attention_seconds": reference.attention_time.as_secs_f64(),
            })
        })
        .collect();
    let measured: Vec<Value> = measurements
        .iter()
        .map(|measurement| {
            let mut value = match &measurement.by {
                By::Policy(policy) => policy_json(policy),
                by => json!({ "budget": by.name() }),
            };
            value["cost"] = json!(measurement.cost());
            value["asked_at_the_end"] = json!(measurement.share_right(Place::End));
            value["asked_in_the_middle"] = json!(measurement.share_right(Place::Middle));
            let stretches: Vec<Value> = measurement.stretches.iter().map(comparison).collect();
            value["stretches"] = json!(stretches);
            value
        })
        .collect();
    json!({
        "dense": stretches,
        "dense_asked_at_the_end": share_right(&dense.answers, Place::End),
        "dense_asked_in_the_middle": share_right(&dense.answers, Place::Middle),
        "policies": measured,
    })
}

fn policy_json(policy: &Policy) -> Value {
    json!({
        "budget": budget(policy),
        "coverage": policy.coverage,
        "window": window(policy),
        "row_stride": policy.row_stride,
        "tail": policy.tail,
        "tail_stride": policy.tail_stride,
        "stride_doubles_from": doubles_from(policy),
        "sinks": policy.sinks,
        "fallback": fallback(policy),
    })
}

fn comparison(stretch: &Comparison) -> Value {
    let heads: Vec<Value> = stretch
        .heads
        .iter()
        .map(|head| {
            let rows = head.row_coverage.as_ref();
            json!({
                "layer": head.layer,
                "kind": head.kind,
                "sparse": head.path == HeadPath::Sparse,
                "density": head.density,
                "row_coverage": rows.map(|rows| rows.mean),
                "row_coverage_percentile_1": rows.map(|rows| rows.percentile_1),
                "row_coverage_min": rows.map(|rows| rows.min),
            })
        })
        .collect();
    json!({
        "offset": stretch.offset,
        "density": stretch.density(),
        "row_coverage": stretch.row_coverage(),
        "divergence_bits": stretch.divergence,
        "agreement": stretch.agreement,
        "loss": stretch.loss,
        "loss_change": stretch.loss_change,
        "selection_cost": stretch.selection_cost,
        "heads": heads,
    })
}

fn budget(policy: &Policy) -> &'static str {
    policy.budget.name()
}

fn fallback(policy: &Policy) -> &'static str {
    policy.fallback.name()
}

fn window(policy: &Policy) -> String {
    match policy.window {
        Window::Tokens(tokens) => tokens.to_string(),
        Window::Ratio(ratio) => format!("{} %", 100.0 * ratio),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quality::attention::Head;
    use crate::quality::retrieval::Answered;

    fn measurement(divergences: &[f64]) -> Measurement<'static> {
        let head = |layer, density| Head {
            layer,
            kind: "paper",
            path: HeadPath::Sparse,
            density,
            row_coverage: None,
        };
        let stretches = divergences
            .iter()
            .map(|&divergence| Comparison {
                offset: 0,
                divergence,
                agreement: 0.5,
                loss: 1.0,
                loss_change: -0.25,
                selection_cost: 0.125,
                cost: 0.658,
                heads: vec![head(0, 0.25), head(0, 0.5), head(1, 0.75), head(1, 1.0)],
            })
            .collect();
        Measurement {
            by: By::Policy(Policy::paper()),
            stretches,
            answers: vec![Answered {
                place: Place::End,
                right: 9,
                asked: 12,
            }],
        }
    }

    #[test]
    fn a_row_shows_means_in_as_many_columns_as_the_header_names() {
        let row = row(&measurement(&[0.25, 0.75]));
        let columns = |line: &str| line.matches('|').count();
        assert!(
            HEADER.lines().all(|line| columns(line) == columns(&row)),
            "{row}"
        );
        assert!(
            row.starts_with(
                "| paper | 0.95 | 8 % | 20 | none | never | 16 | auto | 0.658 | 0.750 |  | 0.625 |"
            ),
            "{row}"
        );
        assert!(
            row.contains("| 0.50000 | 0.5000 | -25.00 % | 0 % | 12.5 % |"),
            "{row}"
        );
    }

    #[test]
    fn heads_are_shown_by_layer() {
        let table = heads(&measurement(&[0.0]));
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines[0], "| layer | head 0 | head 1 |");
        assert_eq!(lines[3], "| 1 | paper 0.750 | paper 1.000 |");
    }
}
