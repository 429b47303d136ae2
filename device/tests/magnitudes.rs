//! The attention kernels on numbers of every magnitude, and on numbers that are none.

use sample_attention_device::gpu::emu::Mode;

mod attention;

use attention::case::random;
use attention::oracle::{self, Inputs};
use attention::{Case, Dtype, Kernel, launch};

const KERNELS: [Kernel; 2] = [Kernel::Portable, Kernel::HOPPER];

/// O, as [head, row, head_dim], and the log-sum-exps.
struct Answer {
    o: Vec<f64>,
    lse: Vec<f64>,
}

fn answer(case: &Case, inputs: &Inputs) -> Answer {
    let outcome = launch(case, inputs, Mode::Fast);
    let widen = |&bits: &u32| {
        f64::from(if case.output_f32 {
            f32::from_bits(bits)
        } else {
            case.dtype.widen(bits as u16)
        })
    };
    Answer {
        o: outcome.o.iter().map(widen).collect(),
        lse: outcome
            .lse
            .iter()
            .map(|&bits| f64::from(f32::from_bits(bits)))
            .collect(),
    }
}

/// Half a unit in the last place of a 16-bit number near 1.
fn rounding(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::Bf16 => 1.0 / 256.0,
        Dtype::F16 => 1.0 / 2048.0,
    }
}

/// Compares with the definition: weights and output are rounded to 16 bits, each by half a unit; values are at most `largest`.
#[track_caller]
fn agrees(case: &Case, inputs: &Inputs, largest: f64, what: &str) {
    let got = answer(case, inputs);
    let (want, _) = oracle::attention(case, inputs);
    let allowed = 2.0 * rounding(case.dtype) * largest;
    for (i, (&got, &want)) in got.o.iter().zip(&want.o).enumerate() {
        assert!(
            (got - want).abs() <= allowed || got.is_nan() && want.is_nan() || got == want,
            "{what}: O[row {}, {}] is {got}, not {want}\n{case:?}",
            i / case.head_dim,
            i % case.head_dim,
        );
    }
    for (row, (&got, &want)) in got.lse.iter().zip(&want.lse).enumerate() {
        assert!(
            (got - want).abs() <= 1e-5 + 3e-6 * want.abs()
                || got.is_nan() && want.is_nan()
                || got == want,
            "{what}: lse[row {row}] is {got}, not {want}\n{case:?}"
        );
    }
}

/// Queries and keys of one element each, so that raw scores are exact: `query(row)` · `key(key)`.
fn of_one_element(case: &Case, query: impl Fn(usize) -> f32, key: impl Fn(usize) -> f32) -> Inputs {
    let rounded = |x| case.dtype.widen(case.dtype.round(x));
    let dim = case.head_dim;
    let mut inputs = Inputs::random(case);
    inputs.q.fill(0.0);
    inputs.k.fill(0.0);
    for (row, element) in inputs.q.iter_mut().step_by(dim).enumerate() {
        *element = rounded(query(row));
    }
    for (row, element) in inputs.k.iter_mut().step_by(dim).enumerate() {
        *element = rounded(key(row));
    }
    inputs
}

/// Dtypes and head_dims that alternate with an index.
fn varied(kernel: Kernel, q_len: usize, k_len: usize, index: usize) -> Case {
    kernel
        .causal(q_len, k_len)
        .head_dim([64, 128][index / 2 % 2])
        .dtype([Dtype::Bf16, Dtype::F16][index % 2])
}

#[test]
fn one_token_is_its_value_whatever_its_score() {
    for kernel in KERNELS {
        for head_dim in [64, 128] {
            let exponents = 0..=17;
            let numbers = exponents.map(|exponent| 10f32.powi(exponent) * 1.37);
            for number in [29_952.0, 133_120.0, 65_504.0].into_iter().chain(numbers) {
                for dtype in [Dtype::Bf16, Dtype::F16] {
                    if dtype == Dtype::F16 && number > 65_504.0 {
                        continue;
                    }
                    for softmax_scale in [0.125, -0.125, 1.0e-20, 1.0] {
                        let mut case = kernel.causal(1, 1).head_dim(head_dim).dtype(dtype);
                        case.softmax_scale = softmax_scale;
                        let value = dtype.widen(dtype.round(number));
                        let mut inputs = Inputs::random(&case);
                        inputs.q.fill(value);
                        inputs.k.fill(value);
                        inputs.v.fill(value);
                        let got = answer(&case, &inputs);
                        let value = f64::from(value);
                        assert!(
                            got.o.iter().all(|&o| o == value),
                            "{number}: {:?}\n{case:?}",
                            got.o[0]
                        );
                        let lse = value * value * head_dim as f64 * f64::from(softmax_scale);
                        assert!(
                            (got.lse[0] - lse).abs() <= 3e-6 * lse.abs() + 1e-6,
                            "{number}: lse {}, not {lse}\n{case:?}",
                            got.lse[0]
                        );
                    }
                }
            }
        }
    }
}

/// Raw scores of ±`magnitude` and somewhat less, in several tiles, with a scale that makes of them logits of `logit`.
#[test]
fn logits_of_every_magnitude_and_sign_agree_with_the_definition() {
    let spread = random(1000, 5);
    for kernel in KERNELS {
        for (index, logit_exponent) in (0..=37).enumerate() {
            for (turn, magnitude) in [1.0e-3f32, 1.0, 3.0e4, 1.0e9, 1.0e30]
                .into_iter()
                .enumerate()
            {
                let logit = 1.7 * 10f32.powi(logit_exponent);
                let mut case = varied(kernel, 130, 261, index + turn);
                let largest = if case.dtype == Dtype::F16 {
                    1.0e9
                } else {
                    1.0e36
                };
                if magnitude > largest {
                    continue;
                }
                let scale = f64::from(logit) / f64::from(magnitude);
                if !(1.0e-44..1.0e38).contains(&scale) {
                    continue;
                }
                for sign in [1.0, -1.0] {
                    case.softmax_scale = sign * scale as f32;
                    let size = magnitude.sqrt();
                    // The sign of the query gives rows whose scores are all negative, and a few of every other kind.
                    let inputs = of_one_element(
                        &case,
                        |row| if row % 5 < 3 { size } else { -size },
                        |key| {
                            let near = size * (1.0 - (spread[key].abs() * 3.0).floor() / 128.0);
                            match key % 67 {
                                3 => -near,
                                5 => 0.0,
                                _ => near,
                            }
                        },
                    );
                    agrees(
                        &case,
                        &inputs,
                        1.0,
                        &format!("logit {logit:e}, raw {magnitude:e}"),
                    );
                }
            }
        }
    }
}

/// A slow way up: each tile's maximum is above all before, by less than the slack, more, and much more.
#[test]
fn maxima_that_grow_from_negative_to_positive_agree_with_the_definition() {
    for kernel in [
        KERNELS[0],
        KERNELS[1],
        Kernel::Hopper {
            rescale_threshold_log2: 0.0,
        },
    ] {
        for (index, step) in [0.01, 1.0, 3.0, 200.0, 1.0e5, 1.0e12]
            .into_iter()
            .enumerate()
        {
            for dtype in [Dtype::Bf16, Dtype::F16] {
                let mut case = varied(kernel, 70, 900, index).dtype(dtype).not_causal();
                case.softmax_scale = step;
                let up = of_one_element(&case, |_| 1.0, |key| (key / 32) as f32 - 14.0);
                agrees(&case, &up, 1.0, &format!("up by {step}"));
                let down = of_one_element(
                    &case,
                    |row| 1.0 - (row % 3) as f32,
                    |key| 14.0 - (key / 32) as f32,
                );
                agrees(&case, &down, 1.0, &format!("down by {step}"));
            }
        }
    }
}

#[test]
fn a_scale_of_zero_or_nearly_is_what_it_says() {
    for kernel in KERNELS {
        for dtype in [Dtype::Bf16, Dtype::F16] {
            for size in [1.0, 250.0, 1.0e18] {
                if dtype == Dtype::F16 && size > 65_504.0 {
                    continue;
                }
                for scale in [
                    0.0, 1.0e-45, 1.0e-40, 1.0e-38, 3.0e-37, 1.0e-36, 1.0e-35, 1.0e-30, 1.0e-20,
                ] {
                    for softmax_scale in [scale, -scale] {
                        let mut case = kernel.causal(130, 200).dtype(dtype);
                        case.softmax_scale = softmax_scale;
                        let inputs = of_one_element(
                            &case,
                            |row| size * (1.0 + (row % 3) as f32),
                            |key| size * ((key % 11) as f32 - 5.0),
                        );
                        agrees(
                            &case,
                            &inputs,
                            1.0,
                            &format!("{size}, scale {softmax_scale}"),
                        );
                    }
                }
            }
        }
        // Products that do not fit into f32 are finite numbers, 0 times which is 0.
        let mut case = kernel.causal(9, 9);
        case.softmax_scale = 0.0;
        let inputs = of_one_element(
            &case,
            |_| 1.0e30,
            |key| if key < 4 { 1.0e30 } else { -1.0e30 },
        );
        agrees(&case, &inputs, 1.0, "products beyond f32");
    }
}

/// The mean of equal values is the value, at the ends of the type's range too.
#[test]
fn means_of_values_at_the_ends_of_the_range_are_finite() {
    for kernel in KERNELS {
        for (dtype, value, keys) in [
            (Dtype::F16, 65_504.0, 32_768),
            (Dtype::F16, -65_504.0, 4097),
            (Dtype::F16, 6.1e-5, 1000),
            (Dtype::Bf16, 1.0e37, 1000),
            (Dtype::Bf16, -3.3895e38, 32_768),
            (Dtype::Bf16, 1.0e-37, 1000),
        ] {
            let mut case = kernel.causal(1, keys).dtype(dtype).not_causal();
            case.softmax_scale = 1.0;
            let mut inputs = of_one_element(&case, |_| 0.0, |_| 0.0);
            let value = dtype.widen(dtype.round(value));
            inputs.v.fill(value);
            for output_f32 in [false, true] {
                case.output_f32 = output_f32;
                let got = answer(&case, &inputs);
                let want = f64::from(value);
                let error = (got.o[0] / want - 1.0).abs();
                assert!(
                    error <= rounding(dtype),
                    "{value} over {keys} keys: {}\n{case:?}",
                    got.o[0]
                );
            }
        }
        // An infinite value is no value at the end of the range.
        let mut case = kernel.causal(1, 200).not_causal();
        case.softmax_scale = 1.0;
        let mut inputs = of_one_element(&case, |_| 0.0, |_| 0.0);
        inputs.v[64 * 150] = f32::INFINITY;
        inputs.v[64 * 150 + 1] = f32::NAN;
        let got = answer(&case, &inputs);
        assert!(got.o[0] == f64::INFINITY && got.o[1].is_nan() && got.o[2].is_finite());
    }
}

/// Adding the same number a hundred thousand times keeps its bits to what twice rounding it to 16 bits takes.
#[test]
fn long_even_attention_does_not_drift() {
    for kernel in KERNELS {
        for dtype in [Dtype::Bf16, Dtype::F16] {
            for keys in [4096, 131_072] {
                let mut case = kernel
                    .causal(1, keys)
                    .dtype(dtype)
                    .not_causal()
                    .output_f32();
                case.softmax_scale = 1.0;
                let mut inputs = of_one_element(&case, |_| 0.0, |_| 0.0);
                let value = dtype.widen(dtype.round(0.7));
                inputs.v.fill(value);
                let got = answer(&case, &inputs);
                let error = (got.o[0] / f64::from(value) - 1.0).abs();
                assert!(
                    error <= rounding(dtype),
                    "{error:.2e} over {keys} keys\n{case:?}"
                );
                let lse = (keys as f64).ln();
                assert!((got.lse[0] - lse).abs() < 1e-5);
            }
        }
    }
}

/// The rule of [`sparse_flash`](sample_attention_device::sparse_flash), "Non-finite input".
#[test]
fn scores_that_are_no_numbers_spoil_their_rows_alone() {
    for kernel in KERNELS {
        for dtype in [Dtype::Bf16, Dtype::F16] {
            for causal in [true, false] {
                let mut case = kernel.causal(140, 140).dtype(dtype);
                case.causal = causal;
                for scale in [0.5, -0.5, 1.0e-40, 1.0e20, 0.0] {
                    case.softmax_scale = scale;
                    // Rows 0 to 9 see +∞ · q, the others −∞ · q, from key 30 on; in rows from 20 on with a multiple of 7, q is NaN.
                    let inputs = of_one_element(
                        &case,
                        |row| match row {
                            100 => f32::NAN,
                            row if row % 2 == 0 => 1.0,
                            _ => -1.0,
                        },
                        |key| if key == 30 { f32::INFINITY } else { 0.25 },
                    );
                    agrees(
                        &case,
                        &inputs,
                        1.0,
                        &format!("an infinite key, scale {scale}"),
                    );
                    let inputs = of_one_element(
                        &case,
                        |row| if row % 2 == 0 { 1.0 } else { -1.0 },
                        |_| f32::NEG_INFINITY,
                    );
                    let got = answer(&case, &inputs);
                    for (row, (o, &lse)) in got.o.chunks(64).zip(&got.lse).enumerate() {
                        assert!(o.iter().all(|o| o.is_nan()), "row {row}\n{case:?}");
                        // Times 0 an infinite score is no number; times −1 it is +∞.
                        let below = scale != 0.0 && (row % 2 == 0) == (scale > 0.0);
                        assert_eq!(
                            lse == f64::NEG_INFINITY,
                            below,
                            "row {row}: {lse}\n{case:?}"
                        );
                        assert_eq!(lse.is_nan(), !below, "row {row}: {lse}\n{case:?}");
                    }
                }
            }
        }
        // A row that sees no key is zero, whatever the keys are.
        let mut case = kernel.causal(150, 20);
        case.softmax_scale = 0.5;
        let inputs = of_one_element(&case, |_| 1.0, |_| f32::NEG_INFINITY);
        let got = answer(&case, &inputs);
        assert!(got.o[..130 * 64].iter().all(|&o| o == 0.0));
        assert!(got.o[130 * 64..].iter().all(|o| o.is_nan()));
        assert!(got.lse.iter().all(|&lse| lse == f64::NEG_INFINITY));
    }
}
