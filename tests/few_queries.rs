//! Few queries over many keys: every shape that decides how they are packed and how keys are cut into ranges of 2048.

use sample_attention::cpu::InstructionSet;
use sample_attention::{Dtype, Problem};
use testkit::runner::{
    Attend, Case, Cpu, Data, Layout, Outcome, assert_poison_stays_where_it_is_seen, check,
    check_with, row_bits, run_with,
};
use testkit::tensor::{Qkv, Tensor};

const DTYPES: [(Dtype, Dtype); 5] = [
    (Dtype::F32, Dtype::F32),
    (Dtype::F16, Dtype::F16),
    (Dtype::F16, Dtype::F32),
    (Dtype::Bf16, Dtype::Bf16),
    (Dtype::Bf16, Dtype::F32),
];

fn problem(q_len: usize, k_len: usize, head_dim: usize, dtype: Dtype) -> Problem {
    Problem::causal(k_len, head_dim, dtype).with_q_len(q_len)
}

fn on(instruction_set: InstructionSet) -> Cpu {
    Cpu {
        instruction_set,
        ..Cpu::default()
    }
}

#[test]
fn every_number_of_queries_and_keys_agrees_with_the_oracle() {
    let mut index = 0;
    for q_len in [1, 2, 3, 4, 7, 16, 17] {
        for k_len in [1, 5, 127, 129, 2047, 2048, 2049, 2057, 4200] {
            for instruction_set in InstructionSet::available() {
                index += 1;
                let (dtype, output) = DTYPES[index % DTYPES.len()];
                let group = [1, 2, 3, 5, 8][index / 2 % 5];
                let case = Case {
                    output,
                    layout: Layout::ALL[index / 3 % Layout::ALL.len()],
                    data: [Data::Normal, Data::Structured, Data::Flat, Data::Spiky][index % 4],
                    seed: index as u64,
                    ..Case::new(
                        problem(q_len, k_len, [8, 24, 64][index % 3], dtype)
                            .with_heads(2 * group, 2)
                            .with_causal(index % 4 != 0),
                        Attend::Dense,
                    )
                };
                check(&on(instruction_set), &case);
            }
        }
    }
}

#[test]
fn every_head_dim_agrees_with_the_oracle() {
    for head_dim in (8..=256).step_by(8) {
        for instruction_set in InstructionSet::available() {
            let (dtype, output) = DTYPES[head_dim / 8 % DTYPES.len()];
            let case = Case {
                output,
                layout: Layout::Sliced,
                ..Case::new(
                    problem(3, 300, head_dim, dtype).with_heads(3, 1),
                    Attend::Dense,
                )
            };
            check(&on(instruction_set), &case);
        }
    }
}

/// More rows of a key/value head than a task takes, and more heads than the workspace holds results of.
#[test]
fn many_heads_agree_with_the_oracle() {
    let packed = problem(5, 2100, 16, Dtype::Bf16)
        .with_batch(2)
        .with_heads(90, 2);
    let heads = problem(16, 2049, 8, Dtype::Bf16)
        .with_batch(114)
        .with_heads(16, 4);
    for (problem, row_step) in [(packed, 2), (heads, 15)] {
        let case = Case {
            row_step,
            ..Case::new(problem, Attend::Dense)
        };
        check(&Cpu::default(), &case);
    }
}

#[test]
fn thread_counts_and_workspace_contents_do_not_change_a_bit() {
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let problem = problem(3, 9000, 64, dtype).with_heads(6, 2).with_batch(2);
        let case = Case::new(problem, Attend::Dense);
        let qkv = case.inputs();
        for instruction_set in InstructionSet::available() {
            let run = |threads, workspace_fill| {
                let cpu = Cpu {
                    threads,
                    workspace_fill,
                    ..on(instruction_set)
                };
                run_with(&cpu, &case, &qkv).bits()
            };
            let expected = run(1, 0);
            for (threads, fill) in [(1, 0xff), (2, 0x7f), (3, 0xff), (16, 0)] {
                assert!(expected == run(threads, fill), "{threads} threads, {dtype}");
            }
        }
    }
}

fn rows(tensor: &Tensor, batches: usize, tokens: std::ops::Range<usize>) -> Tensor {
    let [_, heads, _, dim] = tensor.shape;
    let mut part = Tensor::filled([batches, heads, tokens.len(), dim], 0.0);
    for batch in 0..batches {
        for head in 0..heads {
            for (to, from) in tokens.clone().enumerate() {
                part.row_mut(batch, head, to)
                    .copy_from_slice(tensor.row(batch, head, from));
            }
        }
    }
    part
}

/// What a query is checked with speculatively is what it is generated with, and a sequence does not depend on its batch.
#[test]
fn a_row_has_the_same_bits_whatever_is_computed_beside_it() {
    let (q_len, k_len) = (16, 4099);
    let whole = problem(q_len, k_len, 40, Dtype::Bf16)
        .with_heads(6, 2)
        .with_batch(2);
    let case = Case::new(whole, Attend::Dense);
    let qkv = case.inputs();
    let expected = run_with(&Cpu::default(), &case, &qkv);
    for tokens in [0..1, 3..7, 5..6, 8..15, 15..16, 0..16] {
        let k_len = k_len - q_len + tokens.end;
        let part = Qkv {
            q: rows(&qkv.q, 1, tokens.clone()),
            k: rows(&qkv.k, 1, 0..k_len),
            v: rows(&qkv.v, 1, 0..k_len),
        };
        let problem = whole
            .with_batch(1)
            .with_q_len(tokens.len())
            .with_k_len(k_len);
        let case = Case {
            problem,
            ..case.clone()
        };
        let got = run_with(&Cpu::default(), &case, &part);
        for head in 0..6 {
            for (row, token) in tokens.clone().enumerate() {
                let place = format!("query {token} of head {head} in {tokens:?}");
                assert_eq!(
                    row_bits(&got, head, row),
                    row_bits(&expected, head, token),
                    "{place}"
                );
            }
        }
    }
}

#[test]
fn keys_after_a_row_do_not_reach_it() {
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
        for (q_len, k_len) in [(16, 300), (9, 2050), (16, 2048), (7, 3usize)] {
            for key in [k_len - 1, k_len.saturating_sub(5)] {
                let problem = problem(q_len, k_len, 24, dtype).with_heads(4, 2);
                let case = Case::new(problem, Attend::Dense);
                assert_poison_stays_where_it_is_seen(&Cpu::default(), &case, &[key], f32::NAN);
            }
        }
    }
}

#[test]
fn infinities_and_nan_agree_with_the_oracle() {
    type Poison = fn(&mut Qkv);
    let poisons: [Poison; 6] = [
        |qkv| qkv.q.row_mut(0, 1, 2)[3] = f32::NAN,
        |qkv| qkv.k.row_mut(0, 0, 2100)[0] = f32::INFINITY,
        |qkv| qkv.k.values.fill(f32::NEG_INFINITY),
        |qkv| qkv.v.row_mut(0, 0, 2047)[5] = f32::INFINITY,
        |qkv| qkv.v.row_mut(0, 0, 2101)[5] = f32::NAN,
        |qkv| qkv.k.row_mut(0, 0, 2102).fill(f32::NAN),
    ];
    for poison in poisons {
        for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
            let case = Case::new(problem(4, 2103, 16, dtype).with_heads(2, 1), Attend::Dense);
            let mut qkv = case.inputs();
            qkv.q.values.iter_mut().for_each(|x| *x = x.abs());
            poison(&mut qkv);
            InstructionSet::available().for_each(|set| {
                check_with(&on(set), &case, &qkv);
            });
        }
    }
}

#[test]
fn rows_that_see_no_key_are_zero() {
    let case = Case::new(problem(16, 3, 8, Dtype::F32), Attend::Dense);
    let outcome = check(&Cpu::default(), &case);
    for row in 0..13 {
        assert!(outcome.o.row(0, 0, row).iter().all(|x| x.to_bits() == 0));
        assert_eq!(outcome.lse[row], f32::NEG_INFINITY);
    }
    assert!(outcome.lse[13..].iter().all(|lse| lse.is_finite()));
}

#[test]
fn means_of_the_largest_values_stay_in_range_and_a_maximum_weighs_one() {
    for (dtype, largest) in [(Dtype::F32, f32::MAX), (Dtype::F16, 65504.0)] {
        for k_len in [1, 100, 6000] {
            let case = Case::new(problem(1, k_len, 16, dtype), Attend::Dense);
            let mut qkv = case.inputs();
            qkv.q.values.fill(0.0);
            qkv.v.values.fill(largest);
            let outcome = check_with(&Cpu::default(), &case, &qkv);
            assert!(
                outcome.o.values.iter().all(|x| *x >= 0.999 * largest),
                "{k_len}"
            );
        }
    }
    // Scores of 10¹³ and more, where everything but the maximum vanishes.
    let case = Case::new(problem(1, 5000, 64, Dtype::F32), Attend::Dense);
    let mut qkv = case.inputs();
    qkv.q.values.fill(1e7);
    qkv.k.values.fill(0.0);
    qkv.k.row_mut(0, 0, 3000).fill(1e7);
    let expected = qkv.v.row(0, 0, 3000).to_vec();
    let outcome = run_with(&Cpu::default(), &case, &qkv);
    assert_eq!(outcome.o.row(0, 0, 0), expected);
}

#[test]
fn a_million_even_weights_keep_their_bits() {
    let case = Case::new(problem(1, 1 << 20, 8, Dtype::F32), Attend::Dense);
    let mut qkv = case.inputs();
    qkv.q.values.fill(0.0);
    qkv.v.values.fill(0.7);
    let outcome: Outcome = run_with(&Cpu::default(), &case, &qkv);
    for x in &outcome.o.values {
        assert!((x / 0.7 - 1.0).abs() < 1e-6, "{x}");
    }
}

#[test]
fn the_report_says_into_how_many_ranges_keys_were_cut() {
    for (q_len, k_len, ranges) in [(1, 2048, 1), (16, 2049, 2), (17, 5000, 0)] {
        let case = Case::new(problem(q_len, k_len, 8, Dtype::F32), Attend::Dense);
        let outcome = run_with(&Cpu::default(), &case, &case.inputs());
        let report = outcome.found.report.expect("the CPU reports");
        assert_eq!(report.key_ranges, ranges, "{q_len} {k_len}");
    }
}
