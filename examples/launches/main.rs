//! The launches of a plan as JSON: for programs in other languages that have the driver, tensors and a stream of their own.
//!
//! It needs no GPU and no driver. Requests come in by lines, and each is answered by one line:
//!
//! ```text
//! {"ptx": "sm_80"}                       -> {"ptx": "the text to load"}
//! {"plan": {
//!     "problem": {"q_heads": 32, "kv_heads": 8, "q_len": 4096, "k_len": 4096, "head_dim": 128, "dtype": "bf16"},
//!     "work": "dense"                    or {"given": {"sinks": 0}} or {"policy": {"coverage": 0.97, ...}}
//! }}                                     -> {"plan": 0, "workspace_bytes": ..., "regions": {...}, "selection": ...}
//! {"launches": {
//!     "plan": 0, "target": "sm_80", "multiprocessors": 108,
//!     "q": {"address": 4096, "bytes": 33554432, "dtype": "bf16", "shape": [1, 32, 4096, 128], "strides": [...]},
//!     "k": {...}, "v": {...}, "o": {...},
//!     "lse": {"address": 8192, "bytes": 524288}, "workspace": {"address": 256, "bytes": 0}
//! }}                                     -> {"launches": [{"kernel": ..., "grid": ..., "params": "hexadecimal", ...}]}
//! ```
//!
//! What is left out of `problem` and `policy` has the library's defaults. A request that is wrong is answered by
//! `{"error": "why"}`, and the next one is read. `params` are the bytes of the kernel's only parameter.
//!
//! The kernels of sm_90a take tensor maps, which the driver encodes. Before it answers a request for their launches, the
//! program asks for each map by a line `{"tensor_map": {...}}` with the arguments of `cuTensorMapEncodeTiled`, and reads a line
//! with the 16 words of the result: `{"words": [...]}`.

mod answer;
mod lines;
mod request;

use sample_attention::pipeline::{GpuPlan, Target};
use sample_attention::ptx;
use serde_json::{Value, json};

use answer::Recorder;
use lines::{hear, say};
use request::{Request, parse};

fn main() -> std::io::Result<()> {
    let mut plans = Vec::new();
    while let Some(line) = hear()? {
        let answer = answer(&line, &mut plans).unwrap_or_else(|error| json!({ "error": error }));
        say(&answer)?;
    }
    Ok(())
}

fn answer(line: &str, plans: &mut Vec<GpuPlan>) -> Result<Value, String> {
    match parse(line)? {
        Request::Ptx(target) => Ok(json!({ "ptx": text(target) })),
        Request::Plan(plan) => {
            plans.push(*plan);
            Ok(answer::plan(plans.len() - 1, &plans[plans.len() - 1]))
        }
        Request::Launches {
            plan,
            target,
            multiprocessors,
            operands,
        } => {
            let count = plans.len();
            let plan = plans
                .get(plan)
                .ok_or_else(|| format!("there is no plan {plan} among {count}"))?;
            let arguments = plan.arguments(&operands);
            let arguments = arguments.map_err(|error| error.to_string())?;
            let mut recorder = Recorder::new(target, multiprocessors);
            plan.run(&mut recorder, &arguments)?;
            Ok(recorder.answer())
        }
    }
}

fn text(target: Target) -> &'static str {
    match target {
        Target::Sm80 => ptx::SM_80,
        Target::Sm90a => ptx::SM_90A,
    }
}
