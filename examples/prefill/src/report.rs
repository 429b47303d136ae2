//! The JSON report: the table's numbers, for programs.

use std::io::Write;
use std::time::Duration;

use sample_attention::{HeadPath, HeadPolicy, Policy, Problem, Stage, Window};
use serde_json::{Map, Value, json};

use crate::Asked;
use crate::compute::{Measured, Outcome};
use crate::failure::Failure;
use crate::input::Input;
use crate::table::{blocks_of, mean_cost, path_name, sampling_cost};
use crate::treatment::Treatment;

/// Writes the report. Times are in milliseconds; a head's `blocks_kept` and `stripes` are what attention ran over, and
/// `selected` is what the policy had chosen, which is not the same where the head ran dense.
pub fn write(to: &mut dyn Write, asked: &Asked<'_>, outcome: &Outcome) -> Result<(), Failure> {
    let (request, input) = (asked.request, asked.input);
    let mut document = json!({
        "input": problem(input),
        "backend": request.backend.name(),
        "instruction_set": outcome.instruction_set,
        "threads": outcome.threads,
        "policy": policy(asked.treatment.policy()),
        "profile": profile(asked.treatment),
        "times_ms": times(outcome),
        "measured": outcome.measured.to_string(),
        "runs": match outcome.measured {
            Measured::Once => 1,
            Measured::Median(runs) => runs,
        },
        "mean_density": outcome.report.mean_density(),
        "key_ranges": outcome.report.key_ranges,
        "mean_cost": mean_cost(asked, outcome),
        "heads": heads(asked, outcome),
    });
    if let Some(comparison) = &outcome.comparison {
        let total = outcome.report.times.total();
        document["dense_ms"] = json!(milliseconds(comparison.dense));
        document["speed_up"] =
            json!(comparison.dense.as_secs_f64() / total.as_secs_f64().max(f64::MIN_POSITIVE));
        document["relative_error"] = json!(comparison.error);
    }
    serde_json::to_writer_pretty(&mut *to, &document).map_err(Failure::new)?;
    writeln!(to).map_err(Failure::new)
}

fn problem(input: &Input) -> Value {
    let problem = input.problem();
    let mut fields = Map::from_iter([
        ("source".to_owned(), json!(input.title)),
        ("warnings".to_owned(), json!(input.warnings)),
        ("metadata".to_owned(), json!(input.capture.metadata)),
    ]);
    fields.append(&mut sizes(problem));
    Value::Object(fields)
}

/// The fields of a problem.
pub fn sizes(problem: &Problem) -> Map<String, Value> {
    let fields = [
        ("batch", json!(problem.batch)),
        ("q_heads", json!(problem.q_heads)),
        ("kv_heads", json!(problem.kv_heads)),
        ("q_len", json!(problem.q_len)),
        ("k_len", json!(problem.k_len)),
        ("head_dim", json!(problem.head_dim)),
        ("softmax_scale", json!(problem.softmax_scale)),
        ("causal", json!(problem.causal)),
        ("dtype", json!(problem.dtype.to_string())),
    ];
    Map::from_iter(fields.map(|(name, value)| (name.to_owned(), value)))
}

/// The fields of a policy; null for none.
pub fn policy(policy: Option<&Policy>) -> Value {
    policy.map_or(Value::Null, |policy| Value::Object(policy_fields(policy)))
}

/// Where each head's policy comes from; null where all have the same.
fn profile(treatment: &Treatment) -> Value {
    match treatment {
        Treatment::Each(layer) => json!({
            "file": layer.file,
            "model": layer.model,
            "layer": layer.layer,
            "layers": layer.layers,
        }),
        Treatment::Dense | Treatment::Alike(_) => Value::Null,
    }
}

fn window_field(fields: &mut Map<String, Value>, window: Window) {
    match window {
        Window::Tokens(tokens) => fields.insert("window".to_owned(), json!(tokens)),
        Window::Ratio(ratio) => fields.insert("window_ratio".to_owned(), json!(ratio)),
    };
}

/// What is asked for of one head.
fn head_policy(policy: &HeadPolicy) -> Value {
    let mut fields = match policy {
        HeadPolicy::Selected(policy) => policy_fields(policy),
        _ => Map::new(),
    };
    if let HeadPolicy::Local { window, sinks } = policy {
        window_field(&mut fields, *window);
        fields.insert("sinks".to_owned(), json!(sinks));
    }
    fields.insert("kind".to_owned(), json!(policy.kind()));
    Value::Object(fields)
}

fn policy_fields(policy: &Policy) -> Map<String, Value> {
    let mut fields = Map::new();
    let budget = policy.budget.name();
    let fallback = policy.fallback.name();
    fields.insert("budget".to_owned(), json!(budget));
    fields.insert("fallback".to_owned(), json!(fallback));
    fields.insert("coverage".to_owned(), json!(policy.coverage));
    fields.insert("row_stride".to_owned(), json!(policy.row_stride));
    // `usize::MAX` is a number that few readers of JSON have.
    let doubles_from = Some(policy.stride_doubles_from).filter(|&from| from != usize::MAX);
    fields.insert("stride_doubles_from".to_owned(), json!(doubles_from));
    fields.insert("tail".to_owned(), json!(policy.tail));
    fields.insert("tail_stride".to_owned(), json!(policy.tail_stride));
    fields.insert("sinks".to_owned(), json!(policy.sinks));
    window_field(&mut fields, policy.window);
    fields
}

fn times(outcome: &Outcome) -> Value {
    let times = &outcome.report.times;
    let mut fields: Map<String, Value> = Stage::ALL
        .into_iter()
        .map(|stage| {
            (
                stage.name().to_owned(),
                json!(milliseconds(times.get(stage))),
            )
        })
        .collect();
    fields.insert("total".to_owned(), json!(milliseconds(times.total())));
    Value::Object(fields)
}

fn heads(asked: &Asked<'_>, outcome: &Outcome) -> Vec<Value> {
    let input = asked.input;
    let problem = input.problem();
    let blocks = blocks_of(problem.q_len, problem.k_len);
    outcome
        .report
        .heads
        .iter()
        .enumerate()
        .map(|(at, head)| {
            let dense = head.path != HeadPath::Sparse;
            let mut value = json!({
                "batch": head.batch,
                "q_head": head.q_head,
                "name": input.head_name(head.q_head),
                "policy": head_policy(&asked.treatment.head(head.q_head)),
                "path": path_name(head.path),
                "sampling_cost": sampling_cost(asked, head),
                "cost": head.density + sampling_cost(asked, head),
                "density": head.density,
                "blocks": blocks,
                "blocks_kept": if dense { blocks } else { head.blocks_kept },
                "stripes": if dense { 0 } else { head.stripes },
                "selected": { "blocks": head.blocks_kept, "stripes": head.stripes },
                "sampled_coverage": head.sampled_coverage,
                "non_finite_rows": head.non_finite_rows,
                "least_covered_row": head.least_covered_row.map(|least| json!({
                    "row": least.row,
                    "coverage": least.coverage,
                })),
                "last_row_coverage": head.last_row_coverage,
            });
            if let Some(comparison) = &outcome.comparison {
                let coverage = &comparison.coverage[at];
                value["true_coverage"] = json!({
                    "mean": coverage.mean,
                    "percentile_1": coverage.percentile_1,
                    "min": coverage.min,
                });
                value["relative_error"] = json!(comparison.head_errors[at]);
            }
            value
        })
        .collect()
}

fn milliseconds(time: Duration) -> f64 {
    1e3 * time.as_secs_f64()
}
