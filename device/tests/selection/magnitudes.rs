//! Scores and scales of every magnitude: the masses are what the definition says, and every launch ends.

use sample_attention_device::gpu::emu::Mode;

use crate::case::{Case, Format, Inputs, Sampling};
use crate::check::check;
use crate::pipeline::{Budget, run};

/// Queries and keys of two elements each: scores are query(row) · key(key) + fine(key), exactly where that takes 24 bits.
fn of_two_elements(
    case: &Case,
    query: impl Fn(usize) -> f32,
    key: impl Fn(usize) -> f32,
    fine: impl Fn(usize) -> f32,
) -> Inputs {
    let mut inputs = Inputs::new(case);
    let encode = |x| case.format.encode(x);
    let place = inputs.q_place;
    for row in 0..case.q_len {
        let at = place.token(0, 0, row);
        inputs.q[at..at + case.head_dim].fill(0);
        inputs.q[at] = encode(query(row));
        inputs.q[at + 1] = encode(1.0);
    }
    let place = inputs.k_place;
    for row in 0..case.k_len {
        let at = place.token(0, 0, row);
        inputs.k[at..at + case.head_dim].fill(0);
        inputs.k[at] = encode(key(row));
        inputs.k[at + 1] = encode(fine(row));
    }
    inputs
}

fn each(run_one: impl Fn(Case, Budget, usize)) {
    let formats = [Format::Bf16, Format::F16];
    for (index, sampling) in Sampling::ALL.into_iter().enumerate() {
        for (turn, budget) in Budget::ALL.into_iter().enumerate() {
            let case = Case {
                sinks: [16, 0, 16, 130][turn],
                head_dim: [64, 128][(index + turn + 1) % 2],
                format: formats[(turn + 1) % 2],
                row_stride: 5,
                ..Case::new(500, 500).sampled_by(sampling)
            };
            run_one(case, budget, index + turn);
        }
    }
}

/// log2 of the number of keys is nothing beside such scores, and yet all that the masses are made of.
#[test]
fn equal_scores_of_every_magnitude_share_the_mass_evenly() {
    each(|case, budget, index| {
        for exponent in (0..=36).step_by(4) {
            let logit = 1.3
                * 10f32.powi(exponent)
                * if (exponent as usize + index) % 3 == 0 {
                    -1.0
                } else {
                    1.0
                };
            for size in [1.0, 3.0e4] {
                let softmax_scale = logit / size / size;
                let case = Case {
                    softmax_scale,
                    ..case.clone()
                };
                let inputs = of_two_elements(&case, |_| size, |_| size, |_| 0.0);
                let outcome = run(&case, &inputs, budget, Mode::Fast);
                check(&case, budget, &inputs, &outcome);
            }
        }
    });
}

/// Scores that differ by less than 4, on top of what all have in common.
#[test]
fn small_differences_of_large_scores_keep_their_masses() {
    each(|case, budget, _| {
        for common in [256.0, 1024.0, 4096.0, 65_536.0, 131_072.0] {
            for softmax_scale in [1.0, -1.0] {
                let case = Case {
                    softmax_scale,
                    ..case.clone()
                };
                let size = f32::sqrt(common / 256.0);
                let inputs = of_two_elements(
                    &case,
                    |row| {
                        if row % 10 < 5 {
                            size.floor() * 16.0
                        } else {
                            -size.floor() * 16.0
                        }
                    },
                    |_| 16.0 * size.floor(),
                    |key| (key * 7919 % 128) as f32 / 32.0,
                );
                let outcome = run(&case, &inputs, budget, Mode::Fast);
                check(&case, budget, &inputs, &outcome);
            }
        }
    });
}

/// Scores far from each other, by so much that every row's mass is that of its greatest ones.
#[test]
fn scores_of_every_magnitude_and_sign_keep_their_masses() {
    each(|case, budget, index| {
        for exponent in (1..=36).step_by(7) {
            for sign in [1.0, -1.0] {
                let case = Case {
                    softmax_scale: sign * 10f32.powi(exponent),
                    ..case.clone()
                };
                let inputs = of_two_elements(
                    &case,
                    |row| if row % 10 < 7 { 1.0 } else { -1.0 },
                    |key| (key * (37 + index) % 50) as f32 / 8.0 - 3.0,
                    |_| 0.0,
                );
                let outcome = run(&case, &inputs, budget, Mode::Fast);
                check(&case, budget, &inputs, &outcome);
            }
        }
    });
}

#[test]
fn a_scale_of_zero_or_nearly_is_what_it_says() {
    each(|case, budget, _| {
        for scale in [0.0, 1.0e-45, 1.0e-40, 1.0e-38, 1.0e-37, 1.0e-36, 1.0e-20] {
            for softmax_scale in [scale, -scale] {
                let case = Case {
                    softmax_scale,
                    format: Format::Bf16,
                    ..case.clone()
                };
                let inputs = of_two_elements(
                    &case,
                    |row| 1.0e18 * (1.0 + (row % 3) as f32),
                    |key| {
                        if scale < 1.0e-30 {
                            1.0e18 * ((key % 11) as f32 - 5.0)
                        } else {
                            (key % 3) as f32
                        }
                    },
                    |_| 0.0,
                );
                let outcome = run(&case, &inputs, budget, Mode::Fast);
                check(&case, budget, &inputs, &outcome);
            }
        }
    });
}

/// One element that is large, infinite or no number: the launches end, and no row has more than its mass.
#[test]
fn one_element_of_any_size_ends_and_keeps_masses_within_their_rows() {
    each(|case, budget, index| {
        for value in [
            1.0e8,
            1.0e10,
            -1.0e12,
            3.0e38,
            f32::INFINITY,
            f32::NEG_INFINITY,
            f32::NAN,
        ] {
            for softmax_scale in [0.125, 1.0e20, -1.0e20, 3.0e37] {
                for in_query in [false, true] {
                    let case = Case {
                        softmax_scale,
                        format: Format::Bf16,
                        head_dim: 64,
                        ..case.clone()
                    };
                    let mut inputs = Inputs::new(&case);
                    let key = [3, 140, 499][index % 3];
                    let bits = case.format.encode(value);
                    if in_query {
                        let at = inputs.q_place.token(0, 0, key);
                        inputs.q[at + 5] = bits;
                    } else {
                        let at = inputs.k_place.token(0, 0, key);
                        inputs.k[at + 5] = bits;
                    }
                    let outcome = run(&case, &inputs, budget, Mode::Fast);
                    let rows = (0..case.k_len).filter(|&p| case.is_sampled(p, true)).count();
                    let covered: u64 = outcome.covered.iter().sum();
                    let beyond: u64 = match budget {
                        Budget::Rows => outcome.kept.iter().sum(),
                        Budget::Paper => outcome.outside.iter().sum(),
                        Budget::Blocks | Budget::Residual => outcome.mass.iter().sum(),
                    };
                    let all = (covered + beyond) as f64 / 4_294_967_296.0;
                    // With such scales products that two stages round differently are different scores.
                    let allowed = rows as f64
                        * if budget.is_of_blocks() {
                            1.0 + 1e-4
                        } else {
                            4.0
                        };
                    assert!(all <= allowed, "{value}: {all} of {rows} rows\n{case:?}");
                }
            }
        }
    });
}
