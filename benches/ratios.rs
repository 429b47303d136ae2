//! The comparisons that matter, each pair measured alternately in one run, as Markdown for `benches/record/`.
//!
//! ```text
//! cargo bench --bench ratios                             everything
//! cargo bench --bench ratios -- FILE.safetensors...      captured inputs (q, k, v) besides the synthetic ones
//! ```

use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use sample_attention::{Dtype, Fallback, Outputs, Plan, Policy, Problem, Report, TensorViewMut};
use testkit::capture::Capture;
use testkit::synthetic::{Structure, Synthetic};

/// Alternating rounds of each comparison; the table shows medians.
const ROUNDS: usize = 7;

fn main() {
    let files: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with("--"))
        .collect();
    println!("# CPU ratios\n");
    println!(
        "{}, {}, {} threads. Medians of {ROUNDS} alternating rounds; two query heads share one key/value head of 128.\n",
        cpu_model(),
        sample_attention::cpu::InstructionSet::widest(),
        rayon::current_num_threads(),
    );
    dense_against_gemm();
    pipeline_against_dense(&files);
    break_even();
    workspace();
}

fn cpu_model() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name"));
    model.map_or("unknown CPU".into(), |model| {
        model.trim_start_matches(['\t', ' ', ':']).to_owned()
    })
}

/// One thing to be timed.
struct Contender<'a> {
    run: Box<dyn FnMut() + 'a>,
    times: Vec<Duration>,
}

impl<'a> Contender<'a> {
    fn new(run: impl FnMut() + 'a) -> Self {
        Contender {
            run: Box::new(run),
            times: Vec::new(),
        }
    }

    fn seconds(&self) -> f64 {
        let mut sorted = self.times.clone();
        sorted.sort_unstable();
        sorted[sorted.len() / 2].as_secs_f64()
    }
}

/// Times all contenders in turn, after one round that warms up.
fn alternate(contenders: &mut [Contender<'_>], rounds: usize) {
    for round in 0..=rounds {
        for contender in &mut *contenders {
            let started = Instant::now();
            (contender.run)();
            if round > 0 {
                contender.times.push(started.elapsed());
            }
        }
    }
}

/// A plan with everything that its runs need.
struct Job<'a> {
    plan: Plan,
    capture: &'a Capture,
    workspace: Vec<u8>,
    o: Vec<f32>,
}

impl<'a> Job<'a> {
    fn new(plan: Plan, capture: &'a Capture) -> Self {
        Job {
            workspace: vec![0; plan.workspace_bytes()],
            o: vec![0.0; plan.problem().q_shape().iter().product()],
            plan,
            capture,
        }
    }

    fn dense(capture: &'a Capture) -> Self {
        Job::new(
            Plan::dense(capture.problem).expect("a valid problem"),
            capture,
        )
    }

    fn sparse(capture: &'a Capture, fallback: Fallback) -> Self {
        let policy = Policy::default().with_fallback(fallback);
        let plan = Plan::new(capture.problem, policy).expect("a valid problem and policy");
        Job::new(plan, capture)
    }

    fn run(&mut self) -> Report {
        let inputs = self.capture.inputs().expect("a whole capture");
        let shape = self.plan.problem().q_shape();
        let o = TensorViewMut::bhsd(&mut self.o, shape).expect("the shape of q");
        let outputs = Outputs::new(o);
        let report = self.plan.run(&inputs, outputs, &mut self.workspace);
        black_box(report.expect("everything fits"))
    }
}

fn synthetic(len: usize, structure: Structure, dtype: Dtype) -> Capture {
    Synthetic {
        problem: Problem::causal(len, 128, dtype).with_heads(2, 1),
        structure,
        seed: 1,
    }
    .generate()
    .expect("valid sizes")
}

/// Floating-point operations of causal attention: two products over the visible pairs.
fn causal_flops(problem: &Problem) -> f64 {
    let pairs = problem.q_heads * problem.q_len * (problem.q_len + 1) / 2;
    4.0 * pairs as f64 * problem.head_dim as f64
}

fn dense_against_gemm() {
    const SIZE: usize = 4096;
    let (a, b) = (vec![0.5f32; SIZE * SIZE], vec![0.25f32; SIZE * SIZE]);
    let mut c = vec![0f32; SIZE * SIZE];
    let f32_input = synthetic(8192, Structure::UNIFORM, Dtype::F32);
    let bf16_input = synthetic(8192, Structure::UNIFORM, Dtype::Bf16);
    let mut f32_job = Job::dense(&f32_input);
    let mut bf16_job = Job::dense(&bf16_input);
    let mut contenders = [
        Contender::new(|| testkit::product::square(SIZE, &a, &b, &mut c)),
        Contender::new(|| {
            f32_job.run();
        }),
        Contender::new(|| {
            bf16_job.run();
        }),
    ];
    alternate(&mut contenders, ROUNDS);
    let attention = causal_flops(&f32_input.problem);
    let rates = [
        2.0 * (SIZE as f64).powi(3) / contenders[0].seconds(),
        attention / contenders[1].seconds(),
        attention / contenders[2].seconds(),
    ];
    println!("## Dense attention against a matrix product\n");
    println!("| what | GFLOP/s | against gemm | against f32 |\n|---|---|---|---|");
    for (name, rate) in [
        "`gemm` crate, f32, 4096³",
        "dense attention, f32, causal, 8192",
        "dense attention, bf16, causal, 8192",
    ]
    .into_iter()
    .zip(rates)
    {
        println!(
            "| {name} | {:.0} | {:.2} | {:.2} |",
            rate / 1e9,
            rate / rates[0],
            rate / rates[1]
        );
    }
    println!();
}

fn pipeline_against_dense(files: &[String]) {
    println!("## The pipeline against dense, bf16\n");
    println!(
        "| input | tokens | density | dense, ms | pipeline, ms | speed-up | sampling + reduction + top-k, of dense |"
    );
    println!("|---|---|---|---|---|---|---|");
    for len in [8192, 32768] {
        for (name, structure) in [
            ("synthetic, easy", Structure::EASY),
            ("synthetic, hard", Structure::HARD),
            ("uniform random", Structure::UNIFORM),
        ] {
            compare_pipeline(name, &synthetic(len, structure, Dtype::Bf16));
        }
    }
    for file in files {
        let name = Path::new(file).file_stem().unwrap_or_default();
        match Capture::read(file) {
            Ok(capture) => compare_pipeline(&name.to_string_lossy(), &capture),
            Err(error) => eprintln!("{file}: {error}"),
        }
    }
    println!();
}

fn compare_pipeline(name: &str, capture: &Capture) {
    let mut dense = Job::dense(capture);
    let mut sparse = Job::sparse(capture, Fallback::Auto);
    let mut reports = Vec::new();
    let mut contenders = [
        Contender::new(|| {
            dense.run();
        }),
        Contender::new(|| reports.push(sparse.run())),
    ];
    alternate(
        &mut contenders,
        ROUNDS.min(if capture.problem.q_len > 16384 {
            3
        } else {
            ROUNDS
        }),
    );
    let [dense, sparse] = [contenders[0].seconds(), contenders[1].seconds()];
    drop(contenders);
    let mut selection: Vec<Duration> = reports.iter().map(|r| r.times.selection()).collect();
    selection.sort_unstable();
    println!(
        "| {name} | {} | {:.3} | {:.0} | {:.0} | {:.2} × | {:.1} % |",
        capture.problem.k_len,
        reports[0].mean_density(),
        dense * 1e3,
        sparse * 1e3,
        dense / sparse,
        100.0 * selection[selection.len() / 2].as_secs_f64() / dense,
    );
}

/// Where selecting begins to pay: the sparse path, whatever it costs, against dense.
fn break_even() {
    println!("## Break-even\n");
    println!("| tokens | easy: density | easy: speed-up | hard: density | hard: speed-up |");
    println!("|---|---|---|---|---|");
    for len in [512, 768, 1024, 1536, 2048, 3072, 4096] {
        print!("| {len} |");
        for structure in [Structure::EASY, Structure::HARD] {
            let capture = synthetic(len, structure, Dtype::Bf16);
            let mut dense = Job::dense(&capture);
            let mut sparse = Job::sparse(&capture, Fallback::Never);
            let density = sparse.run().mean_density();
            let mut contenders = [
                Contender::new(|| {
                    dense.run();
                }),
                Contender::new(|| {
                    sparse.run();
                }),
            ];
            alternate(&mut contenders, 5 * ROUNDS);
            let speed_up = contenders[0].seconds() / contenders[1].seconds();
            print!(" {density:.3} | {speed_up:.2} × |");
        }
        println!();
    }
    println!();
}

/// Memory beyond inputs and outputs.
fn workspace() {
    println!("## Workspace at 131,072 tokens, 32 query and 8 key/value heads\n");
    println!("| budget | MiB | MiB a thread |\n|---|---|---|");
    for (name, policy) in [
        ("blocks", Policy::default()),
        (
            "residual",
            Policy::default().with_budget(sample_attention::Budget::Residual),
        ),
        ("paper", Policy::paper()),
    ] {
        let problem = Problem::causal(131_072, 128, Dtype::Bf16).with_heads(32, 8);
        let plan = Plan::new(problem, policy).expect("a valid problem and policy");
        let mib = plan.workspace_bytes() as f64 / (1 << 20) as f64;
        let threads = rayon::current_num_threads() as f64;
        println!("| {name} | {mib:.1} | {:.1} |", mib / threads);
    }
}
