//! The selection kernels on the emulator, against definitions in `f64`.

mod case;
mod check;
mod lists;
mod pipeline;
mod reference;
mod references;
mod rows;
mod synthetic;

use sample_attention_device::gpu::emu::Mode;

use case::{Case, Format, Inputs, Layout, Sampling};
use check::{check, lists_of};
use pipeline::{Budget, Outcome, Slicing, run, run_in_slices};

fn run_and_check(case: &Case, budget: Budget, mode: Mode) -> Outcome {
    let inputs = Inputs::new(case);
    let outcome = run(case, &inputs, budget, mode);
    check(case, budget, &inputs, &outcome);
    outcome
}

#[test]
fn every_length_selects_what_the_definition_does() {
    for (q_len, k_len) in [
        (1, 1),
        (1, 128),
        (127, 127),
        (128, 128),
        (129, 129),
        (257, 257),
        (65, 65),
        (640, 640),
        (113, 203),
        (128, 217),
        (1, 700),
        (300, 500),
        (500, 300),
        (203, 113),
        (799, 3),
    ] {
        for sampling in Sampling::ALL {
            let case = Case::new(q_len, k_len).sampled_by(sampling);
            for budget in Budget::ALL {
                run_and_check(&case, budget, Mode::Fast);
            }
        }
    }
}

#[test]
fn heads_batches_formats_and_strides_do_not_mix() {
    let by_any = Sampling::ALL.map(|sampling| Budget::ALL.map(|budget| (sampling, budget)));
    for (sampling, budget) in by_any.into_iter().flatten() {
        for layout in [Layout::HeadMajor, Layout::TokenMajorPadded] {
            let case = Case {
                batch: 2,
                q_heads: 4,
                kv_heads: 2,
                layout,
                ..Case::new(300, 400).sampled_by(sampling)
            };
            run_and_check(&case, budget, Mode::Fast);
        }
        for (format, head_dim) in [(Format::F16, 64), (Format::F16, 128), (Format::Bf16, 128)] {
            let case = Case {
                q_heads: 2,
                head_dim,
                format,
                layout: Layout::TokenMajorPadded,
                ..Case::new(450, 450).sampled_by(sampling)
            };
            run_and_check(&case, budget, Mode::Fast);
        }
    }
}

#[test]
fn every_policy_selects_what_the_definition_does() {
    let base = Case::new(600, 600);
    let policies = [
        Case {
            sinks: 0,
            ..base.clone()
        },
        Case {
            sinks: 1,
            ..base.clone()
        },
        Case {
            sinks: 64,
            ..base.clone()
        },
        Case {
            sinks: 200,
            ..base.clone()
        },
        Case {
            sinks: 600,
            ..base.clone()
        },
        Case {
            window: 1,
            ..base.clone()
        },
        Case {
            window: 257,
            ..base.clone()
        },
        Case {
            window: 600,
            ..base.clone()
        },
        Case {
            row_stride: 3,
            ..base.clone()
        },
        Case {
            row_stride: 20,
            ..base.clone()
        },
        Case {
            row_stride: 1000,
            ..base.clone()
        },
        Case {
            coverage: 1e-6,
            ..base.clone()
        },
        Case {
            coverage: 0.5,
            ..base.clone()
        },
        Case {
            coverage: 1.0,
            ..base.clone()
        },
        Case {
            softmax_scale: 0.0,
            ..base.clone()
        },
        Case {
            softmax_scale: -0.7,
            ..base.clone()
        },
        // Scores that differ by hundreds, so that most keys are nothing to their row.
        Case {
            softmax_scale: 12.0,
            ..base.clone()
        },
        Case {
            softmax_scale: -12.0,
            ..base.clone()
        },
        Case {
            sinks: 128,
            ..base.clone()
        },
        Case {
            tail: 200,
            tail_stride: 3,
            ..base.clone()
        },
        Case {
            row_stride: 1,
            ..base
        },
    ];
    for case in policies {
        for sampling in Sampling::ALL {
            let case = case.clone().sampled_by(sampling);
            for budget in Budget::ALL {
                run_and_check(&case, budget, Mode::Fast);
            }
        }
    }
}

#[test]
fn long_prompts_select_segment_by_segment() {
    for sampling in Sampling::ALL {
        long_prompt_selects_segment_by_segment(sampling);
    }
}

fn long_prompt_selects_segment_by_segment(sampling: Sampling) {
    let case = Case {
        row_stride: 700,
        ..Case::new(9000, 9000).sampled_by(sampling)
    };
    let outcome = run_and_check(&case, Budget::Blocks, Mode::Fast);
    for budget in [Budget::Residual, Budget::Paper] {
        run_and_check(&case, budget, Mode::Fast);
    }
    // A chunk of whole segments selects what the whole prompt selects.
    let inputs = Inputs::new(&case);
    let chunk = Case {
        q_len: 9000 - 8192,
        ..case.clone()
    };
    let of_chunk = Inputs {
        q: inputs.q[8192 * case.head_dim..].to_vec(),
        ..inputs
    };
    let chunked = run(&chunk, &of_chunk, Budget::Blocks, Mode::Fast);
    let lists = lists_of(&chunk, &chunked, 0);
    assert_eq!(lists[64..], lists_of(&case, &outcome, 0)[64..]);
    let selects = lists[64..]
        .iter()
        .any(|list| list.len() > case.window_blocks());
    assert!(selects, "the second segment selects something");
}

#[test]
fn rows_thin_out_segment_by_segment() {
    for sampling in Sampling::ALL {
        // Strides 20, 40 and, instead of 80, 64; the first of them by half a segment of rows.
        let case = Case {
            row_stride: 20,
            stride_doubles_from: 8192,
            ..Case::new(17_000 - 4096, 17_000).sampled_by(sampling)
        };
        run_and_check(&case, Budget::Blocks, Mode::Fast);
    }
}

#[test]
fn slices_select_what_one_launch_does() {
    let by_any = Sampling::ALL.map(|sampling| Budget::ALL.map(|budget| (sampling, budget)));
    for (sampling, budget) in by_any.into_iter().flatten() {
        let case = Case {
            batch: 2,
            q_heads: 3,
            row_stride: 900,
            ..Case::new(8300, 8300).sampled_by(sampling)
        };
        let inputs = Inputs::new(&case);
        let whole = run(&case, &inputs, budget, Mode::Fast);
        let slicing = Slicing {
            // A sequence of 65 tiles: whole segments.
            tiles: if budget == Budget::Rows { 7 } else { 65 },
            heads: 2,
            sequences: 1,
            ..Slicing::WHOLE
        };
        let slices = run_in_slices(&case, &inputs, budget, Mode::Fast, slicing);
        assert_eq!(whole.lists, slices.lists, "{budget:?}");
        assert_eq!(whole.stripes, slices.stripes, "{budget:?}");
        assert_eq!(whole.mass, slices.mass, "{budget:?}");
        assert_eq!(whole.kept, slices.kept, "{budget:?}");
        assert_eq!(whole.dense, slices.dense, "{budget:?}");
    }
}

#[test]
fn any_order_of_threads_gives_the_same_bits() {
    let cases = [
        Case {
            sinks: 140,
            window: 1,
            row_stride: 5,
            ..Case::new(390, 390)
        },
        Case {
            head_dim: 128,
            q_heads: 2,
            format: Format::F16,
            layout: Layout::TokenMajorPadded,
            window: 1,
            ..Case::new(150, 300)
        },
    ];
    let by_any = cases.map(|case| Sampling::ALL.map(|sampling| case.clone().sampled_by(sampling)));
    for case in by_any.into_iter().flatten() {
        let inputs = Inputs::new(&case);
        for budget in Budget::ALL {
            let fast = run_and_check(&case, budget, Mode::Fast);
            for seed in 0..3 {
                let checked = run(&case, &inputs, budget, Mode::Checked { seed });
                assert_eq!(fast, checked, "{budget:?}, seed {seed}");
            }
        }
    }
}

/// A key that is not a number spoils the rows that see it, and nothing else.
#[test]
fn a_nan_key_leaves_the_rows_that_do_not_see_it_alone() {
    for sampling in Sampling::ALL {
        nan_key_leaves_the_rows_that_do_not_see_it_alone(sampling);
    }
}

fn nan_key_leaves_the_rows_that_do_not_see_it_alone(sampling: Sampling) {
    let case = Case::new(640, 640).sampled_by(sampling);
    let clean = Inputs::new(&case);
    let spoilt_key = 400;
    let mut spoilt = Inputs::new(&case);
    let at = spoilt.k_place.token(0, 0, spoilt_key);
    spoilt.k[at + 7] = case.format.encode(f32::NAN);
    for budget in Budget::ALL {
        let expected = run(&case, &clean, budget, Mode::Fast);
        let outcome = run(&case, &spoilt, budget, Mode::Fast);
        if budget == Budget::Rows {
            // Query blocks 0 to 2 have no spoilt row, block 3 has some, and block 4 has no other: it is dense.
            assert_eq!(outcome.lists[..3], expected.lists[..3]);
            assert_eq!(outcome.kept[..3], expected.kept[..3]);
            assert!(outcome.kept[3] < expected.kept[3]);
            assert_eq!(outcome.lists[4], [0, 1, 2, 3, 4]);
            assert_eq!(outcome.kept[4], 0);
            continue;
        }
        for (candidate, (&got, &clean)) in outcome.mass.iter().zip(&expected.mass).enumerate() {
            assert!(got <= clean, "{budget:?}: candidate {candidate}");
        }
        match budget {
            Budget::Rows => {}
            // Query blocks 0 to 2 have no spoilt row, block 4 has no other.
            Budget::Blocks => {
                assert_eq!(outcome.mass[..3 * 5], expected.mass[..3 * 5]);
                assert_eq!(outcome.mass[4 * 5..], [0; 5]);
                assert!(expected.mass[4 * 5] > 0);
            }
            // No row of a number sees the later keys.
            Budget::Residual | Budget::Paper => {
                assert!(outcome.mass[spoilt_key..].iter().all(|&mass| mass == 0));
                assert!(outcome.mass[..128].iter().any(|&mass| mass > 0));
            }
        }
    }
}
