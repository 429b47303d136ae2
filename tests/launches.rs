//! The example `launches` says what the library would launch.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use sample_attention::pipeline::{
    self, DeviceMemory, DeviceTensor, GpuPlan, Launch, Operands, Target, TensorMap, TensorMapLayout,
};
use sample_attention::{Dtype, Policy, Problem};
use serde_json::{Value, json};

const MULTIPROCESSORS: u32 = 7;

/// The example beside this test's own executable.
fn example() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let profile_folder = own.parent().unwrap().parent().unwrap();
    let path = profile_folder.join(format!("examples/launches{}", std::env::consts::EXE_SUFFIX));
    if !path.exists() {
        let profile = match profile_folder.file_name().unwrap().to_str().unwrap() {
            "debug" => "test",
            other => other,
        };
        let target = profile_folder.parent().unwrap();
        let built = Command::new(env!("CARGO"))
            .args(["build", "--features", "ptx", "--example", "launches"])
            .args(["--profile", profile, "--target-dir"])
            .arg(target)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status();
        assert!(built.unwrap().success(), "the example does not build");
    }
    path
}

/// A running example. What it asks of the driver is answered with words that count up.
struct Running {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
    asked: Vec<Value>,
}

impl Running {
    fn new() -> Self {
        let mut child = Command::new(example())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Running {
            output: BufReader::new(child.stdout.take().unwrap()),
            child,
            asked: Vec::new(),
        }
    }

    fn say(&mut self, line: &str) {
        let input = self.child.stdin.as_mut().unwrap();
        writeln!(input, "{line}").unwrap();
    }

    fn ask(&mut self, request: &str) -> Value {
        self.say(request);
        loop {
            let mut line = String::new();
            self.output.read_line(&mut line).unwrap();
            let answer: Value = serde_json::from_str(&line).unwrap();
            match answer.get("tensor_map") {
                None => return answer,
                Some(layout) => {
                    let words = words_of_map(self.asked.len());
                    self.asked.push(layout.clone());
                    self.say(&json!({ "words": words }).to_string());
                }
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let status = self.child.wait();
        if !std::thread::panicking() {
            assert!(
                status.unwrap().success(),
                "it ends when its input ends, without an error"
            );
        }
    }
}

fn words_of_map(index: usize) -> [u64; 16] {
    std::array::from_fn(|word| (index * 16 + word) as u64)
}

/// Keeps what would be launched.
struct Keeper {
    target: Target,
    maps: usize,
    launches: Vec<Launch>,
}

impl pipeline::Device for Keeper {
    type Error = std::convert::Infallible;

    fn target(&self) -> Target {
        self.target
    }

    fn multiprocessors(&self) -> u32 {
        MULTIPROCESSORS
    }

    fn tensor_map(&mut self, _layout: &TensorMapLayout) -> Result<TensorMap, Self::Error> {
        self.maps += 1;
        Ok(TensorMap::from_words(words_of_map(self.maps - 1)))
    }

    fn launch(&mut self, launch: &Launch) -> Result<(), Self::Error> {
        self.launches.push(*launch);
        Ok(())
    }
}

fn problem() -> Problem {
    Problem::causal(2048, 64, Dtype::F16).with_heads(4, 2)
}

const CHUNK: &str =
    r#"{"q_heads":4,"kv_heads":2,"q_len":4096,"k_len":20000,"head_dim":64,"dtype":"f16"}"#;

const PROBLEM: &str =
    r#"{"q_heads":4,"kv_heads":2,"q_len":2048,"k_len":2048,"head_dim":64,"dtype":"f16"}"#;

fn tensor(address: u64, heads: usize) -> (DeviceTensor, Value) {
    let shape = [1, heads, 2048, 64];
    let bytes = (heads * 2048 * 64 * 2) as u64;
    let memory = DeviceMemory { address, bytes };
    let strides = [heads * 2048 * 64, 2048 * 64, 64, 1];
    let value = json!({ "address": address, "bytes": bytes, "dtype": "f16", "shape": shape, "strides": strides });
    (
        DeviceTensor::bhsd(memory, Dtype::F16, shape).unwrap(),
        value,
    )
}

/// Both sides of the same operands.
fn operands(plan: &GpuPlan, target: Target) -> (Operands, Value) {
    let [(q, q_value), (k, k_value), (v, v_value), (o, o_value)] = [
        tensor(1 << 30, 4),
        tensor(2 << 30, 2),
        tensor(3 << 30, 2),
        tensor(4 << 30, 4),
    ];
    let lse = DeviceMemory {
        address: 5 << 30,
        bytes: 4 * 2048 * 4,
    };
    let workspace = DeviceMemory {
        address: 6 << 30,
        bytes: plan.workspace_bytes(),
    };
    let memory = |memory: DeviceMemory| json!({ "address": memory.address, "bytes": memory.bytes });
    let request = json!({ "launches": {
        "plan": 0,
        "target": target.name(),
        "multiprocessors": MULTIPROCESSORS,
        "q": q_value, "k": k_value, "v": v_value, "o": o_value,
        "lse": memory(lse),
        "workspace": memory(workspace),
    }});
    (Operands::new(q, k, v, o, lse, workspace), request)
}

/// Bytes of a parameter up to the first that is padding are the same in every copy: here, sizes and the first addresses.
fn first_bytes(launch: &Launch) -> String {
    let (params, bytes) = launch.call.params();
    assert!(bytes >= 28);
    // SAFETY: every kernel's parameters begin with seven 32-bit sizes, or with a tensor map, and have no padding in them.
    let first = unsafe { std::slice::from_raw_parts(params.cast::<u8>(), 28) };
    first.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The fewer of a chunk's rows are sampled, the less workspace it takes.
#[test]
fn row_strides_and_where_they_double_are_the_librarys() {
    let chunk = problem().with_q_len(4096).with_k_len(20_000);
    let doubling = Policy::of(sample_attention::Budget::Blocks).with_stride_doubles_from(8192);
    let wide = Policy::of(sample_attention::Budget::Blocks).with_row_stride(128);
    let mut example = Running::new();
    let mut bytes_before = u64::MAX;
    for (asked, policy) in [
        (
            json!({ "budget": "blocks" }),
            Policy::of(sample_attention::Budget::Blocks),
        ),
        (
            json!({ "budget": "blocks", "stride_doubles_from": 8192 }),
            doubling,
        ),
        (json!({ "budget": "blocks", "row_stride": 128 }), wide),
    ] {
        let work = json!({ "policy": asked });
        let answer = example.ask(&format!(
            r#"{{"plan":{{"problem":{CHUNK},"work":{work}}}}}"#
        ));
        let bytes = GpuPlan::new(chunk, policy).unwrap().workspace_bytes();
        assert_eq!(answer["workspace_bytes"], bytes, "{asked}");
        assert!(bytes < bytes_before, "{asked}: {bytes}");
        bytes_before = bytes;
    }
}

#[test]
fn launches_are_those_of_the_plan() {
    for target in Target::ALL {
        for (work, plan) in [
            (json!("dense"), GpuPlan::dense(problem())),
            (
                json!({ "given": { "sinks": 3 } }),
                GpuPlan::given(problem(), 3),
            ),
            (
                json!({ "policy": {} }),
                GpuPlan::new(problem(), Policy::default()),
            ),
            (
                json!({ "policy": { "budget": "paper" } }),
                GpuPlan::new(problem(), Policy::paper()),
            ),
        ] {
            let plan = plan.unwrap();
            let mut example = Running::new();
            let answer = example.ask(&format!(
                r#"{{"plan":{{"problem":{PROBLEM},"work":{work}}}}}"#
            ));
            assert_eq!(answer["plan"], 0);
            assert_eq!(answer["workspace_bytes"], plan.workspace_bytes());
            let lists = &answer["regions"]["lists"];
            assert_eq!(lists["offset_bytes"], plan.workspace().lists.offset_bytes);
            assert_eq!(lists["len"], plan.workspace().lists.len);

            let (operands, request) = operands(&plan, target);
            let mut keeper = Keeper {
                target,
                maps: 0,
                launches: Vec::new(),
            };
            plan.run(&mut keeper, &plan.arguments(&operands).unwrap())
                .unwrap();
            let answer = example.ask(&request.to_string());
            let stated = answer["launches"].as_array().unwrap();
            assert_eq!(example.asked.len(), keeper.maps);
            assert_eq!(stated.len(), keeper.launches.len());
            for (stated, launch) in stated.iter().zip(&keeper.launches) {
                assert_eq!(stated["kernel"], launch.call.name());
                assert_eq!(stated["stage"], launch.stage.name());
                assert_eq!(stated["grid"], json!(launch.shape.grid));
                assert_eq!(stated["block"], json!(launch.shape.block));
                assert_eq!(stated["shared_bytes"], launch.shape.shared_bytes);
                let params = stated["params"].as_str().unwrap();
                assert_eq!(params.len(), 2 * launch.call.params().1);
                assert!(params.starts_with(&first_bytes(launch)), "{params}");
            }
        }
    }
}

#[test]
fn the_addresses_are_in_the_parameters() {
    let plan = GpuPlan::dense(problem()).unwrap();
    let mut example = Running::new();
    example.ask(&format!(
        r#"{{"plan":{{"problem":{PROBLEM},"work":"dense"}}}}"#
    ));
    let (_, request) = operands(&plan, Target::Sm80);
    let answer = example.ask(&request.to_string());
    let params = answer["launches"][0]["params"].as_str().unwrap();
    for address in [1u64 << 30, 2 << 30, 3 << 30, 4 << 30, 5 << 30] {
        let bytes: String = address
            .to_le_bytes()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert!(params.contains(&bytes), "{address:#x} in {params}");
    }
}

#[test]
fn a_wrong_request_is_refused_and_the_next_one_answered() {
    let mut example = Running::new();
    for (request, words) in [
        ("{", "EOF"),
        ("[]", "an object"),
        (r#"{"plane": 1}"#, "no field plane"),
        (r#"{"ptx": "sm_70"}"#, "sm_70"),
        (r#"{"plan": {"work": "dense"}}"#, "lacks the field problem"),
        (
            r#"{"plan": {"problem": {"head_dim": -1}, "work": "dense"}}"#,
            "head_dim is a whole number",
        ),
        (
            r#"{"launches": {"plan": 5, "target": "sm_80"}}"#,
            "multiprocessors",
        ),
    ] {
        let answer = example.ask(request);
        let error = answer["error"].as_str().unwrap();
        assert!(error.contains(words), "{request}: {error}");
    }
    let refused = r#"{"policy":{"coverage":2}}"#;
    let answer = example.ask(&format!(
        r#"{{"plan":{{"problem":{PROBLEM},"work":{refused}}}}}"#
    ));
    assert!(answer["error"].as_str().unwrap().contains("coverage is 2"));
    let answer = example.ask(r#"{"ptx": "sm_80"}"#);
    assert!(
        answer["ptx"]
            .as_str()
            .unwrap()
            .contains(".entry sparse_flash_bf16_d128")
    );
}
