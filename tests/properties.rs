//! Random problems, policies, layouts and lists: everything that the runner checks holds for all of them.

use proptest::prelude::*;
use sample_attention::{Budget, Dtype, Fallback, Policy, Problem, Selection, Window};
use testkit::random::Random;
use testkit::runner::{Attend, Case, Cpu, Data, Layout, check, run_with};

fn problems() -> impl Strategy<Value = Problem> {
    let dtype = prop_oneof![Just(Dtype::F32), Just(Dtype::F16), Just(Dtype::Bf16)];
    let len = || prop_oneof![1usize..20, 100usize..150, 250usize..260, 200usize..700];
    (
        1usize..3,
        1usize..4,
        1usize..4,
        len(),
        len(),
        1usize..9,
        dtype,
    )
        .prop_map(|(batch, kv_heads, group, q_len, k_len, dim, dtype)| {
            Problem::causal(k_len, 8 * dim, dtype)
                .with_batch(batch)
                .with_heads(kv_heads * group, kv_heads)
                .with_q_len(q_len)
        })
}

fn policies() -> impl Strategy<Value = Policy> {
    let budget = prop_oneof![
        Just(Budget::Rows),
        Just(Budget::Blocks),
        Just(Budget::Residual),
        Just(Budget::Paper)
    ];
    let window = prop_oneof![
        (1usize..400).prop_map(Window::Tokens),
        (0.001f32..1.0).prop_map(Window::Ratio)
    ];
    let tail = (0usize..300, 1usize..40);
    (
        budget,
        0.01f32..=1.0,
        1usize..200,
        window,
        0usize..300,
        tail,
    )
        .prop_map(
            |(budget, coverage, row_stride, window, sinks, (tail, tail_stride))| {
                Policy::default()
                    .with_budget(budget)
                    .with_coverage(coverage)
                    .with_row_stride(row_stride)
                    .with_window(window)
                    .with_sinks(sinks)
                    .with_tail(tail, tail_stride)
                    .with_fallback(Fallback::Never)
            },
        )
}

fn circumstances() -> impl Strategy<Value = (Layout, Data, bool, u64)> {
    let data = prop_oneof![
        Just(Data::Normal),
        Just(Data::Structured),
        Just(Data::Flat),
        Just(Data::Spiky)
    ];
    (
        prop::sample::select(&Layout::ALL[..]),
        data,
        any::<bool>(),
        any::<u64>(),
    )
}

fn case(
    problem: Problem,
    attend: Attend,
    (layout, data, wide, seed): (Layout, Data, bool, u64),
) -> Case {
    Case {
        layout,
        data,
        seed,
        output: if wide { Dtype::F32 } else { problem.dtype },
        row_step: 1 + problem.q_len / 60,
        ..Case::new(problem, attend)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn dense_attention_is_the_oracles(
        problem in problems(),
        causal in any::<bool>(),
        circumstances in circumstances(),
    ) {
        check(&Cpu::default(), &case(problem.with_causal(causal), Attend::Dense, circumstances));
    }

    #[test]
    fn policies_select_the_smallest_sets_and_attend_to_exactly_them(
        problem in problems(),
        policy in policies(),
        circumstances in circumstances(),
    ) {
        check(&Cpu { coverage: true, ..Cpu::default() }, &case(problem, Attend::Policy(policy), circumstances));
    }

    #[test]
    fn own_lists_are_attended_to_exactly(
        problem in problems(),
        causal in any::<bool>(),
        shares in (0.0..0.5, 0.0..0.2, 0usize..300),
        circumstances in circumstances(),
    ) {
        let problem = problem.with_causal(causal);
        let (block_share, stripe_share, sinks) = shares;
        let mut random = Random::new(circumstances.3);
        let mut selection = Selection::new(&problem).unwrap();
        selection.set_sinks(sinks);
        let query_blocks = if causal { problem.k_len } else { problem.q_len }.div_ceil(128);
        for head in 0..problem.q_heads {
            let stripes: Vec<u32> = (0..problem.k_len as u32).filter(|_| random.chance(stripe_share)).collect();
            selection.set_stripes(0, head, &stripes).unwrap();
            for query_block in 0..query_blocks {
                let blocks: Vec<usize> =
                    (0..problem.k_len.div_ceil(128)).filter(|_| random.chance(block_share)).collect();
                selection.set_blocks(problem.batch - 1, head, query_block, &blocks).unwrap();
            }
        }
        check(&Cpu::default(), &case(problem, Attend::Own(selection), circumstances));
    }

    #[test]
    fn layout_and_threads_do_not_change_a_bit(
        problem in problems(),
        policy in policies(),
        circumstances in circumstances(),
        threads in 1usize..6,
    ) {
        let contiguous = case(problem, Attend::Policy(policy), (Layout::Bhsd, circumstances.1, circumstances.2, circumstances.3));
        let strided = Case { layout: circumstances.0, ..contiguous.clone() };
        let qkv = contiguous.inputs();
        let one = run_with(&Cpu { threads: 1, workspace_fill: 0, coverage: true, ..Cpu::default() }, &contiguous, &qkv);
        let many = run_with(&Cpu { threads, workspace_fill: 0xff, coverage: true, ..Cpu::default() }, &strided, &qkv);
        prop_assert_eq!(one.bits(), many.bits());
        prop_assert_eq!(one.found.units, many.found.units);
        prop_assert_eq!(one.found.selection, many.found.selection);
        prop_assert_eq!(one.found.coverage, many.found.coverage);
        prop_assert_eq!(one.found.report.map(|r| r.heads), many.found.report.map(|r| r.heads));
    }
}
