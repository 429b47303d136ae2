//! Sampling, reduction and top-k: each policy selects exactly what the definition says.

use sample_attention::{
    BREAK_EVEN_TOKENS, Budget, Dtype, Fallback, HeadPath, Policy, Problem, Window,
};
use testkit::oracle::Mask;
use testkit::runner::{Attend, Case, Cpu, Data, Layout, Outcome, check};

const BUDGETS: [Budget; 4] = [
    Budget::Rows,
    Budget::Blocks,
    Budget::Residual,
    Budget::Paper,
];

/// Short problems go through the selection too.
fn never(budget: Budget) -> Policy {
    Policy::of(Budget::Blocks)
        .with_budget(budget)
        .with_fallback(Fallback::Never)
}

fn problem(q_len: usize, k_len: usize) -> Problem {
    Problem::causal(k_len, 16, Dtype::F32)
        .with_heads(2, 1)
        .with_q_len(q_len)
}

/// One narrow head, for long sequences.
fn narrow(q_len: usize, k_len: usize) -> Problem {
    let mut problem = problem(q_len, k_len).with_heads(1, 1);
    problem.head_dim = 8;
    problem
}

fn structured(problem: Problem, policy: Policy) -> Case {
    Case {
        data: Data::Structured,
        ..Case::new(problem, Attend::Policy(policy))
    }
}

fn backend() -> Cpu {
    Cpu {
        coverage: true,
        ..Cpu::default()
    }
}

fn selected(outcome: &Outcome, head: usize) -> (usize, usize) {
    let report = outcome.found.report.as_ref().expect("the CPU reports");
    (report.heads[head].stripes, report.heads[head].blocks_kept)
}

#[test]
fn every_budget_selects_the_smallest_set_that_reaches_its_need() {
    for budget in BUDGETS {
        for data in [Data::Normal, Data::Structured, Data::Spiky] {
            let case = Case {
                data,
                ..structured(problem(1000, 1000), never(budget))
            };
            check(&backend(), &case);
        }
    }
}

#[test]
fn published_shapes_are_selected_from_with_every_element_type() {
    let shapes = [
        (113, 203),
        (108, 256),
        (256, 512),
        (512, 256),
        (1, 1),
        (239, 1),
        (799, 3),
        (1023, 1024),
        (1024, 1023),
    ];
    for (index, (q_len, k_len)) in shapes.into_iter().enumerate() {
        let dtype = [Dtype::F32, Dtype::F16, Dtype::Bf16][index % 3];
        for budget in BUDGETS {
            for (head_dim, q_heads, kv_heads) in [(64, 2, 2), (128, 3, 1), (64, 8, 1)] {
                let problem = Problem::causal(k_len, head_dim, dtype)
                    .with_heads(q_heads, kv_heads)
                    .with_q_len(q_len);
                let policy = never(budget)
                    .with_coverage(0.9)
                    .with_window(Window::Tokens(100));
                let case = Case {
                    output: dtype,
                    layout: Layout::ALL[index % 4],
                    row_step: 1 + q_len / 50,
                    ..structured(problem, policy)
                };
                check(&Cpu::default(), &case);
            }
        }
    }
}

#[test]
fn lengths_around_a_tile_and_few_or_many_queries() {
    for budget in BUDGETS {
        for k_len in [1, 127, 128, 129, 257, 513] {
            for q_len in [1, 40, k_len, k_len + 130] {
                let policy = never(budget)
                    .with_coverage(0.8)
                    .with_window(Window::Tokens(1));
                check(&backend(), &structured(problem(q_len, k_len), policy));
            }
        }
    }
}

#[test]
fn any_row_stride_samples_its_multiples_and_the_last_row() {
    for budget in BUDGETS {
        for row_stride in [1, 7, 20, 128, 300, 100_000] {
            let policy = never(budget).with_row_stride(row_stride);
            check(&backend(), &structured(problem(500, 777), policy));
        }
    }
}

#[test]
fn any_window_is_kept_in_whole_blocks() {
    let tokens = [1, 2, 128, 129, 130, 257, 600, 5000].map(Window::Tokens);
    let ratios = [0.001, 0.08, 0.5, 1.0].map(Window::Ratio);
    for budget in BUDGETS {
        for window in tokens.into_iter().chain(ratios) {
            let policy = never(budget).with_window(window);
            let outcome = check(&backend(), &structured(problem(600, 600), policy));
            if let Window::Tokens(tokens) = window {
                for row in 0..600usize {
                    for key in (row + 1).saturating_sub(tokens)..=row {
                        assert!(outcome.mask.keeps(&problem(600, 600), 0, row, key));
                    }
                }
            }
        }
    }
}

#[test]
fn a_window_ratio_means_what_it_says_in_decimals() {
    // 0.1 is a little more than 0.1 as an f32; still, a tenth of 1290 tokens are 129, which is one block besides the own.
    let policy = never(Budget::Residual)
        .with_coverage(1e-3)
        .with_window(Window::Ratio(0.1));
    let outcome = check(&Cpu::default(), &structured(problem(1290, 1290), policy));
    assert_eq!(selected(&outcome, 0), (0, 1 + 2 * 10));
}

#[test]
fn any_number_of_sinks_is_kept() {
    for budget in BUDGETS {
        for sinks in [0, 1, 127, 128, 129, 300, 599, 600, 10_000] {
            let policy = never(budget).with_sinks(sinks);
            check(&backend(), &structured(problem(550, 600), policy));
        }
    }
}

#[test]
fn equal_masses_go_to_the_lower_index() {
    for budget in BUDGETS {
        for coverage in [0.3, 0.5, 0.9, 1.0] {
            let policy = never(budget)
                .with_coverage(coverage)
                .with_row_stride(128)
                .with_window(Window::Tokens(1))
                .with_sinks(0);
            let case = Case {
                data: Data::Flat,
                ..Case::new(problem(1024, 1024), Attend::Policy(policy))
            };
            check(&Cpu::default(), &case);
        }
    }
}

#[test]
fn a_need_that_window_and_sinks_meet_selects_nothing() {
    for budget in [Budget::Blocks, Budget::Residual] {
        let policy = never(budget).with_coverage(1e-3);
        let outcome = check(&backend(), &structured(problem(900, 900), policy));
        // 8 query blocks of 128: the window of 256 tokens lists each one's own block and two before.
        assert_eq!(selected(&outcome, 0), (0, 1 + 2 + 6 * 3));
    }
}

#[test]
fn the_papers_budget_counts_the_window_a_second_time() {
    let policy = never(Budget::Paper).with_coverage(0.5);
    let case = structured(problem(900, 900), policy);
    let residual = structured(problem(900, 900), policy.with_budget(Budget::Residual));
    let (paper, _) = selected(&check(&backend(), &case), 0);
    let (residual, _) = selected(&check(&backend(), &residual), 0);
    assert!(paper > residual, "{paper} {residual}");
}

#[test]
fn full_coverage_leaves_nothing_that_weighs() {
    for budget in BUDGETS {
        let policy = never(budget).with_coverage(1.0);
        let outcome = check(&backend(), &structured(problem(700, 700), policy));
        let report = outcome.found.report.expect("the CPU reports");
        for head in report.heads {
            let coverage = head.sampled_coverage.expect("rows were sampled");
            assert!(coverage > 0.999_99, "{coverage}");
        }
    }
}

#[test]
fn segments_spend_their_mass_by_themselves() {
    // Three segments, the last one short, and as a chunk that begins in the second.
    for (q_len, k_len) in [(17_000, 17_000), (6_000, 17_000)] {
        for budget in BUDGETS {
            let problem = narrow(q_len, k_len);
            let policy = never(budget).with_coverage(0.9).with_row_stride(64);
            let case = Case {
                row_step: 500,
                ..structured(problem, policy)
            };
            let outcome = check(&Cpu::default(), &case);
            let units = match budget {
                Budget::Rows => 0,
                Budget::Blocks => 3,
                _ => 1,
            };
            assert_eq!(outcome.found.units.len(), units);
        }
    }
}

#[test]
fn later_segments_are_sampled_at_wider_strides_up_to_64() {
    // Three segments, the last one short; as a chunk that begins within the second; and one query at the end.
    for (q_len, row_stride, stride_doubles_from, rows) in [
        (19_999, 16, 8192, [512, 256, 57]),
        (19_999, 20, 8193, [409, 410, 91]),
        (19_999, 100, 8192, [81, 82, 37]),
        (7001, 20, 8192, [0, 85, 57]),
        (7001, 20, 4096, [0, 53, 57]),
        (7001, 32, 1, [0, 53, 57]),
        (7001, 100, 1, [0, 34, 37]),
        (1, 16, 8192, [0, 0, 1]),
    ] {
        let problem = narrow(q_len, 19_999);
        let policy = never(Budget::Blocks)
            .with_coverage(0.9)
            .with_row_stride(row_stride)
            .with_stride_doubles_from(stride_doubles_from);
        let case = Case {
            row_step: 500,
            ..structured(problem, policy)
        };
        let outcome = check(&Cpu::default(), &case);
        let sampled: Vec<usize> = outcome.found.units.iter().map(|unit| unit.rows).collect();
        assert_eq!(sampled, rows, "{problem:?}, {policy:?}");
    }
}

#[test]
fn budgets_of_single_keys_sample_all_rows_alike() {
    for budget in [Budget::Residual, Budget::Paper] {
        let [even, doubling] = [usize::MAX, 1].map(|stride_doubles_from| {
            let problem = narrow(9000, 9000);
            let policy = never(budget)
                .with_row_stride(32)
                .with_stride_doubles_from(stride_doubles_from);
            let case = Case {
                row_step: 500,
                ..structured(problem, policy)
            };
            check(&Cpu::default(), &case)
        });
        assert_eq!(even.found.sampled, doubling.found.sampled);
        assert_eq!(even.mask, doubling.mask);
    }
}

#[test]
fn heads_that_gain_nothing_fall_back_to_dense_and_others_do_not() {
    let problem = problem(2048, 2048);
    let policy = Policy::of(Budget::Blocks).with_window(Window::Tokens(200));
    let mut case = structured(problem, policy.with_coverage(0.9));
    case.row_step = 40;
    // The second head looks at nothing in particular, so nearly every block is needed.
    let mut qkv = case.inputs();
    for row in 0..2048 {
        qkv.q.row_mut(0, 1, row).fill(0.0);
    }
    case.attend = Attend::Policy(policy.with_coverage(1.0));
    for row in 0..2048 {
        qkv.q.row_mut(0, 0, row).iter_mut().for_each(|x| *x *= 5.0);
    }
    let outcome = testkit::runner::check_with(&Cpu::default(), &case, &qkv);
    let Mask::Heads(heads) = &outcome.mask else {
        panic!("long enough to select")
    };
    assert!(!heads[0].dense && heads[1].dense);
}

#[test]
fn short_problems_are_dense_outright_unless_told_never() {
    let policy = never(Budget::Blocks).with_fallback(Fallback::Auto);
    let below = BREAK_EVEN_TOKENS - 1;
    let outcome = check(&backend(), &structured(problem(below, below), policy));
    assert_eq!(outcome.mask, Mask::Dense);
    assert!(outcome.found.units.is_empty());

    let long = problem(BREAK_EVEN_TOKENS, BREAK_EVEN_TOKENS);
    let outcome = check(&backend(), &structured(long, policy));
    assert!(!outcome.found.units.is_empty());
}

#[test]
fn few_queries_over_many_keys_run_dense_and_lose_nothing() {
    for q_len in [1, 16, 128] {
        let problem = problem(q_len, 4096);
        let decode = Case::new(problem, Attend::Policy(Policy::default()));
        let dense = Case::new(problem, Attend::Dense);
        let decoded = check(&Cpu::default(), &decode);
        let report = decoded.found.report.as_ref().expect("the CPU reports");
        assert!(
            report
                .heads
                .iter()
                .all(|head| head.path == HeadPath::BelowBreakEven)
        );
        assert_eq!(decoded.bits(), check(&Cpu::default(), &dense).bits());
    }
}
