//! What is told of a run over a ragged batch: the table, the report and the tensors.

use std::fmt::Write as _;
use std::io::Write;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};
use sample_attention::VarlenBounds;
use serde_json::json;

use super::Outcome;
use super::file::Ragged;
use crate::args::Request;
use crate::failure::{Failure, one_line};
use crate::report;
use crate::table::{path_name, policy_text};

/// Sequences beyond these are in the report file only.
const MAX_SEQUENCES: usize = 32;

/// The table on stdout.
pub fn table(request: &Request, path: &Path, ragged: &Ragged, outcome: &Outcome) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write_table(&mut text, request, path, ragged, outcome);
    text
}

fn write_table(
    text: &mut String,
    request: &Request,
    path: &Path,
    ragged: &Ragged,
    outcome: &Outcome,
) -> std::fmt::Result {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    writeln!(text, "input    {}", one_line(&name))?;
    if let Ok(bounds) = ragged.bounds() {
        writeln!(
            text,
            "shape    {} sequences of up to {} queries and {} keys, {} query heads on {}, head_dim {}, {}",
            bounds.sequences,
            bounds.max_seqlen_q,
            bounds.max_seqlen_k,
            bounds.q_heads,
            bounds.kv_heads,
            bounds.head_dim,
            bounds.dtype,
        )?;
    }
    let policy = match request.dense {
        true => "dense".to_owned(),
        false => policy_text(&request.policy),
    };
    writeln!(text, "policy   {policy}")?;
    let milliseconds = |time: std::time::Duration| time.as_secs_f64() * 1e3;
    write!(
        text,
        "backend  {}, {:.2} ms",
        request.backend.name(),
        milliseconds(outcome.time)
    )?;
    if let Some((time, error)) = outcome.dense {
        write!(
            text,
            "; dense {:.2} ms, relative error {error:.2e}",
            milliseconds(time)
        )?;
    }
    writeln!(text)?;
    let Some(report) = &outcome.report else {
        return Ok(());
    };
    writeln!(
        text,
        "\nsequence  queries     keys   density  path of its heads"
    )?;
    for (sequence, (q_len, k_len)) in ragged.lengths().enumerate().take(MAX_SEQUENCES) {
        let heads = report.heads.iter().filter(|head| head.batch == sequence);
        let count = heads.clone().count().max(1) as f64;
        let density = heads.clone().map(|head| head.density).sum::<f64>() / count;
        let mut paths: Vec<_> = heads.map(|head| path_name(head.path)).collect();
        paths.dedup();
        writeln!(
            text,
            "{sequence:8} {q_len:8} {k_len:8} {:7.1} %  {}",
            100.0 * density,
            paths.join(", ")
        )?;
    }
    Ok(())
}

/// The JSON report.
pub fn write_report(
    to: &mut dyn Write,
    request: &Request,
    ragged: &Ragged,
    outcome: &Outcome,
) -> Result<(), Failure> {
    let VarlenBounds {
        sequences,
        q_heads,
        kv_heads,
        head_dim,
        total_q,
        max_seqlen_q,
        max_seqlen_k,
        softmax_scale,
        ..
    } = ragged.bounds()?;
    let mut document = json!({
        "input": {
            "sequences": sequences, "q_heads": q_heads, "kv_heads": kv_heads, "head_dim": head_dim,
            "total_q": total_q, "max_seqlen_q": max_seqlen_q, "max_seqlen_k": max_seqlen_k,
            "softmax_scale": softmax_scale,
        },
        "backend": request.backend.name(),
        "policy": report::policy((!request.dense).then_some(&request.policy)),
        "time_ms": outcome.time.as_secs_f64() * 1e3,
    });
    if let Some((time, error)) = outcome.dense {
        document["dense_ms"] = json!(time.as_secs_f64() * 1e3);
        document["relative_error"] = json!(error);
    }
    if let Some(report) = &outcome.report {
        document["mean_density"] = json!(report.mean_density());
        let heads = report.heads.iter().map(|head| {
            json!({
                "sequence": head.batch,
                "q_head": head.q_head,
                "path": path_name(head.path),
                "density": head.density,
                "sampled_coverage": head.sampled_coverage,
            })
        });
        document["heads"] = heads.collect();
    }
    serde_json::to_writer_pretty(&mut *to, &document).map_err(Failure::new)?;
    writeln!(to).map_err(Failure::new)
}

/// Writes `o` [tokens, query heads, head_dim] and `lse` [query heads, tokens], both f32.
pub fn write_tensors(
    to: &mut dyn Write,
    ragged: &Ragged,
    outcome: &Outcome,
) -> Result<(), Failure> {
    let [_, q_heads, tokens, head_dim] = ragged.inputs()?.q.shape();
    let bytes = |data: &[f32]| -> Vec<u8> { data.iter().flat_map(|x| x.to_le_bytes()).collect() };
    let (o, lse) = (bytes(&outcome.o), bytes(&outcome.lse));
    let tensor = |shape, data| TensorView::new(Dtype::F32, shape, data).map_err(Failure::new);
    let tensors = [
        ("o", tensor(vec![tokens, q_heads, head_dim], &o)?),
        ("lse", tensor(vec![q_heads, tokens], &lse)?),
    ];
    let bytes = safetensors::serialize(tensors, None).map_err(Failure::new)?;
    to.write_all(&bytes).map_err(Failure::new)
}
