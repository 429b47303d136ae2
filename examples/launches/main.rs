//! The launches of a plan as JSON: for programs in other languages that have the driver, tensors and a stream of their own.
//!
//! It needs no GPU and no driver. Requests come in by lines, and each is answered by one line:
//!
//! ```text
//! {"ptx": "sm_80"}                       -> {"ptx": "the text to load"}
//! {"plan": {
//!     "problem": {"q_heads": 32, "kv_heads": 8, "q_len": 4096, "k_len": 4096, "head_dim": 128, "dtype": "bf16"},
//!     "work": "dense"                    or {"given": {"sinks": 0}} or {"policy": {"coverage": 0.97, ...}}
//! }}                                     -> {"plan": 0, "workspace_bytes": ..., "regions": {...}, "units": ...}
//! {"launches": {
//!     "plan": 0,
//!     "q": {"address": 1, "bytes": 2, "dtype": "bf16", "shape": [1, 32, 4096, 128], "strides": [...]},
//!     "k": {...}, "v": {...}, "o": {...},
//!     "lse": {"address": 3, "bytes": 4}, "workspace": {"address": 5, "bytes": 6}
//! }}                                     -> {"launches": [{"kernel": ..., "grid": ..., "params": "hexadecimal", ...}]}
//! ```
//!
//! What is left out of `problem` and `policy` has the library's defaults. A request that is wrong is answered by
//! `{"error": "why"}`, and the next one is read. `params` are the bytes of the kernel's only parameter.

mod answer;
mod request;

use std::io::{BufRead, Write};

use sample_attention::pipeline::{GpuPlan, Target};
use sample_attention::ptx;
use serde_json::{Value, json};

use request::{Request, parse};

fn main() -> std::io::Result<()> {
    let mut plans = Vec::new();
    let mut output = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let answer = match answer(&line?, &mut plans) {
            Ok(answer) => answer,
            Err(error) => json!({ "error": error }),
        };
        writeln!(output, "{answer}")?;
        output.flush()?;
    }
    Ok(())
}

fn text(target: Target) -> &'static str {
    match target {
        Target::Sm80 => ptx::SM_80,
        Target::Sm90a => ptx::SM_90A,
    }
}

fn answer(line: &str, plans: &mut Vec<GpuPlan>) -> Result<Value, String> {
    match parse(line)? {
        Request::Ptx(target) => Ok(json!({ "ptx": text(target) })),
        Request::Plan(plan) => {
            plans.push(plan);
            Ok(answer::plan(plans.len() - 1, &plans[plans.len() - 1]))
        }
        Request::Launches { plan, operands } => {
            let count = plans.len();
            let plan = plans
                .get(plan)
                .ok_or_else(|| format!("there is no plan {plan}, only {count}"))?;
            let arguments = plan.arguments(&operands);
            let arguments = arguments.map_err(|error| error.to_string())?;
            Ok(answer::launches(&plan.launches(&arguments)))
        }
    }
}
