//! Hostile parameters: whatever the sizes, policies, strides and addresses, a call returns a result or a typed error. It never
//! panics, overflows (tests check for that) or runs on and on. Seeded, so that a failing case can be replayed.

use std::convert::Infallible;

use half::bf16;
use sample_attention::pipeline::{
    Device, DeviceMemory, DeviceTensor, GpuPlan, Launch, Operands, Target, TensorMap,
    TensorMapLayout,
};
use sample_attention::{
    Budget, Dtype, Error, Fallback, Inputs, Outputs, Plan, Policy, Problem, Result, Selection,
    TensorView, TensorViewMut, Window,
};
use testkit::random::Random;
use testkit::refused;

const SIZES: [usize; 31] = [
    0,
    1,
    2,
    3,
    7,
    8,
    16,
    64,
    127,
    128,
    129,
    1000,
    1024,
    8192,
    65_535,
    65_536,
    1 << 20,
    1 << 22,
    (1 << 24) - 1,
    1 << 24,
    (1 << 30) - 1,
    1 << 30,
    (1 << 30) + 1,
    1 << 32,
    1 << 39,
    1 << 47,
    1 << 56,
    1 << 60,
    usize::MAX / 2,
    usize::MAX - 1,
    usize::MAX,
];

const SCALES: [f32; 12] = [
    0.125,
    0.0,
    -1.0,
    1e-40,
    1e-30,
    1e30,
    2.3e38,
    2.4e38,
    f32::MAX,
    f32::NAN,
    f32::INFINITY,
    f32::NEG_INFINITY,
];

const SHARES: [f32; 8] = [0.97, 1.0, 1e-40, 0.0, -1.0, 1.5, f32::NAN, f32::INFINITY];

fn one_of<T: Copy>(random: &mut Random, values: &[T]) -> T {
    values[random.below(values.len())]
}

/// Any size, or a size that problems have.
fn size(random: &mut Random) -> usize {
    let end = if random.chance(0.3) { SIZES.len() } else { 16 };
    SIZES[random.below(end)]
}

fn problem(random: &mut Random) -> Problem {
    let dtype = one_of(random, &[Dtype::F32, Dtype::F16, Dtype::Bf16]);
    let head_dim = if random.chance(0.9) { 64 } else { size(random) };
    let mut problem = Problem::causal(size(random), head_dim, dtype)
        .with_batch(if random.chance(0.7) { 1 } else { size(random) })
        .with_q_len(size(random))
        .with_causal(random.chance(0.8));
    problem.kv_heads = if random.chance(0.7) { 1 } else { size(random) };
    problem.q_heads = match random.chance(0.5) {
        true => problem.kv_heads,
        false => size(random),
    };
    if random.chance(0.3) {
        problem.softmax_scale = one_of(random, &SCALES);
    }
    problem
}

fn policy(random: &mut Random) -> Policy {
    let mut policy = Policy::default()
        .with_budget(one_of(
            random,
            &[
                Budget::Rows,
                Budget::Blocks,
                Budget::Residual,
                Budget::Paper,
            ],
        ))
        .with_fallback(one_of(random, &[Fallback::Auto, Fallback::Never]));
    if random.chance(0.3) {
        policy.coverage = one_of(random, &SHARES);
    }
    if random.chance(0.4) {
        policy.row_stride = size(random);
    }
    if random.chance(0.4) {
        policy.stride_doubles_from = size(random);
    }
    if random.chance(0.5) {
        policy.window = match random.chance(0.5) {
            true => Window::Tokens(size(random)),
            false => Window::Ratio(one_of(random, &SHARES)),
        };
    }
    if random.chance(0.3) {
        policy = policy.with_tail(size(random), size(random));
    }
    if random.chance(0.5) {
        policy.sinks = size(random);
    }
    policy
}

/// Takes every launch and runs none.
struct Idle(Target);

impl Device for Idle {
    type Error = Infallible;

    fn target(&self) -> Target {
        self.0
    }

    fn multiprocessors(&self) -> u32 {
        132
    }

    fn tensor_map(&mut self, _: &TensorMapLayout) -> std::result::Result<TensorMap, Infallible> {
        Ok(TensorMap::from_words([0; 16]))
    }

    fn launch(&mut self, _: &Launch) -> std::result::Result<(), Infallible> {
        Ok(())
    }
}

/// Bytes of a selection's block lists.
fn list_bytes(problem: &Problem) -> f64 {
    let rows = if problem.causal {
        problem.k_len
    } else {
        problem.q_len
    };
    let query_blocks = (rows as f64 / 128.0).ceil();
    let row_bytes = 8.0 * (problem.k_len as f64 / 8192.0).ceil();
    problem.batch as f64 * problem.q_heads as f64 * query_blocks * row_bytes
}

/// The launches of a plan over memory that nobody has.
fn launches(plan: &GpuPlan, random: &mut Random) -> Result<()> {
    let problem = plan.problem();
    let memory = DeviceMemory {
        address: 1 << 20,
        bytes: u64::MAX >> 1,
    };
    let tensor = |shape| DeviceTensor::bhsd(memory, problem.dtype, shape);
    let [q, kv] = [tensor(problem.q_shape())?, tensor(problem.kv_shape())?];
    let arguments = plan.arguments(&Operands::new(q, kv, kv, q, memory, memory))?;
    if plan.waves() < 1000 {
        let target = one_of(random, &[Target::Sm80, Target::Sm90a]);
        let Ok(launches) = plan.launches(&mut Idle(target), &arguments);
        assert!(!launches.is_empty());
        for launch in launches {
            let [x, y, z] = launch.shape.grid;
            let fits = (1..1 << 31).contains(&x) && y < 65_536 && z < 65_536;
            assert!(fits, "a grid of {x} x {y} x {z} for {problem:?}");
        }
    }
    Ok(())
}

#[test]
fn plans_and_selections_are_made_or_refused() {
    let mut random = Random::new(1);
    let (mut made, mut launched, mut listed) = (0, 0, 0);
    for _ in 0..6000 {
        let (problem, policy) = (problem(&mut random), policy(&mut random));
        let threads = if random.chance(0.3) {
            size(&mut random)
        } else {
            2
        };
        // Of any problem, valid or not.
        let _ = (
            problem.lse_len(),
            problem.group_size(),
            problem.q_shape_bshd(),
        );
        for plan in [
            Plan::new(problem, policy),
            Plan::auto(problem, policy),
            Plan::dense(problem),
        ] {
            let Ok(plan) = plan.and_then(|plan| plan.with_threads(threads)) else {
                continue;
            };
            assert!((1..=isize::MAX as usize).contains(&plan.workspace_bytes()));
            made += 1;
        }
        for plan in [
            GpuPlan::new(problem, policy),
            GpuPlan::auto(problem, policy),
            GpuPlan::dense(problem),
            GpuPlan::given(problem, policy.sinks),
        ] {
            let Ok(plan) = plan else { continue };
            let plan = match random.chance(0.5) {
                true => plan.with_wave_bytes(size(&mut random) as u64),
                false => plan,
            };
            launched += usize::from(launches(&plan, &mut random).is_ok());
        }
        // Lists between these take memory that this test should not.
        if !(1e6..1e15).contains(&list_bytes(&problem)) {
            listed += usize::from(Selection::new(&problem).is_ok());
        }
    }
    let reached = format!("{made} plans, {launched} launched, {listed} selections");
    assert!(made > 1000 && launched > 300 && listed > 200, "{reached}");
}

#[test]
fn views_are_made_or_refused() {
    let mut random = Random::new(2);
    let data = vec![0f32; 5000];
    let mut out = vec![0f32; 5000];
    let mut made = 0;
    for _ in 0..50_000 {
        let (shape, mut strides) = (
            [(); 4].map(|()| size(&mut random)),
            [(); 4].map(|()| size(&mut random)),
        );
        if random.chance(0.9) {
            strides[3] = 1;
        }
        let views = [
            TensorView::new(&data, shape, strides),
            TensorView::bhsd(&data, shape),
            TensorView::bshd(&data, shape),
        ];
        made += views.iter().filter(|view| view.is_ok()).count();
        made += usize::from(TensorViewMut::new(&mut out, shape, strides).is_ok());
        made += usize::from(TensorViewMut::bshd(&mut out, shape).is_ok());
        let memory = DeviceMemory {
            address: size(&mut random) as u64,
            bytes: size(&mut random) as u64,
        };
        let dtype = one_of(&mut random, &[Dtype::F32, Dtype::Bf16]);
        let Ok(tensor) = DeviceTensor::new(memory, dtype, shape, strides) else {
            continue;
        };
        let mut problem = Problem::causal(shape[2], 64, dtype)
            .with_batch(shape[0])
            .with_heads(shape[1], shape[1]);
        problem.head_dim = shape[3];
        if let Ok(plan) = GpuPlan::dense(problem) {
            let operands = Operands::new(tensor, tensor, tensor, tensor, memory, memory);
            made += usize::from(plan.arguments(&operands).is_ok());
        }
    }
    assert!(made > 1000, "{made} views");
}

#[test]
fn small_problems_run_whatever_the_policy_says() {
    let mut random = Random::new(3);
    let data: Vec<bf16> = (0..4 * 200 * 16)
        .map(|_| bf16::from_f64(random.normal()))
        .collect();
    let mut ran = 0;
    for _ in 0..6000 {
        let policy = policy(&mut random);
        let [q_len, k_len] = [(); 2].map(|()| 1 + random.below(200));
        let problem = Problem::causal(k_len, 16, Dtype::Bf16)
            .with_heads(4, 2)
            .with_q_len(q_len)
            .with_softmax_scale(one_of(&mut random, &SCALES));
        let Ok(plan) = Plan::new(problem, policy) else {
            continue;
        };
        let view = |shape| TensorView::bhsd(&data, shape).unwrap();
        let [q, kv] = [problem.q_shape(), problem.kv_shape()].map(view);
        let mut o = vec![bf16::NAN; 4 * 200 * 16];
        let outputs = Outputs::new(TensorViewMut::bhsd(&mut o, problem.q_shape()).unwrap());
        let mut workspace = vec![0xff; plan.workspace_bytes()];
        plan.run(&Inputs::new(q, kv, kv), outputs, &mut workspace)
            .unwrap();
        ran += 1;
    }
    assert!(ran > 20, "{ran} runs");
}

#[test]
fn sizes_of_which_only_the_selection_overflows_are_refused() {
    // Few queries are dense otherwise, and select nothing.
    let never = Policy::default().with_fallback(Fallback::Never);
    // Q, K and V fit the address space; lists over all heads do not.
    let wide = Problem::causal(1 << 30, 8, Dtype::F32)
        .with_heads(1 << 39, 1)
        .with_q_len(1);
    let selecting = Plan::new(wide, never);
    refused!(
        selecting,
        Error::SelectionTooLarge { .. },
        "split the batch"
    );
    refused!(
        Selection::new(&wide),
        Error::SelectionTooLarge { .. },
        "549755813888 heads"
    );
    let many = Problem::causal(1 << 30, 8, Dtype::F32)
        .with_heads(1 << 22, 1)
        .with_q_len(1);
    for budget in [
        Budget::Rows,
        Budget::Blocks,
        Budget::Residual,
        Budget::Paper,
    ] {
        let selecting = Plan::new(many, never.with_budget(budget));
        refused!(
            selecting,
            Error::SelectionTooLarge { .. },
            "4194304 heads",
            "1073741824 keys"
        );
    }
    // More than any machine has, and less than the address space.
    let long = Problem::causal(1 << 30, 8, Dtype::F32)
        .with_heads(1 << 12, 1)
        .with_q_len(1);
    refused!(
        Selection::new(&long),
        Error::SelectionTooLarge { .. },
        "memory"
    );
    assert!(Plan::new(long, never).unwrap().workspace_bytes() > 1 << 50);
    let plan = Plan::dense(Problem::causal(100, 16, Dtype::F32)).unwrap();
    // No machine runs so many at a time: the plan takes as many as it may.
    assert!(plan.with_threads(usize::MAX).is_ok());
}
