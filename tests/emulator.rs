//! The GPU kernels on the emulator, through the one runner and beside the CPU backend.

use sample_attention::pipeline::GpuPlan;
use sample_attention::{
    Budget, Dtype, Error, Fallback, HeadPath, Inputs, Outputs, Policy, Problem, Selection,
    TensorView, TensorViewMut, Window,
};
use testkit::random::Random;
use testkit::runner::{
    Attend, Backend, Case, Cpu, Data, Emulator, Layout, Outcome, PUBLISHED_SHAPES, check, try_run,
};

const BUDGETS: [Budget; 4] = [
    Budget::Rows,
    Budget::Blocks,
    Budget::Residual,
    Budget::Paper,
];

fn policy(budget: Budget) -> Policy {
    Policy::of(Budget::Blocks)
        .with_budget(budget)
        .with_coverage(0.9)
        .with_window(Window::Tokens(100))
        .with_fallback(Fallback::Never)
}

fn problem(q_len: usize, k_len: usize, head_dim: usize, dtype: Dtype) -> Problem {
    Problem::causal(k_len, head_dim, dtype).with_q_len(q_len)
}

fn selecting(problem: Problem, policy: Policy, seed: u64) -> Case {
    Case {
        data: Data::Structured,
        seed,
        ..Case::new(problem, Attend::Policy(policy))
    }
}

/// Checks the portable kernels and Hopper's, and returns what the portable ones gave.
fn check_kernels(case: &Case) -> Outcome {
    check(&Emulator::hopper(), case);
    check(&Emulator::default(), case)
}

/// Numbers that alternate with the index of a case, so that all of their combinations come up.
fn varied(index: usize) -> (usize, Dtype, Layout) {
    (
        [64, 128][index / 2 % 2],
        [Dtype::Bf16, Dtype::F16][index % 2],
        Layout::ALL[index % 5],
    )
}

/// A thousand tiles, with each of which earlier sums are rescaled, nearly always by 1.
#[test]
fn sums_of_long_rows_keep_their_bits() {
    let case = Case {
        data: Data::Structured,
        row_step: 3,
        ..Case::new(problem(128, 65_536, 64, Dtype::Bf16), Attend::Dense)
    };
    check_kernels(&case);
}

#[test]
fn dense_agrees_with_the_oracle_on_the_published_shapes() {
    let short = |&(q_len, k_len): &(usize, usize)| q_len.max(k_len) < 1000;
    let shapes = PUBLISHED_SHAPES.into_iter().filter(short);
    for (index, (q_len, k_len)) in shapes.enumerate() {
        let (head_dim, dtype, layout) = varied(index);
        let problem = problem(q_len, k_len, head_dim, dtype)
            .with_heads(2, 1)
            .with_causal(index % 3 != 2);
        let case = Case {
            layout,
            output: if index % 4 == 3 { Dtype::F32 } else { dtype },
            ..Case::new(problem, Attend::Dense)
        };
        check_kernels(&case);
    }
}

/// Four query heads read each key/value head: 64 rows at most, whose keys are split where there are enough of them.
#[test]
fn few_queries_agree_with_the_oracle_over_any_keys() {
    let shapes = [
        (1, 1),
        (1, 300),
        (1, 4097),
        (3, 200),
        (3, 1500),
        (4, 1024),
        (5, 700),
        (16, 5),
        (16, 640),
        (16, 2049),
        // One row tile more, so that keys are not split.
        (17, 640),
    ];
    for (index, (q_len, k_len)) in shapes.into_iter().enumerate() {
        for head_dim in [64, 128] {
            let (_, dtype, layout) = varied(index + head_dim / 64);
            let problem = problem(q_len, k_len, head_dim, dtype)
                .with_heads(8, 2)
                .with_batch(1 + index % 2)
                .with_causal(index % 4 != 3);
            let case = Case {
                layout,
                data: [Data::Normal, Data::Structured][index / 2 % 2],
                seed: index as u64,
                output: if index % 3 == 2 { Dtype::F32 } else { dtype },
                ..Case::new(problem, Attend::Dense)
            };
            let portable = check(&Emulator::default(), &case);
            let hopper = check(&Emulator::hopper(), &case);
            if q_len <= 16 {
                assert_eq!(
                    portable.bits(),
                    hopper.bits(),
                    "the same kernels: {case:#?}"
                );
            }
        }
    }
}

#[test]
fn splits_of_keys_have_no_races_and_no_use_for_what_the_workspace_held() {
    for (index, (q_len, k_len)) in [(1, 1500), (16, 900)].into_iter().enumerate() {
        let (_, dtype, layout) = varied(index);
        let problem = problem(q_len, k_len, 64, dtype).with_heads(4, 1);
        let case = Case {
            layout,
            ..Case::new(problem, Attend::Dense)
        };
        let fast = check(&Emulator::default(), &case);
        let checked = check(&Emulator::checked(index as u64 + 1), &case);
        assert_eq!(fast.bits(), checked.bits(), "{case:#?}");
    }
}

/// A policy's plan below the break-even length attends to everything too.
#[test]
fn few_queries_below_the_break_even_length_are_those_of_a_dense_plan() {
    let problem = problem(3, 1000, 64, Dtype::Bf16).with_heads(4, 1);
    let auto = policy(Budget::Rows).with_fallback(Fallback::Auto);
    let selecting = check_kernels(&Case::new(problem, Attend::Policy(auto)));
    let dense = check_kernels(&Case::new(problem, Attend::Dense));
    assert_eq!(selecting.bits(), dense.bits());
    let report = selecting.found.report.unwrap();
    assert_eq!(report.heads[0].path, HeadPath::BelowBreakEven);
}

#[test]
fn every_budget_selects_as_the_oracle_says() {
    let shapes = [
        (1, 1),
        (65, 65),
        (129, 129),
        (113, 203),
        (512, 256),
        (799, 3),
        (239, 1),
        (1, 700),
        (640, 640),
    ];
    for (index, (q_len, k_len)) in shapes.into_iter().enumerate() {
        for (at, budget) in BUDGETS.into_iter().enumerate() {
            let (head_dim, dtype, layout) = varied(index + at);
            let case = Case {
                layout,
                ..selecting(
                    problem(q_len, k_len, head_dim, dtype),
                    policy(budget),
                    index as u64,
                )
            };
            check_kernels(&case);
        }
    }
}

#[test]
fn long_published_shapes_pass() {
    let shapes = [
        (1024, 1024),
        (1023, 1024),
        (1024, 1023),
        (1023, 2049),
        (2048, 2048),
    ];
    for (index, (q_len, k_len)) in shapes.into_iter().enumerate() {
        let (_, dtype, layout) = varied(index);
        let case = Case {
            row_step: 61,
            layout,
            ..selecting(
                problem(q_len, k_len, 64, dtype),
                policy(BUDGETS[index % 3]),
                3,
            )
        };
        check_kernels(&case);
    }
}

#[test]
fn sequences_and_grouped_heads_keep_apart() {
    for (index, budget) in BUDGETS.into_iter().enumerate() {
        let (head_dim, dtype, _) = varied(index);
        for (q_heads, kv_heads) in [(4, 2), (8, 1)] {
            let problem = problem(150, 300, head_dim, dtype)
                .with_batch(2)
                .with_heads(q_heads, kv_heads);
            let case = Case {
                layout: Layout::Aligned,
                ..selecting(problem, policy(budget), 5)
            };
            check_kernels(&case);
        }
    }
}

#[test]
fn checked_mode_finds_nothing_and_changes_nothing() {
    for (seed, budget) in BUDGETS.into_iter().enumerate() {
        let (head_dim, dtype, layout) = varied(seed);
        let problem = problem(260, 390, head_dim, dtype);
        let case = Case {
            layout,
            ..selecting(problem, policy(budget), 11)
        };
        let fast = check(&Emulator::default(), &case);
        let checked = check(&Emulator::checked(seed as u64 + 1), &case);
        assert_eq!(fast.bits(), checked.bits(), "{case:#?}");
        assert_eq!(fast.mask, checked.mask);
        assert_eq!(fast.found.units, checked.found.units);
    }
}

#[test]
fn waves_change_nothing() {
    for budget in BUDGETS {
        let problem = problem(200, 330, 64, Dtype::Bf16)
            .with_batch(2)
            .with_heads(2, 1);
        let case = selecting(problem, policy(budget), 2);
        let Attend::Policy(policy) = case.attend else {
            unreachable!()
        };
        let plan = GpuPlan::new(problem, policy).unwrap();
        let in_waves = Emulator {
            wave_bytes: Some(1),
            ..Emulator::default()
        };
        let small = plan.clone().with_wave_bytes(1);
        assert_eq!(plan.waves(), 1);
        assert!(small.waves() > 1);
        assert!(small.workspace_bytes() < plan.workspace_bytes());
        let whole = check(&Emulator::default(), &case);
        let waves = check(&in_waves, &case);
        assert_eq!(whole.bits(), waves.bits());
        assert_eq!(whole.found.units, waves.found.units);
        assert_eq!(whole.found.sampled, waves.found.sampled);
    }
}

/// How far the backends' roundings may take a mass, or a sum of them, apart.
fn mass_tolerance(mass: u64) -> f64 {
    4e-6 * mass as f64 + 4096.0
}

/// Whether a unit's set depends on rounding: its last member and the first left out weigh nearly the same, or the set just
/// reaches the need.
fn is_close(mass: &[u64], need: u64) -> bool {
    let mut sorted = mass.to_vec();
    sorted.sort_unstable_by(|a, b| b.cmp(a));
    let near = |a: u64, b: u64| a.abs_diff(b) as f64 <= mass_tolerance(a);
    let mut sum = 0;
    for (index, &heaviest) in sorted.iter().enumerate() {
        sum += heaviest;
        if sum >= need {
            let next = sorted.get(index + 1).copied().unwrap_or(0);
            return near(heaviest, next) || near(sum, need) || near(sum - heaviest, need);
        }
    }
    false
}

#[test]
fn the_selection_is_the_cpu_backends() {
    let (mut compared, mut close) = (0, 0);
    for (index, budget) in BUDGETS.into_iter().enumerate() {
        let (head_dim, dtype, _) = varied(index);
        let problem = problem(700, 700, head_dim, dtype).with_heads(4, 2);
        let case = selecting(problem, policy(budget), 21);
        let qkv = case.inputs();
        let cpu = try_run(&Cpu::default(), &case, &qkv).unwrap();
        let emulator = try_run(&Emulator::default(), &case, &qkv).unwrap();
        let selections = [&cpu, &emulator].map(|outcome| outcome.found.selection.as_ref().unwrap());
        assert_eq!(cpu.found.units.len(), emulator.found.units.len());
        for (unit, own) in cpu.found.units.iter().zip(&emulator.found.units) {
            assert_eq!((unit.q_head, unit.rows), (own.q_head, own.rows));
            for (candidate, (&mass, &own)) in unit.mass.iter().zip(&own.mass).enumerate() {
                assert!(
                    mass.abs_diff(own) as f64 <= mass_tolerance(mass),
                    "{budget:?}, head {}, candidate {candidate}: {mass} on the CPU, {own} here",
                    unit.q_head
                );
            }
            if is_close(&unit.mass, unit.need) {
                close += 1;
                continue;
            }
            compared += 1;
            let [cpu, emulator] = selections.map(|selection| selection.head(0, unit.q_head));
            assert_eq!(cpu.stripes(), emulator.stripes(), "{budget:?}");
            for query_block in 0..700usize.div_ceil(128) {
                let [cpu, emulator] =
                    [cpu, emulator].map(|head| head.blocks(query_block).collect::<Vec<_>>());
                assert_eq!(cpu, emulator, "{budget:?}, query block {query_block}");
            }
        }
        let reports = [&cpu, &emulator].map(|outcome| outcome.found.report.as_ref().unwrap());
        for (cpu, emulator) in reports[0].heads.iter().zip(&reports[1].heads) {
            let [cpu, emulator] = [cpu, emulator].map(|head| head.sampled_coverage.unwrap());
            assert!((cpu - emulator).abs() < 1e-3, "{cpu} {emulator}");
        }
    }
    assert!(
        compared > close,
        "{compared} of {} compared",
        compared + close
    );
}

#[test]
fn later_segments_are_sampled_at_wider_strides_up_to_64() {
    // Few queries, so that the emulator is soon through: the end of one segment and the beginning of the next.
    for (index, (row_stride, stride_doubles_from, rows)) in [
        (16, 8192, [0, 7, 4]),
        (20, 8192, [0, 5, 4]),
        (20, 16_384, [0, 10, 7]),
        (20, 8193, [0, 10, 7]),
        (100, 8192, [0, 2, 4]),
    ]
    .into_iter()
    .enumerate()
    {
        let (_, dtype, layout) = varied(index);
        let policy = policy(Budget::Blocks)
            .with_row_stride(row_stride)
            .with_stride_doubles_from(stride_doubles_from);
        let case = Case {
            layout,
            row_step: 37,
            ..selecting(problem(421, 16_384 + 219, 64, dtype), policy, 9)
        };
        let outcome = check_kernels(&case);
        let sampled = outcome.found.units.iter().map(|unit| unit.rows);
        assert_eq!(sampled.collect::<Vec<_>>(), rows, "{policy:?}");
    }
}

#[test]
fn fallback_is_decided_on_the_device_as_on_the_cpu() {
    let auto = |coverage| {
        policy(Budget::Blocks)
            .with_coverage(coverage)
            .with_row_stride(64)
            .with_fallback(Fallback::Auto)
    };
    // Below the break-even length nothing is selected.
    let short = selecting(problem(130, 4095, 64, Dtype::F16), auto(0.9), 1);
    let outcome = check(&Emulator::default(), &short);
    let report = outcome.found.report.unwrap();
    assert_eq!(report.heads[0].path, HeadPath::BelowBreakEven);
    assert!(outcome.found.selection.is_none());
    // Above it: few queries, so that the emulator is soon through.
    let mut paths = Vec::new();
    for (data, coverage) in [(Data::Structured, 0.5), (Data::Normal, 1.0)] {
        let case = Case {
            data,
            ..selecting(problem(140, 4200, 64, Dtype::Bf16), auto(coverage), 1)
        };
        let outcome = check_kernels(&case);
        let cpu = check(&Cpu::default(), &case);
        let path = outcome.found.report.unwrap().heads[0].path;
        assert_eq!(path, cpu.found.report.unwrap().heads[0].path);
        paths.push(path);
    }
    assert_eq!(paths, [HeadPath::Sparse, HeadPath::Fallback]);
}

#[test]
fn the_callers_own_lists_are_the_mask() {
    let mut random = Random::new(7);
    for (index, causal) in [(0, true), (1, false)] {
        let (head_dim, dtype, layout) = varied(index);
        let problem = problem(300, 420, head_dim, dtype)
            .with_heads(2, 1)
            .with_causal(causal);
        let mut selection = Selection::new(&problem).unwrap();
        selection.set_sinks(9);
        let stripes: Vec<u32> = (0..420).filter(|_| random.chance(0.1)).collect();
        selection.set_stripes(0, 1, &stripes).unwrap();
        selection.set_dense(0, 0, !causal).unwrap();
        let query_blocks = if causal { 4 } else { 3 };
        for query_block in 0..query_blocks {
            let blocks: Vec<usize> = (0..4).filter(|_| random.chance(0.4)).collect();
            selection.set_blocks(0, 1, query_block, &blocks).unwrap();
        }
        let case = Case {
            layout,
            ..Case::new(problem, Attend::Own(selection))
        };
        check_kernels(&case);
    }
}

#[test]
fn what_has_no_kernel_is_refused_with_the_remedy() {
    for (problem, words) in [
        (problem(9, 9, 64, Dtype::F32), "convert q, k and v"),
        (problem(9, 9, 32, Dtype::F16), "only 64 and 128"),
        (
            problem(1, 1, 64, Dtype::F16)
                .with_batch(300)
                .with_heads(300, 300),
            "split the batch",
        ),
    ] {
        for plan in [
            GpuPlan::new(problem, policy(Budget::Blocks)),
            GpuPlan::dense(problem),
            GpuPlan::given(problem, 0),
        ] {
            let error: Error = plan.unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
        }
    }
    let f32_problem = problem(9, 9, 64, Dtype::F32);
    assert!(!Emulator::default().supports(&f32_problem));
    let case = Case::new(f32_problem, Attend::Dense);
    // The runner checks that nothing was written.
    assert!(try_run(&Emulator::default(), &case, &case.inputs()).is_err());
}

#[test]
fn a_plan_for_lists_does_not_run_without_them() {
    let problem = problem(200, 200, 64, Dtype::Bf16);
    let data = vec![half::bf16::ONE; 200 * 64];
    let view = TensorView::bhsd(&data, problem.q_shape()).unwrap();
    let mut o = vec![half::bf16::ZERO; data.len()];
    let outputs = Outputs::new(TensorViewMut::bhsd(&mut o, problem.q_shape()).unwrap());
    let plan = GpuPlan::given(problem, 0).unwrap();
    let emulator = sample_attention::emulator::Emulator::FAST;
    let result = emulator.run(&plan, &Inputs::new(view, view, view), outputs);
    testkit::refused!(
        result,
        Error::ListsMissing,
        "Emulator::attend",
        "GpuPlan::new"
    );
    assert!(o.iter().all(|&x| x == half::bf16::ZERO));
}
