//! Ragged batches: files with `cu_seqlens_q` and `cu_seqlens_k`, keys and values packed or in pages.

mod file;
mod told;

use std::path::Path;
use std::time::{Duration, Instant};

#[cfg(feature = "emulator")]
use sample_attention::emulator::{Emulator, Packed};
#[cfg(feature = "emulator")]
use sample_attention::pipeline::GpuPlan;
use sample_attention::{Outputs, Policy, Report, TensorViewMut, VarlenPlan};
use sample_attention_inputs::relative_error;

use crate::args::{Backend, Request, Source};
use crate::engine::Machine;
use crate::failure::{Failure, warn};
use crate::files::Staged;
use crate::memory;
use file::Ragged;

/// What came out.
struct Outcome {
    /// [token, query head, head_dim].
    o: Vec<f32>,
    /// [query head, token].
    lse: Vec<f32>,
    time: Duration,
    /// `None` where the backend makes none.
    report: Option<Report>,
    /// Time of dense attention, and ‖O − O_dense‖ / ‖O_dense‖.
    dense: Option<(Duration, f64)>,
}

/// The request's input file, if it holds a ragged batch.
pub fn file_of(request: &Request) -> Option<&Path> {
    match &request.source {
        Source::File { path, .. } if file::is_ragged(path) => Some(path),
        _ => None,
    }
}

/// Runs the request on a ragged batch. Returns the table.
pub fn run(request: &Request, path: &Path, files: &mut Staged) -> Result<String, Failure> {
    let option = format!("--input {}", path.display());
    let refuse = |what: &str| {
        Err(Failure::of(
            &option,
            format_args!("it holds a ragged batch, for which there is no {what}"),
        ))
    };
    if request.has_layout {
        return refuse("--layout: tokens come first, then heads");
    }
    if request.picture.is_some() {
        return refuse("--picture");
    }
    if request.profile.is_some() {
        return refuse("--profile here");
    }
    if let Backend::Cuda { .. } = request.backend {
        return refuse("--backend cuda here: take cpu or emulator");
    }
    Machine::open(request.backend)?;
    let mut ragged = Ragged::read(path).map_err(|error| Failure::of(&option, error))?;
    if request.backend != Backend::Cpu {
        ragged.round_to_bf16();
    }
    for warning in ragged.non_finite() {
        warn(&warning);
    }
    let policy = (!request.dense).then_some(&request.policy);
    let blame = |failure: Failure| Failure::of(&option, failure);
    let mut outcome = compute(request.backend, &ragged, policy).map_err(blame)?;
    if request.compare_dense {
        let dense = compute(request.backend, &ragged, None).map_err(blame)?;
        outcome.dense = Some((dense.time, relative_error(&outcome.o, &dense.o)));
    }
    if let Some(path) = &request.output {
        files.write(path, |to| told::write_tensors(to, &ragged, &outcome))?;
    }
    if let Some(path) = &request.report {
        files.write(path, |to| {
            told::write_report(to, request, &ragged, &outcome)
        })?;
    }
    Ok(told::table(request, path, &ragged, &outcome))
}

/// One run.
fn compute(backend: Backend, ragged: &Ragged, policy: Option<&Policy>) -> Result<Outcome, Failure> {
    let bounds = ragged.bounds()?;
    let inputs = ragged.inputs()?;
    let [_, q_heads, tokens, head_dim] = inputs.q.shape();
    let plan = match policy {
        Some(policy) => VarlenPlan::new(bounds, *policy)?,
        None => VarlenPlan::dense(bounds)?,
    };
    let outputs_bytes = 4 * (tokens * q_heads * (head_dim + 1)) as u128;
    memory::check(plan.workspace_bytes() as u128 + outputs_bytes)?;
    let mut o = vec![0f32; tokens * q_heads * head_dim];
    let mut lse = vec![0f32; q_heads * tokens];
    let outputs =
        Outputs::new(TensorViewMut::thd(&mut o, [tokens, q_heads, head_dim])?).with_lse(&mut lse);
    let report;
    let started;
    match backend {
        #[cfg(feature = "emulator")]
        Backend::Emulator => {
            let plan = GpuPlan::for_bounds(bounds, policy.copied())?;
            let packed = Packed {
                cu_q: &ragged.unsigned_seqlens_q(),
                cu_k: &ragged.unsigned_seqlens_k(),
                k_lens_each: false,
                pages: ragged.table(),
            };
            started = Instant::now();
            let inputs = sample_attention::Inputs::new(inputs.q, inputs.k, inputs.v);
            Emulator::FAST.run_packed(&plan, &packed, &inputs, outputs)?;
            report = None;
        }
        _ => {
            let mut workspace = vec![0; plan.workspace_bytes()];
            started = Instant::now();
            report = Some(plan.run(&inputs, outputs, &mut workspace)?);
        }
    }
    Ok(Outcome {
        time: started.elapsed(),
        o,
        lse,
        report,
        dense: None,
    })
}
