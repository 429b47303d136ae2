//! The table on stdout.

use std::fmt::Write;
use std::time::Duration;

use sample_attention::squeeze::{Denominator, Keep};

use crate::args::{Request, Target};
use crate::compute::{Outcome, RUNS, Times};
use crate::input::Input;

/// The whole table.
pub fn table(request: &Request, input: &Input, outcome: &Outcome) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = heading(&mut text, request, input, outcome);
    let _ = heads(&mut text, input, outcome);
    let _ = times(&mut text, input, outcome);
    text
}

fn heading(
    text: &mut String,
    request: &Request,
    input: &Input,
    outcome: &Outcome,
) -> std::fmt::Result {
    let problem = input.whole();
    let index = &outcome.index;
    writeln!(text, "input    {}", input.title)?;
    writeln!(
        text,
        "shape    {} fixed positions, {} queries after them, {} query heads on {} key/value heads, head_dim {}, {}",
        input.fixed,
        input.questions(),
        problem.q_heads,
        problem.kv_heads,
        problem.head_dim,
        problem.dtype,
    )?;
    let clusters: usize = (0..index.kv_heads()).map(|head| index.clusters(head)).sum();
    let coarse: usize = (0..index.kv_heads())
        .map(|head| index.coarse_clusters(head))
        .sum();
    writeln!(
        text,
        "index    {clusters} clusters and {coarse} coarse ones over {} keys a head, {} positions outside; {:.1} MiB; {} in {}",
        index.len() - index.outside(),
        index.outside(),
        index.bytes() as f64 / f64::from(1 << 20),
        if outcome.loaded { "read" } else { "built" },
        time(outcome.index_time),
    )?;
    let threshold = match outcome.rule.keep {
        Keep::Threshold(threshold) => threshold,
        _ => f32::NAN,
    };
    let over = match outcome.rule.denominator {
        Denominator::Clusters => "the clusters",
        _ => "everything",
    };
    let origin = match request.target {
        Target::Threshold(_) => "as given".to_owned(),
        Target::Coverage(coverage) => format!("calibrated for a coverage of {coverage}"),
        Target::Share(share) => format!("calibrated for {share} of the keys"),
    };
    let levels = match outcome.rule.coarse_threshold {
        Some(threshold) => format!(", coarse above {threshold:.2e}"),
        None => String::new(),
    };
    writeln!(
        text,
        "look-up  {:?} over {over}, above {threshold:.2e} ({origin}){levels}, blocks of {}",
        outcome.rule.score, outcome.rule.block,
    )?;
    writeln!(
        text,
        "backend  cpu, {} threads\n",
        rayon::current_num_threads()
    )
}

fn heads(text: &mut String, input: &Input, outcome: &Outcome) -> std::fmt::Result {
    let problem = input.whole();
    writeln!(
        text,
        "query head  kv head  keys kept  of all fixed  clusters scored  coverage: estimated     true  error of O"
    )?;
    for (q_head, (error, coverage)) in outcome.heads.iter().enumerate() {
        let kv_head = q_head / problem.group_size();
        let head = &outcome.report.heads[kv_head];
        writeln!(
            text,
            "{q_head:>10} {kv_head:>8} {:>9.2} % {:>11.2} % {:>14.1} % {:>20.4} {:>8.4} {error:>11.4}",
            100.0 * head.share,
            100.0 * head.fixed_share,
            100.0 * head.scored,
            head.coverage,
            coverage,
        )?;
    }
    writeln!(text)
}

fn times(text: &mut String, input: &Input, outcome: &Outcome) -> std::fmt::Result {
    let row = |text: &mut String, name: &str, times: &Times| {
        writeln!(
            text,
            "{name:<24} squeezed {:>10}   dense {:>10}   {:.2} x",
            time(times.squeezed),
            time(times.dense),
            times.dense.as_secs_f64() / times.squeezed.as_secs_f64(),
        )
    };
    row(
        text,
        &format!("all {} queries", input.questions()),
        &outcome.all,
    )?;
    row(text, "the last one as a token", &outcome.token)?;
    let report = &outcome.report;
    writeln!(
        text,
        "of all queries: own tokens, sinks and window {}; summed over the threads: look-up {}, attention to clusters {}",
        time(report.dense_time),
        time(report.lookup_time),
        time(report.attention_time),
    )?;
    writeln!(
        text,
        "working memory {:.1} MiB beside the index\n",
        outcome.workspace_bytes as f64 / f64::from(1 << 20)
    )?;
    writeln!(
        text,
        "keys kept: share of the clustered keys that attention ran over, mean over the queries; of all fixed: with sinks and window.\n\
         coverage: share of the attention on what was kept, as the look-up estimates it, and as dense attention has it.\n\
         error of O: |O - O dense| / |O dense|. times: median of {RUNS} runs after one to warm up."
    )
}

fn time(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds >= 1.0 {
        format!("{seconds:.2} s")
    } else if seconds >= 1e-3 {
        format!("{:.2} ms", 1e3 * seconds)
    } else {
        format!("{:.0} µs", 1e6 * seconds)
    }
}
