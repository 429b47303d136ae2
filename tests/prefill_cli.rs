//! The main job as a user meets it: the table, the files, and what happens to bad input.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use safetensors::SafeTensors;
use sample_attention::{
    BLOCK, Budget, Dtype, Fallback, Outputs, Plan, Policy, Problem, Report, Selection,
    TensorViewMut, Window,
};
use serde_json::Value;
use testkit::capture::Capture;
use testkit::synthetic::{Structure, Synthetic};

/// The example beside this test's own executable. Cargo builds it with the tests, but not when one test file is asked for.
fn prefill() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let own = std::env::current_exe().unwrap();
        let profile_folder = own.parent().unwrap().parent().unwrap();
        let path = profile_folder.join(format!("examples/prefill{}", std::env::consts::EXE_SUFFIX));
        if !path.exists() {
            let profile = match profile_folder.file_name().unwrap().to_str().unwrap() {
                "debug" => "test",
                other => other,
            };
            let built = Command::new(env!("CARGO"))
                .args([
                    "build",
                    "--example",
                    "prefill",
                    "--profile",
                    profile,
                    "--target-dir",
                ])
                .arg(profile_folder.parent().unwrap())
                .current_dir(env!("CARGO_MANIFEST_DIR"))
                .status();
            assert!(built.unwrap().success(), "the example does not build");
        }
        path
    })
}

/// A folder that goes away.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!(
            "prefill-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn names(&self) -> BTreeSet<String> {
        let entries = std::fs::read_dir(&self.0).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

struct Run {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

/// Runs the example in `folder` with arguments separated by spaces.
fn run(folder: &Folder, arguments: &str) -> Run {
    run_with(folder, &arguments.split_whitespace().collect::<Vec<_>>())
}

fn run_with(folder: &Folder, arguments: &[&str]) -> Run {
    let output = Command::new(prefill())
        .args(arguments)
        .current_dir(&folder.0)
        .output()
        .unwrap();
    let run = Run {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    };
    assert!(
        !run.stderr.contains("panicked"),
        "{arguments:?}: {}",
        run.stderr
    );
    run
}

fn succeeds(folder: &Folder, arguments: &str) -> String {
    let run = run(folder, arguments);
    assert_eq!(
        (run.code, run.stderr.as_str()),
        (Some(0), ""),
        "{arguments}"
    );
    run.stdout
}

/// Refused as bad input must be; gives the line that says why.
fn refused(run: &Run, what: &str) -> String {
    assert_eq!(run.code, Some(2), "{what}: {}", run.stderr);
    assert_eq!(run.stdout, "", "{what}");
    let line = run
        .stderr
        .strip_suffix('\n')
        .unwrap_or_else(|| panic!("{what}: no line"));
    assert!(!line.contains('\n'), "{what}: {line}");
    assert!(
        line.starts_with("error: ") && line.len() > 12,
        "{what}: {line}"
    );
    line.to_owned()
}

fn capture(problem: Problem) -> Capture {
    let recipe = Synthetic {
        problem,
        structure: Structure::HARD,
        seed: 3,
    };
    recipe.generate().unwrap()
}

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
        "runs after a warm-up",
        "density",
        "stripes",
        "sampled",
        "true: mean",
        "error of O",
    ] {
        assert!(table.contains(word), "no {word:?} in\n{table}");
    }
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

/// The library's own result for the same input.
struct Expected {
    o: Vec<f32>,
    lse: Vec<f32>,
    report: Report,
    selection: Option<Selection>,
}

fn library(capture: &Capture, plan: &Plan) -> Expected {
    let inputs = capture.inputs().unwrap();
    let mut workspace = vec![0; plan.workspace_bytes()];
    let mut stages = plan.stages(&inputs, &mut workspace).unwrap();
    let mut o = vec![0.0; capture.q.len()];
    let mut lse = vec![0.0; capture.problem.lse_len()];
    let outputs = Outputs {
        o: TensorViewMut::bhsd(&mut o, capture.problem.q_shape()).unwrap(),
        lse: Some(&mut lse),
    };
    let report = stages.run(outputs).unwrap();
    let selection = stages.selection();
    Expected {
        o,
        lse,
        report,
        selection,
    }
}

fn numbers<const BYTES: usize, T>(
    file: &SafeTensors<'_>,
    name: &str,
    read: fn([u8; BYTES]) -> T,
) -> Vec<T> {
    let tensor = file.tensor(name).unwrap();
    tensor
        .data()
        .as_chunks()
        .0
        .iter()
        .copied()
        .map(read)
        .collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Checks the output file and the report against the library.
fn check_files(folder: &Folder, capture: &Capture, plan: &Plan) {
    let expected = library(capture, plan);
    let problem = capture.problem;
    let bytes = std::fs::read(folder.file("o.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let names: BTreeSet<&str> = file.names().into_iter().collect();
    assert_eq!(
        names,
        BTreeSet::from(["blocks", "lse", "o", "stripe_count", "stripes"])
    );

    let shape = |name: &str| file.tensor(name).unwrap().shape().to_vec();
    let [batch, q_heads, q_len, head_dim] = problem.q_shape();
    let side = problem.k_len.div_ceil(BLOCK);
    assert_eq!(shape("o"), [batch, q_heads, q_len, head_dim]);
    assert_eq!(shape("lse"), [batch, q_heads, q_len]);
    assert_eq!(shape("stripe_count"), [batch, q_heads]);
    assert_eq!(shape("blocks"), [batch, q_heads, side, side]);
    assert_eq!(
        bits(&numbers(&file, "o", f32::from_le_bytes)),
        bits(&expected.o)
    );
    assert_eq!(
        bits(&numbers(&file, "lse", f32::from_le_bytes)),
        bits(&expected.lse)
    );

    let counts = numbers(&file, "stripe_count", i32::from_le_bytes);
    let stripes = numbers(&file, "stripes", i32::from_le_bytes);
    let longest = counts.iter().copied().max().unwrap() as usize;
    assert_eq!(shape("stripes"), [batch, q_heads, longest]);
    let blocks = file.tensor("blocks").unwrap().data();
    let report: Value =
        serde_json::from_slice(&std::fs::read(folder.file("r.json")).unwrap()).unwrap();
    assert_eq!(report["input"]["k_len"], problem.k_len);

    for head in 0..batch * q_heads {
        let mask = expected
            .selection
            .as_ref()
            .map(|selection| selection.head(head / q_heads, head % q_heads))
            .filter(|mask| !mask.is_dense());
        let own = &stripes[head * longest..(head + 1) * longest];
        let (listed, padding) = own.split_at(counts[head] as usize);
        let listed: Vec<u32> = listed.iter().map(|&key| key as u32).collect();
        assert_eq!(listed, mask.map_or(&[][..], |mask| mask.stripes()));
        assert!(padding.iter().all(|&key| key == -1));
        let kept = &blocks[head * side * side..(head + 1) * side * side];
        for query_block in 0..side {
            let holds_rows = (query_block + 1) * BLOCK > problem.k_len.saturating_sub(q_len);
            for key_block in 0..side {
                let keeps = mask.map_or(key_block <= query_block, |mask| {
                    mask.keeps_block(query_block, key_block)
                });
                let at = query_block * side + key_block;
                assert_eq!(
                    kept[at],
                    u8::from(keeps && holds_rows),
                    "{query_block} {key_block}"
                );
            }
        }
        let reported = &report["heads"][head];
        let of_library = &expected.report.heads[head];
        assert_eq!(
            reported["blocks_kept"],
            kept.iter().map(|&kept| u64::from(kept)).sum::<u64>()
        );
        assert_eq!(reported["stripes"], counts[head]);
        // Reading JSON may round the last bit.
        let same = |reported: &Value, expected: Option<f64>| match (reported.as_f64(), expected) {
            (Some(reported), Some(expected)) => (reported - expected).abs() < 1e-12,
            (reported, expected) => reported.is_none() && expected.is_none(),
        };
        assert!(
            same(&reported["density"], Some(of_library.density)),
            "{reported}"
        );
        let sampled = &reported["sampled_coverage"];
        assert!(same(sampled, of_library.sampled_coverage), "{reported}");
        assert_eq!(reported["selected"]["stripes"], of_library.stripes);
    }
}

const FILES: &str = "--output o.safetensors --report r.json";

#[test]
fn files_hold_what_the_library_computes() {
    let whole = Problem {
        batch: 2,
        q_heads: 4,
        kv_heads: 2,
        ..Problem::causal(700, 32, Dtype::F16)
    };
    let chunk = Problem {
        q_len: 300,
        ..whole
    };
    let ahead = Problem {
        k_len: 300,
        ..whole
    };
    let never = Policy {
        fallback: Fallback::Never,
        ..Policy::default()
    };
    for problem in [whole, chunk, ahead] {
        let folder = Folder::new();
        let capture = capture(problem);
        capture.write(folder.file("in.safetensors")).unwrap();
        for (options, policy) in [
            ("--fallback never", never),
            (
                "--fallback never --budget residual --coverage 0.8 --window 100 --sinks 3",
                Policy {
                    budget: Budget::Residual,
                    coverage: 0.8,
                    window: Window::Tokens(100),
                    sinks: 3,
                    ..never
                },
            ),
            (
                "--fallback never --budget paper --row-stride 20 --window-ratio 0.08",
                Policy {
                    budget: Budget::Paper,
                    row_stride: 20,
                    window: Window::Ratio(0.08),
                    ..never
                },
            ),
            // Below the break-even length nothing is selected, and all is kept.
            ("", Policy::default()),
        ] {
            succeeds(
                &folder,
                &format!("--input in.safetensors {FILES} {options}"),
            );
            check_files(&folder, &capture, &Plan::new(problem, policy).unwrap());
        }
        succeeds(&folder, &format!("--input in.safetensors {FILES} --dense"));
        check_files(&folder, &capture, &Plan::dense(problem).unwrap());
        assert_eq!(folder.names().len(), 3, "{:?}", folder.names());
    }
}

/// Long enough for the fallback to be decided head by head.
#[test]
fn heads_that_fall_back_keep_every_block() {
    let folder = Folder::new();
    let arguments = "--synthetic 1700 --structure uniform --head-dim 16 --q-heads 2 --kv-heads 1 --seed 3 --coverage 1";
    let table = succeeds(&folder, &format!("{arguments} {FILES}"));
    assert!(table.contains("fallback"), "{table}");
    let problem = Problem {
        q_heads: 2,
        ..Problem::causal(1700, 16, Dtype::Bf16)
    };
    let recipe = Synthetic {
        problem,
        structure: Structure::UNIFORM,
        seed: 3,
    };
    let policy = Policy {
        coverage: 1.0,
        ..Policy::default()
    };
    check_files(
        &folder,
        &recipe.generate().unwrap(),
        &Plan::new(problem, policy).unwrap(),
    );
}

#[test]
fn comparing_reports_coverage_error_and_speed_up() {
    let folder = Folder::new();
    let small = "--synthetic 500 --head-dim 16 --fallback never --report r.json --compare-dense";
    let report = || -> Value {
        serde_json::from_slice(&std::fs::read(folder.file("r.json")).unwrap()).unwrap()
    };
    let table = succeeds(&folder, small);
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

/// Size and pixels of a PNG.
fn pixels(path: &Path) -> (u32, u32, Vec<[u8; 3]>) {
    let decoder = png::Decoder::new(std::io::BufReader::new(std::fs::File::open(path).unwrap()));
    let mut reader = decoder.read_info().unwrap();
    let mut bytes = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut bytes).unwrap();
    assert_eq!(bytes.len(), (info.width * info.height * 3) as usize);
    (info.width, info.height, bytes.as_chunks().0.to_vec())
}

#[test]
fn pictures_show_what_is_kept() {
    let folder = Folder::new();
    let small =
        "--synthetic 1200 --head-dim 32 --q-heads 1 --kv-heads 1 --structure hard --fallback never";
    let draw = |options: &str| {
        succeeds(&folder, &format!("{small} --picture p.png {options}"));
        pixels(&folder.file("p.png"))
    };
    let count = |pixels: &[[u8; 3]], has: fn([i32; 3]) -> bool| {
        pixels
            .iter()
            .filter(|pixel| has(pixel.map(i32::from)))
            .count()
    };
    let blue: fn([i32; 3]) -> bool = |[r, _, b]| b > r + 40;
    let orange: fn([i32; 3]) -> bool = |[r, g, b]| r > b + 50 && g > b;
    let green: fn([i32; 3]) -> bool = |[r, g, b]| g > r + 60 && g > b + 30;
    let magenta: fn([i32; 3]) -> bool = |[r, g, b]| r > g + 60 && b > g + 40;
    let (width, height, blocks) = draw("");
    assert!(width > 800 && height > 500, "{width} x {height}");
    let (_, _, stripes) = draw("--budget residual");
    let (_, _, dense) = draw("--dense");
    // Legends have every colour; the maps add much more of what they show.
    assert!(count(&blocks, blue) > 5_000);
    assert!(count(&blocks, orange) > 20_000);
    assert!(count(&stripes, magenta) > 2_000 && count(&blocks, magenta) < 100);
    assert!(count(&blocks, green) > 200 && count(&dense, green) < 100);
    assert!(count(&dense, orange) > 100_000);
}

#[test]
fn pictures_of_odd_shapes_are_drawn() {
    let folder = Folder::new();
    let tiny = Problem::causal(1, 8, Dtype::F32);
    let long = Problem {
        k_len: 40_000,
        ..tiny
    };
    for (problem, options) in [
        (tiny, ""),
        (long, ""),
        (Problem { q_len: 300, ..tiny }, ""),
        (
            Problem {
                q_len: 5,
                k_len: 1000,
                ..tiny
            },
            "--budget paper",
        ),
        (
            Problem {
                batch: 3,
                q_heads: 6,
                kv_heads: 3,
                q_len: 70,
                k_len: 129,
                ..tiny
            },
            "--sinks 0",
        ),
        (
            Problem {
                q_len: 5000,
                k_len: 5000,
                ..tiny
            },
            "--budget residual --sinks 500",
        ),
    ] {
        capture(problem).write(folder.file("in")).unwrap();
        succeeds(
            &folder,
            &format!("--input in --fallback never --compare-dense --picture p.png {options}"),
        );
        let (width, height, pixels) = pixels(&folder.file("p.png"));
        assert_eq!(pixels.len(), (width * height) as usize, "{problem:?}");
    }
}

/// Infinities and NaN are numbers of a valid file: whatever comes out, it is not a panic.
#[test]
fn poisoned_values_are_computed_with() {
    let folder = Folder::new();
    let mut capture = capture(Problem::causal(300, 8, Dtype::F32));
    if let testkit::capture::Tensor::F32(k) = &mut capture.k {
        k[17] = f32::NAN;
        k[900] = f32::INFINITY;
    }
    capture.write(folder.file("in")).unwrap();
    for budget in ["blocks", "residual", "paper"] {
        let arguments = format!(
            "--input in --fallback never --budget {budget} --compare-dense --picture p.png {FILES}"
        );
        assert_eq!(run(&folder, &arguments).code, Some(0), "{budget}");
    }
}

#[test]
fn the_emulator_writes_what_the_cpu_writes() {
    let folder = Folder::new();
    for budget in ["blocks", "paper"] {
        let options = format!(
            "--synthetic 500 --q-heads 2 --kv-heads 1 --head-dim 64 --fallback never --coverage 0.6 \
             --window 50 --budget {budget} --compare-dense"
        );
        for backend in ["cpu", "emulator"] {
            let files = format!(
                "--output {backend}.safetensors --report {backend}.json --picture {backend}.png"
            );
            let table = succeeds(&folder, &format!("{options} --backend {backend} {files}"));
            assert!(table.contains(&format!("backend  {backend}, ")), "{table}");
        }
        let [cpu, emulator] = ["cpu", "emulator"]
            .map(|backend| std::fs::read(folder.file(&format!("{backend}.safetensors"))).unwrap());
        let [cpu, emulator] =
            [&cpu, &emulator].map(|bytes| SafeTensors::deserialize(bytes).unwrap());
        for name in ["stripes", "stripe_count", "blocks"] {
            let [cpu, emulator] = [&cpu, &emulator].map(|file| file.tensor(name).unwrap());
            assert_eq!(cpu, emulator, "{budget} {name}");
        }
        for (name, tolerance) in [("o", 0.02), ("lse", 1e-4)] {
            let [cpu, emulator] =
                [&cpu, &emulator].map(|file| numbers(file, name, f32::from_le_bytes));
            assert_eq!(cpu.len(), emulator.len());
            for (cpu, emulator) in cpu.iter().zip(&emulator) {
                let error = (cpu - emulator).abs();
                assert!(
                    error <= tolerance * (1.0 + cpu.abs()),
                    "{budget} {name}: {cpu} {emulator}"
                );
            }
        }
        let [cpu, emulator] = ["cpu", "emulator"].map(|backend| -> Value {
            let text = std::fs::read(folder.file(&format!("{backend}.json"))).unwrap();
            serde_json::from_slice(&text).unwrap()
        });
        assert_eq!(emulator["backend"], "emulator");
        assert_eq!(cpu["mean_density"], emulator["mean_density"]);
        let mean = |report: &Value| {
            report["heads"][1]["true_coverage"]["mean"]
                .as_f64()
                .unwrap()
        };
        assert!((mean(&cpu) - mean(&emulator)).abs() < 1e-4);
        assert!(mean(&emulator) < 0.999, "{budget}: nothing was left out");
        assert!(emulator["relative_error"].as_f64().unwrap() > 0.0);
        pixels(&folder.file("emulator.png"));
    }
}

#[test]
fn help_and_version_are_printed() {
    let folder = Folder::new();
    let help = succeeds(&folder, "--help");
    for option in [
        "--input",
        "--synthetic",
        "--seed",
        "--backend",
        "--coverage",
        "--window",
        "--window-ratio",
        "--row-stride",
        "--sinks",
        "--budget",
        "--fallback",
        "--dense",
        "--output",
        "--report",
        "--picture",
        "--compare-dense",
        "--threads",
    ] {
        assert!(help.contains(option), "{option} is not in the help");
    }
    assert!(succeeds(&folder, "--version").contains(env!("CARGO_PKG_VERSION")));
}

#[test]
fn a_reader_that_stops_early_is_no_failure() {
    let folder = Folder::new();
    let mut child = Command::new(prefill())
        .args(["--synthetic", "300", "--report", "r.json"])
        .current_dir(&folder.0)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(folder.names(), BTreeSet::from(["r.json".to_owned()]));
}

#[test]
fn bad_options_are_named_and_leave_no_file() {
    let folder = Folder::new();
    for (options, named) in [
        ("--coverage 0", "coverage is 0"),
        ("--coverage 1.01", "coverage is 1.01"),
        ("--coverage -0.5", "coverage is -0.5"),
        ("--coverage NaN", "coverage is NaN"),
        ("--coverage inf", "coverage is inf"),
        ("--coverage much", "--coverage"),
        ("--coverage", "--coverage"),
        ("--window 0", "window has 0 tokens"),
        ("--window -1", "--window"),
        ("--window 1.5", "--window"),
        ("--window 99999999999999999999", "--window"),
        ("--window-ratio 0", "window ratio is 0"),
        ("--window-ratio 1.5", "window ratio is 1.5"),
        ("--window-ratio -1", "window ratio is -1"),
        ("--window-ratio nan", "window ratio is NaN"),
        ("--window-ratio x", "--window-ratio"),
        ("--window 5 --window-ratio 0.1", "--window-ratio"),
        ("--row-stride 0", "row_stride is 0"),
        ("--row-stride -16", "--row-stride"),
        ("--row-stride sixteen", "--row-stride"),
        ("--sinks -1", "--sinks"),
        ("--sinks 1e3", "--sinks"),
        ("--budget columns", "--budget"),
        ("--budget", "--budget"),
        ("--fallback always", "--fallback"),
        (
            "--backend emulator --head-dim 80",
            "head_dim 80 has no GPU kernel",
        ),
        ("--backend cuda", "--backend cuda: not in this build yet"),
        ("--backend tpu", "--backend"),
        ("--threads 0", "--threads"),
        ("--threads 4294967296", "--threads"),
        ("--seed -1", "--seed"),
        (
            "--q-heads 3",
            "q_heads (3) is not a multiple of kv_heads (2)",
        ),
        ("--q-heads 0", "--q-heads"),
        ("--kv-heads 0", "--kv-heads"),
        ("--head-dim 12", "head_dim 12"),
        ("--head-dim 264", "--head-dim"),
        ("--structure odd", "--structure"),
        ("--input in", "--input"),
        ("--dense=yes", "--dense"),
        ("--compare", "--compare"),
        ("stray", "stray"),
        ("--coverage 0.9 --coverage 0.8", "--coverage"),
        ("--dense --coverage 7", "coverage is 7"),
    ] {
        let arguments = format!("--synthetic 200 {options} {FILES} --picture p.png");
        let line = refused(&run(&folder, &arguments), options);
        assert!(
            line.contains(named),
            "{options}: {line:?} does not say {named:?}"
        );
        assert!(folder.names().is_empty(), "{options}: {:?}", folder.names());
    }
    for (arguments, named) in [
        ("--synthetic 0", "--synthetic"),
        ("--synthetic -5", "--synthetic"),
        ("--synthetic many", "--synthetic"),
        ("--synthetic 18446744073709551616", "--synthetic"),
        ("--synthetic", "--synthetic"),
        ("--seed 5", "--synthetic"),
        ("--head-dim 64", "--synthetic"),
        ("--input in --seed 5", "--seed"),
        ("--input", "--input"),
    ] {
        let line = refused(&run(&folder, &format!("{arguments} {FILES}")), arguments);
        assert!(
            line.contains(named),
            "{arguments}: {line:?} does not say {named:?}"
        );
        assert!(folder.names().is_empty());
    }
    // More memory than any machine has: refused, not killed.
    let line = refused(
        &run(
            &folder,
            &format!("--synthetic 1073741824 --q-heads 4096 {FILES}"),
        ),
        "huge",
    );
    assert!(line.contains("memory"), "{line}");
}

#[test]
fn values_at_the_edge_are_accepted() {
    let folder = Folder::new();
    let most = usize::MAX;
    for options in [
        format!("--row-stride {most}"),
        format!("--sinks {most}"),
        format!("--window {most}"),
        "--window-ratio 1e-40".to_owned(),
        "--coverage 1e-45".to_owned(),
        "--budget residual --coverage 1 --row-stride 1 --sinks 0 --window 1".to_owned(),
        format!("--budget paper --sinks {most} --row-stride {most}"),
    ] {
        let small = "--synthetic 200 --head-dim 8 --fallback never --compare-dense --picture p.png";
        succeeds(&folder, &format!("{small} {FILES} {options}"));
    }
    succeeds(
        &folder,
        "--synthetic 1 --q-heads 1 --kv-heads 1 --head-dim 8 --compare-dense --picture p.png",
    );
}

#[test]
fn bad_paths_are_named_and_leave_no_file() {
    let folder = Folder::new();
    std::fs::create_dir(folder.file("folder")).unwrap();
    capture(Problem::causal(40, 8, Dtype::F32))
        .write(folder.file("in"))
        .unwrap();
    std::fs::write(folder.file("kept"), "kept").unwrap();
    let before = folder.names();
    for (arguments, named) in [
        ("--input missing --output o", "--input missing"),
        (
            "--input folder --output o",
            "--input folder: it is not a regular file",
        ),
        (
            "--input kept --output o",
            "--input kept: it is not a safetensors file",
        ),
        ("--input in/x --output o", "--input in/x"),
        (
            "--input in --output folder",
            "--output folder: it is a directory",
        ),
        (
            "--input in --report none/r.json",
            "--report none/r.json: its directory",
        ),
        ("--input in --picture in/p.png", "--picture in/p.png"),
        ("--input in --output o/", "--output o/"),
        ("--input in --output ..", "--output .."),
        (
            "--input in --output in",
            "--output in: it would replace the input",
        ),
        (
            "--input in --output ./folder/../in",
            "it would replace the input",
        ),
        (
            "--input in --output o --report ./o",
            "--report ./o: --output names the same file",
        ),
        (
            "--input in --output o --report r --picture folder",
            "--picture folder",
        ),
        ("--input missing --output kept", "--input missing"),
    ] {
        let line = refused(&run(&folder, arguments), arguments);
        assert!(
            line.contains(named),
            "{arguments}: {line:?} does not say {named:?}"
        );
        assert_eq!(folder.names(), before, "{arguments}");
    }
    let empty = refused(
        &run_with(&folder, &["--input", "in", "--output", ""]),
        "empty name",
    );
    assert!(empty.contains("--output"), "{empty}");
    let long = "x".repeat(300);
    refused(
        &run_with(&folder, &["--input", "in", "--output", &long]),
        "long name",
    );
    #[cfg(unix)]
    for device in ["/dev/null", "/dev/full"] {
        let line = refused(
            &run_with(&folder, &["--input", "in", "--output", device]),
            device,
        );
        assert!(line.contains("not a regular file"), "{line}");
        assert!(Path::new(device).exists());
    }
    assert_eq!(folder.names(), before);
    assert_eq!(
        std::fs::read(folder.file("kept")).unwrap(),
        b"kept",
        "what was there stays there"
    );
}

#[test]
fn existing_files_are_replaced() {
    let folder = Folder::new();
    std::fs::write(folder.file("r.json"), "old").unwrap();
    succeeds(&folder, "--synthetic 100 --head-dim 8 --report r.json");
    assert!(
        std::fs::read_to_string(folder.file("r.json"))
            .unwrap()
            .starts_with('{')
    );
    assert_eq!(folder.names(), BTreeSet::from(["r.json".to_owned()]));
}

/// A name that would break the line it is reported on.
#[test]
fn control_characters_stay_out_of_the_line() {
    let folder = Folder::new();
    let line = refused(
        &run_with(&folder, &["--input", "no\nsuch\u{1b}[31m\u{2028}file"]),
        "name",
    );
    assert!(line.contains("no\\nsuch\\u{1b}"), "{line}");
    let header = r#"{"a\nb":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(&[0; 4]);
    std::fs::write(folder.file("in"), file).unwrap();
    let line = refused(&run(&folder, "--input in"), "tensor name");
    assert!(line.contains("no tensor `q`"), "{line}");
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        ((x ^ (x >> 31)) % bound as u64) as usize
    }
}

/// `testkit` throws thousands of files at the parser; these few go through the whole program.
#[test]
fn corrupt_files_end_in_one_line() {
    let folder = Folder::new();
    let whole = capture(Problem {
        q_heads: 2,
        ..Problem::causal(20, 8, Dtype::Bf16)
    })
    .to_bytes()
    .unwrap();
    let header_end = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let mut random = Random(5);
    let mut accepted = 0;
    let mut rejected = 0;
    for round in 0..60 {
        let mut file = whole.clone();
        match round % 6 {
            0 => file.truncate(random.below(whole.len())),
            1 => file[random.below(8)] ^= 1 << random.below(8),
            2 => {
                let digits: Vec<usize> = (8..header_end)
                    .filter(|&at| file[at].is_ascii_digit())
                    .collect();
                file[digits[random.below(digits.len())]] = b'0' + random.below(10) as u8;
            }
            3 => file[8 + random.below(header_end - 8)] = random.below(256) as u8,
            4 => file[header_end + random.below(whole.len() - header_end)] ^= 1 << random.below(8),
            _ => file.extend((0..1 + random.below(9)).map(|_| 0)),
        }
        std::fs::write(folder.file("in"), &file).unwrap();
        let run = run(&folder, &format!("--input in {FILES} --picture p.png"));
        let what = format!("round {round}");
        if run.code == Some(0) {
            assert_eq!(run.stderr, "", "{what}");
            accepted += 1;
            for name in ["o.safetensors", "r.json", "p.png"] {
                std::fs::remove_file(folder.file(name)).unwrap();
            }
        } else {
            let line = refused(&run, &what);
            assert!(line.contains("--input in"), "{what}: {line}");
            rejected += 1;
        }
        assert_eq!(folder.names(), BTreeSet::from(["in".to_owned()]), "{what}");
    }
    assert!(
        accepted >= 10 && rejected >= 30,
        "{accepted} accepted, {rejected} rejected"
    );
}
