//! The budget of rows: each sampled row reaches its coverage with the fewest blocks, and no query block's list depends on another's.

use proptest::prelude::*;
use sample_attention::{Budget, Dtype, Fallback, Policy, Problem, Window};
use testkit::oracle::{self, Mask};
use testkit::runner::{Attend, Case, Cpu, Data, Outcome, check, check_with, run_with};
use testkit::tensor::{Qkv, Tensor};

fn rows(change: impl FnOnce(&mut Policy)) -> Policy {
    let mut policy = Policy::of(Budget::Rows)
        .with_coverage(0.8)
        .with_row_stride(8)
        .with_window(Window::Tokens(128))
        .with_fallback(Fallback::Never);
    change(&mut policy);
    policy
}

fn problem(q_len: usize, k_len: usize) -> Problem {
    Problem::causal(k_len, 16, Dtype::F32)
        .with_q_len(q_len)
        .with_heads(2, 1)
}

fn structured(problem: Problem, policy: Policy) -> Case {
    Case {
        data: Data::Structured,
        row_step: 1 + problem.q_len / 40,
        ..Case::new(problem, Attend::Policy(policy))
    }
}

fn listed(outcome: &Outcome, head: usize, query_block: usize) -> Vec<usize> {
    let selection = outcome.found.selection.as_ref().expect("it selects");
    selection.head(0, head).blocks(query_block).collect()
}

/// Rows `start..end` of a prompt, over the keys up to there.
fn chunk(qkv: &Qkv, start: usize, end: usize) -> Qkv {
    let slice = |tensor: &Tensor, start: usize| {
        let [batch, heads, _, dim] = tensor.shape;
        let mut slice = Tensor::filled([batch, heads, end - start, dim], 0.0);
        for (b, h) in (0..batch).flat_map(|b| (0..heads).map(move |h| (b, h))) {
            for token in start..end {
                let row = tensor.row(b, h, token).to_vec();
                slice.row_mut(b, h, token - start).copy_from_slice(&row);
            }
        }
        slice
    };
    Qkv {
        q: slice(&qkv.q, start),
        k: slice(&qkv.k, 0),
        v: slice(&qkv.v, 0),
    }
}

#[test]
fn every_sampled_row_reaches_its_coverage_or_keeps_all() {
    for coverage in [0.5, 0.9, 0.999, 1.0] {
        for data in [Data::Normal, Data::Structured, Data::Spiky] {
            let policy = rows(|p| p.coverage = coverage);
            let problem = problem(1500, 1700);
            let case = Case {
                data,
                ..structured(problem, policy)
            };
            let qkv = case.inputs();
            let outcome = check_with(&Cpu::default(), &case, &qkv);
            let Mask::Heads(masks) = &outcome.mask else {
                panic!("it selects")
            };
            for (head, mask) in masks.iter().enumerate() {
                for row in oracle::row_demands(&problem, &policy, &qkv, head, |_| true) {
                    let listed = mask.blocks[row.query_block].iter().zip(&row.mass);
                    let kept = listed.filter(|(listed, _)| **listed).map(|(_, mass)| mass);
                    let kept = row.covered + kept.sum::<f64>();
                    assert!(kept >= f64::from(coverage) - 1e-5, "{kept} of {coverage}");
                }
            }
        }
    }
}

#[test]
fn equal_masses_go_to_the_lower_block() {
    // All keys are the same, so a row that sees n keys gives each block 128 / n, and the window the rest.
    let policy = rows(|p| {
        p.coverage = 0.55;
        p.sinks = 0;
        p.row_stride = 128;
    });
    let case = Case {
        data: Data::Flat,
        ..structured(problem(1024, 1024), policy)
    };
    let outcome = check(&Cpu::default(), &case);
    for query_block in 0..8usize {
        // The window of 128 tokens is the diagonal block and the one before.
        let window = query_block.saturating_sub(1)..=query_block;
        let needed = (0.55 * (query_block + 1) as f64).ceil() as usize;
        let others = needed.saturating_sub(window.clone().count());
        let expected: Vec<usize> = (0..others).chain(window).collect();
        assert_eq!(listed(&outcome, 0, query_block), expected);
    }
}

#[test]
fn a_query_block_without_a_sampled_row_lists_every_block() {
    let policy = rows(|p| {
        p.row_stride = 500;
        p.coverage = 0.01;
    });
    let outcome = check(&Cpu::default(), &structured(problem(1100, 1100), policy));
    // Rows 499, 999 and 1099 stand in query blocks 3, 7 and 8.
    for query_block in 0..9 {
        let all = listed(&outcome, 1, query_block).len() == query_block + 1;
        assert_eq!(all, !matches!(query_block, 3 | 7 | 8), "{query_block}");
    }
}

#[test]
fn rows_that_are_not_finite_ask_for_nothing() {
    let policy = rows(|_| {});
    let case = structured(problem(1300, 1300), policy);
    let clean = run_with(&Cpu::default(), &case, &case.inputs());
    for poison in [f32::NAN, f32::INFINITY] {
        let mut qkv = case.inputs();
        // One sampled row of query block 8, and all rows of query block 9.
        for row in [8 * 128 + 15].into_iter().chain(9 * 128..10 * 128) {
            qkv.q.row_mut(0, 0, row)[3] = poison;
        }
        let outcome = run_with(&Cpu::default(), &case, &qkv);
        let Mask::Heads(masks) = &outcome.mask else {
            panic!("it selects")
        };
        let demands = oracle::row_demands(&case.problem, &policy, &qkv, 0, |_| true);
        let of_block = |block| demands.iter().filter(move |row| row.query_block == block);
        assert_eq!((of_block(8).count(), of_block(9).count()), (15, 0));
        // What the other rows of its block ask for, no more.
        let asked = |block: usize| of_block(8).any(|row| row.mass[block] > 0.0);
        assert!((0..7).all(|block| !masks[0].blocks[8][block] || asked(block)));
        assert!(listed(&outcome, 0, 8).len() <= listed(&clean, 0, 8).len());
        assert_eq!(listed(&outcome, 0, 9), (0..=9).collect::<Vec<_>>());
        for block in (0..8).chain([10]) {
            assert_eq!(listed(&outcome, 0, block), listed(&clean, 0, block));
        }
        assert_eq!(
            outcome.found.report.unwrap().heads[1],
            clean.found.report.as_ref().unwrap().heads[1]
        );
    }
}

#[test]
fn a_key_that_is_not_finite_leaves_no_row_below_it_sparse() {
    let problem = problem(1000, 1000).with_heads(2, 2);
    let case = structured(problem, rows(|_| {}));
    let clean = run_with(&Cpu::default(), &case, &case.inputs());
    let mut qkv = case.inputs();
    qkv.k.row_mut(0, 1, 300)[0] = f32::NAN;
    let outcome = run_with(&Cpu::default(), &case, &qkv);
    // Head 1 alone reads that key, which stands in block 2.
    for block in 0..8 {
        assert_eq!(listed(&outcome, 0, block), listed(&clean, 0, block));
    }
    for block in 3..8 {
        assert_eq!(listed(&outcome, 1, block).len(), block + 1);
    }
}

#[test]
fn the_tail_is_sampled_at_its_own_stride() {
    for (q_len, k_len, tail, tail_stride) in [
        (1300, 1300, 256, 4),
        (1300, 1300, 1, 1),
        (1300, 1300, 100, 50),
        (1300, 1300, 300, 1),
        (1300, 1300, 5000, 3),
        (200, 1300, 256, 2),
        (900, 500, 130, 1),
    ] {
        let policy = rows(|p| (p.row_stride, p.tail, p.tail_stride) = (32, tail, tail_stride));
        let outcome = check(&Cpu::default(), &structured(problem(q_len, k_len), policy));
        let sampled: Vec<usize> = (outcome.found.sampled.iter())
            .filter(|row| row.q_head == 0)
            .map(|row| row.row + k_len - q_len)
            .collect();
        let expected: Vec<usize> = (k_len.saturating_sub(q_len)..k_len)
            .filter(|p| match p + tail >= k_len {
                true => (p + 1) % tail_stride == 0 || p + 1 == k_len,
                false => (p + 1) % 32 == 0,
            })
            .collect();
        assert_eq!(sampled, expected, "{q_len} {k_len} {tail} {tail_stride}");
    }
}

#[test]
fn a_tail_changes_no_query_block_before_it() {
    let without = structured(problem(1500, 1500), rows(|p| p.row_stride = 64));
    let with = structured(
        problem(1500, 1500),
        rows(|p| (p.row_stride, p.tail, p.tail_stride) = (64, 256, 2)),
    );
    let qkv = without.inputs();
    let [without, with] = [without, with].map(|case| run_with(&Cpu::default(), &case, &qkv));
    // The tail begins within query block 9.
    for block in 0..9 {
        assert_eq!(listed(&without, 0, block), listed(&with, 0, block));
    }
    assert!((9..12).any(|block| listed(&without, 0, block) != listed(&with, 0, block)));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn chunks_of_whole_blocks_are_the_whole_prompt_to_the_bit(
        len in 300usize..2200,
        cut in 1usize..16,
        stride_log2 in 0u32..8,
        coverage in 0.3f32..=1.0,
        window in 1usize..400,
        tail in prop_oneof![Just(0usize), 1usize..300],
        dtype in prop_oneof![Just(Dtype::F32), Just(Dtype::Bf16)],
        seed in any::<u64>(),
    ) {
        let policy = rows(|p| {
            p.coverage = coverage;
            p.row_stride = 1 << stride_log2;
            p.window = Window::Tokens(window);
            p.tail = tail;
        });
        let whole_problem = Problem::causal(len, 16, dtype).with_heads(2, 1);
        let whole_case = Case { seed, ..structured(whole_problem, policy) };
        let qkv = whole_case.inputs();
        let whole = run_with(&Cpu::default(), &whole_case, &qkv);
        // The last chunk holds the tail.
        let cut = (cut * 128).min((len.saturating_sub(tail) / 128) * 128);
        for (start, end) in [(0, cut), (cut, len)] {
            if start == end {
                continue;
            }
            let is_last = end == len;
            let policy = policy.with_tail(if is_last { tail } else { 0 }, 4);
            let part = whole_problem.with_q_len(end - start).with_k_len(end);
            let case = Case { problem: part, attend: Attend::Policy(policy), ..whole_case.clone() };
            let cpu = Cpu { threads: 1, ..Cpu::default() };
            let part = run_with(&cpu, &case, &chunk(&qkv, start, end));
            for head in 0..2 {
                for block in start / 128..end.div_ceil(128) {
                    prop_assert_eq!(listed(&part, head, block), listed(&whole, head, block));
                }
                for row in start..end {
                    prop_assert_eq!(part.o.row(0, head, row - start), whole.o.row(0, head, row));
                    prop_assert_eq!(
                        part.lse[head * (end - start) + row - start].to_bits(),
                        whole.lse[head * len + row].to_bits()
                    );
                }
            }
        }
    }

    #[test]
    fn other_query_blocks_do_not_change_a_list(
        len in 500usize..1800,
        block in 0usize..14,
        threads in 1usize..4,
        seed in any::<u64>(),
    ) {
        let case = Case { seed, ..structured(problem(len, len), rows(|_| {})) };
        let block = block.min((len - 1) / 128);
        let qkv = case.inputs();
        let mut changed = qkv.clone();
        for row in (0..len).filter(|row| row / 128 != block) {
            changed.q.row_mut(0, 0, row).iter_mut().for_each(|x| *x *= -3.0);
        }
        let before = run_with(&Cpu::default(), &case, &qkv);
        let after = run_with(&Cpu { threads, ..Cpu::default() }, &case, &changed);
        prop_assert_eq!(listed(&before, 0, block), listed(&after, 0, block));
    }
}
