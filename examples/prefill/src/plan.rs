//! `--plan`: what would run, without running it.

use sample_attention::cpu::InstructionSet;
use sample_attention::pipeline::GpuPlan;
use sample_attention::{HeadPath, Plan, Stage};
use serde_json::{Value, json};

use crate::args::{Backend, PlanRequest};
use crate::failure::Failure;
use crate::report;
use crate::table::path_name;

/// The plan as JSON.
pub fn describe(request: &PlanRequest) -> Result<String, Failure> {
    let PlanRequest {
        problem, policy, ..
    } = request;
    let mut document = json!({
        "backend": request.backend.name(),
        "problem": Value::Object(report::sizes(problem)),
        "policy": report::policy(policy.as_ref()),
    });
    let path = match request.backend {
        Backend::Cpu => {
            let pool = crate::threads(request.threads)?;
            let plan = pool.install(|| match policy {
                Some(policy) => Plan::new(*problem, *policy),
                None => Plan::dense(*problem),
            })?;
            document["instruction_set"] = json!(InstructionSet::widest().to_string());
            document["threads"] = json!(pool.current_num_threads());
            document["workspace_bytes"] = json!(plan.workspace_bytes());
            plan.path()
        }
        Backend::Emulator | Backend::Cuda { .. } => {
            let plan = match policy {
                Some(policy) => GpuPlan::new(*problem, *policy)?,
                None => GpuPlan::dense(*problem)?,
            };
            document["passes"] = json!(plan.waves());
            document["workspace_bytes"] = json!(plan.workspace_bytes());
            plan.head_path()
        }
    };
    document["path"] = json!(path_name(path));
    let stages = Stage::ALL.into_iter().filter(|&stage| {
        // The others select.
        path == HeadPath::Sparse || stage == Stage::SparseFlash
    });
    document["stages"] = stages.map(Stage::name).collect();
    let text = serde_json::to_string_pretty(&document).map_err(Failure::new)?;
    Ok(text + "\n")
}
