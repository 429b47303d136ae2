//! The table on stdout.

use std::fmt::Write;
use std::time::Duration;

use sample_attention::{Budget, Fallback, HeadPath, HeadReport, Policy, Stage, Window};

use crate::Asked;
use crate::args::Backend;
use crate::compute::{Comparison, Outcome};
use crate::input::Input;

/// Heads beyond these are in the report file only.
const MAX_HEADS: usize = 32;

/// The whole table.
pub fn table(asked: &Asked<'_>, outcome: &Outcome) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = heading(&mut text, asked, outcome);
    let _ = stages(&mut text, asked, outcome);
    let _ = heads(&mut text, asked, outcome);
    text
}

/// What selecting cost one head by its arithmetic, dense attention being 1; nothing where nothing was selected.
pub fn sampling_cost(asked: &Asked<'_>, head: &HeadReport) -> f64 {
    match head.path {
        HeadPath::BelowBreakEven | HeadPath::Dense => 0.0,
        _ => {
            let policy = asked.treatment.head(head.q_head);
            policy.sampling_cost(asked.input.problem())
        }
    }
}

/// Mean over heads of the area and what selecting cost.
pub fn mean_cost(asked: &Asked<'_>, outcome: &Outcome) -> f64 {
    let heads = &outcome.report.heads;
    let costs = heads
        .iter()
        .map(|head| head.density + sampling_cost(asked, head));
    costs.sum::<f64>() / heads.len() as f64
}

fn heading(text: &mut String, asked: &Asked<'_>, outcome: &Outcome) -> std::fmt::Result {
    let (request, input) = (asked.request, asked.input);
    let problem = input.problem();
    let layer = input
        .note("layer")
        .map_or(String::new(), |layer| format!(", layer {layer}"));
    writeln!(text, "input    {}{layer}", input.title)?;
    writeln!(
        text,
        "shape    batch {}, {} on {}, {} queries, {} keys, head_dim {}, {}",
        problem.batch,
        counted(problem.q_heads, "query head"),
        counted(problem.kv_heads, "key/value head"),
        problem.q_len,
        problem.k_len,
        problem.head_dim,
        problem.dtype,
    )?;
    writeln!(text, "policy   {}", asked.treatment.in_words())?;
    let paper = Policy::paper();
    let is_other = |policy: &Policy| policy.budget == Budget::Paper && *policy != paper;
    if asked.treatment.policy().is_some_and(is_other) {
        writeln!(
            text,
            "         (not the paper's own policy, which --paper gives: {})",
            policy_text(&paper)
        )?;
    }
    write!(
        text,
        "backend  {}, {}",
        request.backend.name(),
        outcome.instruction_set
    )?;
    match request.backend {
        Backend::Cuda { .. } => writeln!(text),
        Backend::Cpu | Backend::Emulator => {
            writeln!(text, ", {}", counted(outcome.threads, "thread"))
        }
    }
}

/// The policy in words.
pub fn policy_text(policy: &Policy) -> String {
    let budget = policy.budget.name();
    let window = match policy.window {
        Window::Tokens(tokens) => counted(tokens, "token"),
        Window::Ratio(ratio) => format!("{} % of the keys", ratio * 100.0),
    };
    let fallback = match policy.fallback {
        Fallback::Auto => "dense where that is faster",
        Fallback::Never => "never dense",
        other => other.name(),
    };
    let doubles = match (policy.budget, policy.stride_doubles_from) {
        (Budget::Rows, _) if policy.tail > 0 => {
            format!(" ({} of the last {})", policy.tail_stride, policy.tail)
        }
        (Budget::Blocks, from) if from != usize::MAX => format!(" (fewer from {from} on)"),
        _ => String::new(),
    };
    format!(
        "budget {budget}, coverage {}, window {window}, {}, 1 row in {}{doubles} sampled, {fallback}",
        policy.coverage,
        counted(policy.sinks, "sink"),
        policy.row_stride,
    )
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn stages(text: &mut String, asked: &Asked<'_>, outcome: &Outcome) -> std::fmt::Result {
    let times = &outcome.report.times;
    let total = times.total();
    writeln!(text, "\nstage              time   share")?;
    for stage in Stage::ALL {
        let time = times.get(stage);
        let share = time.as_secs_f64() / total.as_secs_f64().max(f64::MIN_POSITIVE);
        writeln!(
            text,
            "{:13}{:>10}  {:>4.0} %",
            stage.name(),
            duration(time),
            100.0 * share
        )?;
    }
    let whole = if asked.request.dense {
        "all stages"
    } else {
        "SampleAttention"
    };
    match &outcome.comparison {
        None => writeln!(
            text,
            "{whole:16}{:>7}         {}",
            duration(total),
            outcome.measured
        ),
        Some(Comparison { dense, .. }) => {
            let speed_up = dense.as_secs_f64() / total.as_secs_f64().max(f64::MIN_POSITIVE);
            writeln!(text, "{whole:16}{:>7}", duration(total))?;
            writeln!(text, "dense attention {:>7}", duration(*dense))?;
            writeln!(
                text,
                "speed-up{:>12.2} x         {}",
                speed_up, outcome.measured
            )
        }
    }
}

/// Three significant digits.
pub fn duration(time: Duration) -> String {
    let (value, unit) = match time.as_secs_f64() {
        s if s >= 0.9995 => (s, "s "),
        s => (1e3 * s, "ms"),
    };
    let decimals = match value {
        v if v >= 99.95 => 0,
        v if v >= 9.995 => 1,
        v if v >= 0.9995 => 2,
        _ => 3,
    };
    format!("{value:.decimals$} {unit}")
}

fn heads(text: &mut String, asked: &Asked<'_>, outcome: &Outcome) -> std::fmt::Result {
    let input = asked.input;
    let problem = input.problem();
    let compared = outcome.comparison.as_ref();
    write!(
        text,
        "\nhead   kind      path      density     cost   blocks kept  stripes   coverage: sampled"
    )?;
    if compared.is_some() {
        write!(text, "    true: mean      p1     min   error of O")?;
    }
    writeln!(text)?;
    let blocks = blocks_of(problem.q_len, problem.k_len);
    for (head, report) in outcome.report.heads.iter().take(MAX_HEADS).enumerate() {
        let name = input.head_name(report.q_head);
        let name = if problem.batch > 1 {
            format!("{}.{name}", report.batch)
        } else {
            name
        };
        let dense = report.path != HeadPath::Sparse;
        let (kept, stripes) = if dense {
            (blocks, 0)
        } else {
            (report.blocks_kept, report.stripes)
        };
        write!(
            text,
            "{name:5}  {:8}  {:8}{:>8} {:>8} {:>13} {:>8} {:>19}",
            asked.treatment.head(report.q_head).kind(),
            path_name(report.path),
            percent(report.density),
            format!("{:.3}", report.density + sampling_cost(asked, report)),
            format!("{kept}/{blocks}"),
            stripes,
            report.sampled_coverage.map_or("-".to_owned(), percent),
        )?;
        if let Some(comparison) = compared {
            let coverage = &comparison.coverage[head];
            write!(
                text,
                "{:>14}{:>8}{:>8} {:>12.4}",
                percent(coverage.mean),
                percent(coverage.percentile_1),
                percent(coverage.min),
                comparison.head_errors[head],
            )?;
        }
        writeln!(text)?;
    }
    let more = outcome.report.heads.len().saturating_sub(MAX_HEADS);
    if more > 0 {
        writeln!(
            text,
            "... and {} (--report writes them all)",
            counted(more, "more head")
        )?;
    }
    write!(
        text,
        "all    mean              {:>8} {:>8}",
        percent(outcome.report.mean_density()),
        format!("{:.3}", mean_cost(asked, outcome)),
    )?;
    if let Some(comparison) = compared {
        let count = comparison.coverage.len() as f64;
        let mean = comparison.coverage.iter().map(|c| c.mean).sum::<f64>() / count;
        let worst = comparison
            .coverage
            .iter()
            .map(|c| c.min)
            .fold(1.0, f64::min);
        write!(
            text,
            "{:>57}{:>16} {:>12.4}",
            percent(mean),
            percent(worst),
            comparison.error
        )?;
    }
    writeln!(text)?;
    legend(text, input, outcome)?;
    write!(
        text,
        "density: share of the causal (query, key) pairs that attention ran over. cost: density and what selecting\ncosts by its arithmetic, 1.3 / (2 x row stride), dense attention being 1. coverage: share of the attention\nmass that those pairs hold, of the sampled rows as the selection saw it"
    )?;
    match compared {
        Some(_) => writeln!(
            text,
            ", and of every row as dense attention has it\n(mean, 1st percentile, minimum). error of O: |O - O dense| / |O dense|."
        ),
        None => writeln!(
            text,
            ". --compare-dense adds the true coverage and the error of O."
        ),
    }
}

/// What the words of the table mean; of the paths, those that it has.
fn legend(text: &mut String, input: &Input, outcome: &Outcome) -> std::fmt::Result {
    writeln!(text)?;
    for (path, meaning) in [
        (HeadPath::Sparse, "attention over what was selected"),
        (HeadPath::Dense, "attention over everything, as asked for"),
        (
            HeadPath::BelowBreakEven,
            "too short an input for a selection to pay, so dense; --fallback never selects nevertheless",
        ),
        (
            HeadPath::Fallback,
            "what was selected would have cost more than dense, so dense; --fallback never runs it nevertheless",
        ),
    ] {
        if outcome.report.heads.iter().any(|head| head.path == path) {
            writeln!(text, "{}: {meaning}.", path_name(path))?;
        }
    }
    let block = sample_attention::BLOCK;
    writeln!(
        text,
        "blocks kept: blocks of {block} queries x {block} keys that attention ran over, of all {} that causality leaves.\nstripes: single keys that all later queries keep besides.",
        blocks_of(input.problem().q_len, input.problem().k_len),
    )
}

/// Causal pairs of a query block that holds a query and a key block.
pub fn blocks_of(q_len: usize, k_len: usize) -> usize {
    let block = sample_attention::BLOCK;
    let first = k_len.saturating_sub(q_len) / block;
    (first..k_len.div_ceil(block))
        .map(|query_block| query_block + 1)
        .sum()
}

/// How a head ran, in a word.
pub fn path_name(path: HeadPath) -> &'static str {
    match path {
        HeadPath::Sparse => "sparse",
        HeadPath::Dense => "dense",
        HeadPath::BelowBreakEven => "short",
        HeadPath::Fallback => "fallback",
        _ => "other",
    }
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}
