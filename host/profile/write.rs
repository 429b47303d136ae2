//! From a profile to the text: a line for each head.

use std::fmt::Write;

use serde_json::json;

use super::{Budget, FORMAT, Fallback, HeadPolicy, Policy, Profile, VERSION, Window, unstated};

pub(super) fn profile(profile: &Profile) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write!(
        text,
        "{{\n  \"format\": {},\n  \"version\": {VERSION},\n  \"model\": {},\n  \"layers\": {},\n  \"q_heads\": {},\n  \"calibration\": {},\n  \"heads\": [\n",
        json!(FORMAT),
        json!(profile.model),
        profile.layers(),
        profile.q_heads,
        profile
            .calibration
            .as_ref()
            .map_or("null".to_owned(), |calibration| {
                format!(
                    "{{\"texts\": {}, \"lengths\": {}, \"price\": {}}}",
                    json!(calibration.texts),
                    json!(calibration.lengths),
                    json!(calibration.price)
                )
            }),
    );
    let layers: Vec<String> = profile
        .heads
        .iter()
        .map(|heads| {
            let heads: Vec<String> = heads
                .iter()
                .map(|head| format!("      {}", of_head(head)))
                .collect();
            format!("    [\n{}\n    ]", heads.join(",\n"))
        })
        .collect();
    let _ = write!(text, "{}\n  ]\n}}\n", layers.join(",\n"));
    text
}

fn of_head(head: &HeadPolicy) -> String {
    let kind = format!("{{\"kind\": \"{}\"", head.kind());
    match head {
        HeadPolicy::Dense => kind + "}",
        HeadPolicy::Local { window, sinks } => {
            format!("{kind}, {}, \"sinks\": {sinks}}}", of_window(*window))
        }
        HeadPolicy::Selected(policy) => format!("{kind}{}}}", parameters(policy)),
    }
}

fn of_window(window: Window) -> String {
    match window {
        Window::Tokens(tokens) => format!("\"window\": {tokens}"),
        Window::Ratio(ratio) => format!("\"window_ratio\": {}", of_f32(ratio)),
    }
}

/// The shortest digits that give the same f32. A policy in range is finite.
fn of_f32(number: f32) -> String {
    format!("{number}")
}

fn parameters(policy: &Policy) -> String {
    let default = unstated();
    let mut text = format!(
        ", \"coverage\": {}, \"row_stride\": {}, {}, \"sinks\": {}",
        of_f32(policy.coverage),
        policy.row_stride,
        of_window(policy.window),
        policy.sinks
    );
    let mut unless_default = |name: &str, value: usize, default: usize| {
        if value != default {
            let _ = write!(text, ", \"{name}\": {value}");
        }
    };
    match policy.budget {
        Budget::Rows => {
            unless_default("row_offset", policy.row_offset, default.row_offset);
            unless_default("tail", policy.tail, default.tail);
            unless_default("tail_stride", policy.tail_stride, default.tail_stride);
        }
        Budget::Blocks => unless_default(
            "stride_doubles_from",
            policy.stride_doubles_from,
            default.stride_doubles_from,
        ),
        Budget::Residual | Budget::Paper => {}
    }
    if policy.fallback != Fallback::Auto {
        let _ = write!(text, ", \"fallback\": \"{}\"", policy.fallback.name());
    }
    text
}
