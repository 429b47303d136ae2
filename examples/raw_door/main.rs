//! The pipeline through an engine's own bindings of the driver: nothing to link, and no feature `cuda`.
//!
//! ```sh
//! cargo run --release --example raw_door --features ptx
//! ```
//!
//! A [`GpuPlan`] is launches as data: names of kernels, grids, and parameters that hold raw addresses. Whoever has a driver
//! compiles the text in `sample_attention::ptx` and launches them in order. Here that is [cudarc](https://docs.rs/cudarc),
//! which loads the driver as it runs: this binary starts on any machine, and where there is no GPU it says so and exits with
//! code 2. The result is compared with the CPU backend's on the captured input that the repository carries; where the two
//! differ, the exit code is 1.

mod driver;
mod tensor_map;

use std::error::Error;
use std::process::ExitCode;

use driver::Gpu;
use sample_attention::pipeline::{Device, DeviceTensor, GpuPlan, Operands};
use sample_attention::{
    Dtype, Inputs, Outputs, Plan, Policy, Problem, Selection, StageTimes, TensorViewMut,
};
use testkit::capture::Capture;
use testkit::tensor::relative_error;

fn main() -> ExitCode {
    let gpu = match Gpu::open(0) {
        Ok(gpu) => gpu,
        Err(reason) => {
            eprintln!("error: {reason}");
            return ExitCode::from(2);
        }
    };
    match run(gpu) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What either side computes.
struct Computed {
    o: Vec<f32>,
    lse: Vec<f32>,
    selection: Option<Selection>,
}

fn run(mut gpu: Gpu) -> Result<(), Box<dyn Error>> {
    let capture = Capture::carried();
    let (problem, policy) = (
        capture.problem,
        Policy::of(sample_attention::Budget::Blocks),
    );
    let inputs = capture.inputs()?;
    let plan = GpuPlan::new(problem, policy)?;
    let on_gpu = on_gpu(&mut gpu, &plan, &inputs)?;
    let on_cpu = on_cpu(&Plan::new(problem, policy)?, &inputs)?;

    let worst = |a: &[f32], b: &[f32]| {
        let pairs = a.iter().zip(b);
        pairs
            .map(|(a, b)| f64::from((a - b).abs()))
            .fold(0.0, f64::max)
    };
    let error = relative_error(&on_gpu.o, &on_cpu.o);
    let lse_error = worst(&on_gpu.lse, &on_cpu.lse);
    let same = on_gpu.selection == on_cpu.selection;
    println!(
        "GPU        {}, kernels for {}",
        gpu.name()?,
        Device::target(&gpu).name()
    );
    println!(
        "shape      {} query heads, {} tokens, head_dim {}",
        problem.q_heads, problem.k_len, problem.head_dim
    );
    println!(
        "selection  {}",
        if same {
            "that of the CPU backend"
        } else {
            "not that of the CPU backend"
        }
    );
    println!("O          relative error {error:.1e}");
    println!("LSE        off by at most {lse_error:.1e}");
    // The GPU rounds probabilities to bf16 before the second product; NaN is no agreement.
    if same && error < 0.005 && lse_error < 1e-3 {
        Ok(())
    } else {
        Err("the GPU's result is not the CPU's".into())
    }
}

/// The pipeline's launches on the GPU.
fn on_gpu(gpu: &mut Gpu, plan: &GpuPlan, inputs: &Inputs<'_>) -> Result<Computed, Box<dyn Error>> {
    let problem: &Problem = plan.problem();
    let [q, k, v] = [&inputs.q, &inputs.k, &inputs.v].map(|view| gpu.upload(view.as_bytes()));
    let (q, k, v) = (q?, k?, v?);
    let mut o = vec![0f32; problem.q_shape().iter().product()];
    let mut lse = vec![0f32; problem.lse_len()];
    let o_memory = gpu.poisoned(4 * o.len() as u64)?;
    let lse_memory = gpu.poisoned(4 * lse.len() as u64)?;
    let workspace = gpu.poisoned(plan.workspace_bytes())?;

    let input = |slice, shape| DeviceTensor::bhsd(gpu.memory(slice), problem.dtype, shape);
    let operands = Operands::new(
        input(&q, problem.q_shape())?,
        input(&k, problem.kv_shape())?,
        input(&v, problem.kv_shape())?,
        DeviceTensor::bhsd(gpu.memory(&o_memory), Dtype::F32, problem.q_shape())?,
        gpu.memory(&lse_memory),
        gpu.memory(&workspace),
    );
    let arguments = plan.arguments(&operands)?;
    plan.run(gpu, &arguments)?;

    // SAFETY: the reads are of the memory allocated above.
    unsafe {
        gpu.read(operands.o.address(), bytemuck::cast_slice_mut(&mut o))?;
        gpu.read(operands.lse.address, bytemuck::cast_slice_mut(&mut lse))?;
    }
    let outcome = plan.outcome::<Box<dyn Error>>(StageTimes::default(), |offset_bytes, to| {
        // SAFETY: the plan's regions lie in its workspace.
        Ok(unsafe { gpu.read(operands.workspace.address + offset_bytes, to) }?)
    })?;
    Ok(Computed {
        o,
        lse,
        selection: outcome.selection,
    })
}

fn on_cpu(plan: &Plan, inputs: &Inputs<'_>) -> Result<Computed, Box<dyn Error>> {
    let problem = plan.problem();
    let mut workspace = vec![0; plan.workspace_bytes()];
    let mut o = vec![0f32; problem.q_shape().iter().product()];
    let mut lse = vec![0f32; problem.lse_len()];
    let outputs = Outputs::new(TensorViewMut::bhsd(&mut o, problem.q_shape())?).with_lse(&mut lse);
    let mut stages = plan.stages(inputs, &mut workspace)?;
    stages.run(outputs)?;
    let selection = stages.selection();
    Ok(Computed { o, lse, selection })
}
