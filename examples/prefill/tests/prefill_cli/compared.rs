//! Runs against others: dense attention, and the same input on other backends.

use std::io::{Write, stderr};

use half::bf16;
use safetensors::SafeTensors;
use sample_attention::cuda::Device;
use sample_attention::{CudaError, Dtype, Error, Problem};
use sample_attention_inputs::capture::Tensor;
use serde_json::Value;

use crate::support::{Folder, capture, numbers, pixels, succeeds};

#[test]
fn no_arguments_run_the_carried_capture_and_compare_it_with_dense() {
    let folder = Folder::new();
    let table = succeeds(&folder, "");
    for word in [
        "qkv-layer3-4096.safetensors, layer 3",
        "sampling",
        "reduction",
        "top_k",
        "sparse_flash",
        "dense attention",
        "speed-up",
        "density",
        "stripes",
        "sampled",
        "true: mean",
        "error of O",
    ] {
        assert!(table.contains(word), "no {word:?} in\n{table}");
    }
    // On a machine that has much else to do, one run is all that is timed.
    let measured = ["runs after a warm-up", "one run"];
    assert!(
        measured.iter().any(|words| table.contains(words)),
        "{table}"
    );
    let heads: Vec<&str> = table
        .lines()
        .filter(|line| line.contains(" sparse "))
        .collect();
    assert_eq!(heads.len(), 2, "{table}");
    for head in heads {
        let error: f64 = head
            .split_whitespace()
            .next_back()
            .unwrap()
            .parse()
            .unwrap();
        assert!((0.0001..0.05).contains(&error), "{head}");
    }
    assert!(folder.names().is_empty());
}

#[test]
fn comparing_reports_coverage_error_and_speed_up() {
    let folder = Folder::new();
    let small = "--synthetic 500 --head-dim 16 --report r.json --compare-dense";
    let report = || -> Value {
        serde_json::from_slice(&std::fs::read(folder.file("r.json")).unwrap()).unwrap()
    };
    let table = succeeds(&folder, &format!("{small} --fallback never"));
    assert!(
        table.contains("synthetic, easy, seed 0 (not captured from a model)"),
        "{table}"
    );
    let sparse = report();
    assert!(sparse["speed_up"].as_f64().unwrap() > 0.0);
    assert!(sparse["runs"].as_u64().unwrap() >= 3);
    for head in sparse["heads"].as_array().unwrap() {
        let coverage = |name: &str| head["true_coverage"][name].as_f64().unwrap();
        assert!(coverage("min") <= coverage("percentile_1"));
        assert!(coverage("percentile_1") <= coverage("mean") && coverage("mean") <= 1.0);
        assert!(coverage("mean") > 0.8, "{head}");
        assert!(
            (0.0..0.5).contains(&head["relative_error"].as_f64().unwrap()),
            "{head}"
        );
    }
    succeeds(&folder, &format!("{small} --dense"));
    let dense = report();
    assert_eq!(dense["relative_error"], 0.0);
    assert_eq!(dense["mean_density"], 1.0);
    assert_eq!(dense["heads"][0]["path"], "dense");
}

#[test]
fn threads_change_no_bit_of_the_output() {
    let folder = Folder::new();
    let small = "--synthetic 900 --head-dim 32 --fallback never --budget residual";
    let file = |threads: usize| {
        succeeds(
            &folder,
            &format!("{small} --threads {threads} --output o{threads}"),
        );
        std::fs::read(folder.file(&format!("o{threads}"))).unwrap()
    };
    assert!(file(1) == file(3));
}

/// Those of the GPU kernels that this build and this machine have.
fn kernel_backends() -> Vec<&'static str> {
    let mut backends = Vec::new();
    if cfg!(feature = "emulator") {
        backends.push("emulator");
    }
    match Device::count() {
        Ok(1..) => backends.push("cuda"),
        Err(Error::Cuda(CudaError::NotCompiled)) => {}
        no_gpu => {
            // libtest would swallow what `eprintln` writes.
            let _ = writeln!(
                stderr(),
                "\n*** NOT TESTED: --backend cuda: {no_gpu:?} ***\n"
            );
        }
    }
    backends
}

#[test]
fn the_kernels_write_what_the_cpu_writes() {
    let folder = Folder::new();
    for (budget, backend) in ["blocks", "residual", "paper"]
        .into_iter()
        .flat_map(|budget| {
            kernel_backends()
                .into_iter()
                .map(move |other| (budget, other))
        })
    {
        let options = format!(
            "--synthetic 500 --q-heads 2 --kv-heads 1 --head-dim 64 --fallback never --coverage 0.6 \
             --window 50 --budget {budget} --compare-dense"
        );
        for backend in ["cpu", backend] {
            let files = format!(
                "--output {backend}.safetensors --report {backend}.json --picture {backend}.png"
            );
            let table = succeeds(&folder, &format!("{options} --backend {backend} {files}"));
            assert!(table.contains(&format!("backend  {backend}, ")), "{table}");
        }
        let read = |name: String| std::fs::read(folder.file(&name)).unwrap();
        let bytes = ["cpu", backend].map(|name| read(format!("{name}.safetensors")));
        let [cpu, other] = [0, 1].map(|at: usize| SafeTensors::deserialize(&bytes[at]).unwrap());
        for name in ["stripes", "stripe_count", "blocks"] {
            let [cpu, other] = [&cpu, &other].map(|file| file.tensor(name).unwrap());
            assert_eq!(cpu, other, "{backend} {budget} {name}");
        }
        for (name, tolerance) in [("o", 0.02), ("lse", 1e-4)] {
            let [cpu, other] = [&cpu, &other].map(|file| numbers(file, name, f32::from_le_bytes));
            assert_eq!(cpu.len(), other.len());
            for (cpu, other) in cpu.iter().zip(&other) {
                let error = (cpu - other).abs();
                assert!(
                    error <= tolerance * (1.0 + cpu.abs()),
                    "{backend} {budget} {name}: {cpu} {other}"
                );
            }
        }
        let [cpu, other] = ["cpu", backend].map(|name| -> Value {
            serde_json::from_slice(&read(format!("{name}.json"))).unwrap()
        });
        assert_eq!(other["backend"], backend);
        assert_eq!(cpu["mean_density"], other["mean_density"]);
        assert!(other["times_ms"]["sparse_flash"].as_f64().unwrap() > 0.0);
        let mean = |report: &Value| {
            report["heads"][1]["true_coverage"]["mean"]
                .as_f64()
                .unwrap()
        };
        assert!((mean(&cpu) - mean(&other)).abs() < 1e-4);
        assert!(
            mean(&other) < 0.999,
            "{backend} {budget}: nothing was left out"
        );
        assert!(other["relative_error"].as_f64().unwrap() > 0.0);
        pixels(&folder.file(&format!("{backend}.png")));
    }
}

#[test]
fn f32_is_rounded_for_the_kernels_and_the_table_says_so() {
    let folder = Folder::new();
    let mut input = capture(Problem::causal(300, 64, Dtype::F32).with_heads(2, 1));
    input.write(folder.file("f32")).unwrap();
    input.problem.dtype = Dtype::Bf16;
    for tensor in [&mut input.q, &mut input.k, &mut input.v] {
        let rounded = tensor.to_f32().into_iter().map(bf16::from_f32).collect();
        *tensor = Tensor::Bf16(rounded);
    }
    input.write(folder.file("bf16")).unwrap();
    for backend in kernel_backends() {
        let outputs = ["f32", "bf16"].map(|dtype| {
            let arguments =
                format!("--input {dtype} --backend {backend} --fallback never --output o");
            let table = succeeds(&folder, &arguments);
            let says_so = table.contains("f32, rounded from f32 to bf16");
            assert_eq!(says_so, dtype == "f32", "{table}");
            std::fs::read(folder.file("o")).unwrap()
        });
        assert!(outputs[0] == outputs[1], "{backend}");
    }
}
