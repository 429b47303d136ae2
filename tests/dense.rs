//! Dense attention: every shape, head mapping, element type and length that decides how tiles are cut.

use sample_attention::{Dtype, Problem};
use testkit::runner::{Attend, Case, Cpu, Data, Layout, PUBLISHED_SHAPES, check, check_all};

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

fn published_shapes(q_heads: usize, kv_heads: usize) {
    let shapes = PUBLISHED_SHAPES.into_iter().enumerate();
    let cases = shapes.flat_map(|(index, (q_len, k_len))| {
        [64, 128].map(|head_dim| {
            // All five combinations meet every head mapping; each shape meets two of them.
            let (dtype, output) = DTYPES[(index + head_dim / 64) % DTYPES.len()];
            let problem = problem(q_len, k_len, head_dim, dtype).with_heads(q_heads, kv_heads);
            Case {
                output,
                layout: Layout::ALL[index % Layout::ALL.len()],
                seed: index as u64,
                row_step: 1 + q_heads * q_len / 400,
                ..Case::new(problem, Attend::Dense)
            }
        })
    });
    check_all(&Cpu::default(), cases);
}

#[test]
fn published_shapes_with_a_key_head_for_every_query_head() {
    published_shapes(2, 2);
}

#[test]
fn published_shapes_with_one_key_head() {
    published_shapes(3, 1);
}

#[test]
fn published_shapes_with_eight_query_heads_for_each_key_head() {
    published_shapes(16, 2);
}

#[test]
fn lengths_around_a_tile_with_fewer_as_many_and_more_queries_than_keys() {
    let lengths = [1, 31, 33, 127, 128, 129, 257];
    for (index, q_len) in lengths.into_iter().enumerate() {
        for k_len in lengths {
            for causal in [true, false] {
                let (dtype, output) = DTYPES[(index + k_len) % DTYPES.len()];
                let problem = problem(q_len, k_len, 16, dtype).with_causal(causal);
                let case = Case {
                    output,
                    ..Case::new(problem, Attend::Dense)
                };
                check(
                    &Cpu {
                        coverage: true,
                        ..Cpu::default()
                    },
                    &case,
                );
            }
        }
    }
}

#[test]
fn every_head_dim_up_to_256() {
    let cases = (8..=256).step_by(8).map(|head_dim| {
        let (dtype, output) = DTYPES[head_dim / 8 % DTYPES.len()];
        Case {
            output,
            layout: Layout::Sliced,
            ..Case::new(problem(70, 150, head_dim, dtype), Attend::Dense)
        }
    });
    check_all(&Cpu::default(), cases);
}

#[test]
fn sequences_and_heads_do_not_mix() {
    for causal in [true, false] {
        let problem = problem(45, 140, 24, Dtype::F32)
            .with_batch(3)
            .with_heads(6, 2)
            .with_causal(causal);
        for layout in Layout::ALL {
            let case = Case {
                layout,
                ..Case::new(problem, Attend::Dense)
            };
            check(&Cpu::default(), &case);
        }
    }
}

#[test]
fn scores_of_any_spread_keep_their_precision() {
    for data in [Data::Structured, Data::Flat, Data::Spiky] {
        for (dtype, output) in DTYPES {
            let case = Case {
                data,
                output,
                ..Case::new(problem(200, 300, 64, dtype), Attend::Dense)
            };
            check(&Cpu::default(), &case);
        }
    }
}

#[test]
fn any_finite_scale_is_taken_as_it_is() {
    for softmax_scale in [0.0, -0.125, 3.0, 1e-30] {
        let problem = problem(140, 140, 32, Dtype::F32).with_softmax_scale(softmax_scale);
        check(&Cpu::default(), &Case::new(problem, Attend::Dense));
    }
}

#[test]
fn rows_before_the_first_key_are_zero_with_lse_minus_infinity() {
    for (q_len, k_len) in [(300, 1), (300, 128), (129, 128), (257, 100)] {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let case = Case::new(problem(q_len, k_len, 8, dtype), Attend::Dense);
            let outcome = check(
                &Cpu {
                    coverage: true,
                    ..Cpu::default()
                },
                &case,
            );
            for row in 0..q_len - k_len {
                assert!(outcome.o.row(0, 0, row).iter().all(|x| x.to_bits() == 0));
                assert_eq!(outcome.lse[row], f32::NEG_INFINITY);
            }
            assert!(
                outcome.lse[q_len - k_len..]
                    .iter()
                    .all(|lse| lse.is_finite())
            );
        }
    }
}

/// Thousands of weights, of which each is small beside the sum of those before.
#[test]
fn sums_of_a_hundred_thousand_weights_keep_their_bits() {
    for data in [Data::Structured, Data::Flat] {
        let case = Case {
            data,
            row_step: 9,
            ..Case::new(problem(64, 131_072, 64, Dtype::F32), Attend::Dense)
        };
        check(&Cpu::default(), &case);
    }
}
