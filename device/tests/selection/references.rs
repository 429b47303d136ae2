//! Scores far from the reference that a row has taken from other keys, and scores that are no numbers.

use sample_attention_device::gpu::emu::Mode;

use crate::case::{Case, Inputs, Sampling};
use crate::check::{check, row_lse};
use crate::pipeline::{Budget, run};

/// Keys of one element each, so that the scores of key block `b` are `levels[b]`, and a little less.
fn steps(case: &Case, levels: &[f32]) -> Inputs {
    let mut inputs = Inputs::new(case);
    let q_place = inputs.q_place;
    for row in 0..case.q_len {
        let at = q_place.token(0, 0, row);
        inputs.q[at..at + case.head_dim].fill(case.format.encode(0.0));
        inputs.q[at] = case.format.encode(1.0);
    }
    let k_place = inputs.k_place;
    for key in 0..case.k_len {
        let level = levels[key / 128] - (key % 8) as f32 / 8.0;
        inputs.k[k_place.token(0, 0, key)] = case.format.encode(level);
    }
    inputs
}

#[test]
fn sums_are_exact_whatever_the_scores_of_other_tiles_were() {
    let mountains: [[f32; 7]; 6] = [
        [0.0, 40.0, 80.0, 120.0, 160.0, 200.0, 240.0],
        [240.0, 200.0, 160.0, 120.0, 80.0, 40.0, 0.0],
        [-240.0, -200.0, -160.0, -120.0, -80.0, -40.0, 0.0],
        // The way up in one step, too far for sums relative to what came before; and too small a one to follow.
        [0.0, 200.0, 8.0, 12.0, 8.0, 0.0, -200.0],
        [240.0, -240.0, 240.0, -240.0, 0.0, -240.0, 240.0],
        [-240.0, -225.0, -232.0, -240.0, -224.0, -240.0, -240.0],
    ];
    for sampling in Sampling::ALL {
        for levels in mountains {
            for (sinks, softmax_scale) in [(0, 0.7), (16, 0.7), (130, -0.7)] {
                let case = Case {
                    sinks,
                    softmax_scale,
                    row_stride: 5,
                    ..Case::new(800, 800).sampled_by(sampling)
                };
                let inputs = steps(&case, &levels);
                for budget in [Budget::Rows, Budget::Blocks] {
                    let outcome = run(&case, &inputs, budget, Mode::Fast);
                    check(&case, budget, &inputs, &outcome);
                }
            }
        }
    }
}

/// With a row in 128, each row begins with a tile that it sees whole, and with which the rows after it go on.
#[test]
fn a_row_that_begins_with_a_whole_tile_takes_its_reference_from_it() {
    for sampling in Sampling::ALL {
        for level in [-240.0, 240.0] {
            let case = Case {
                sinks: 0,
                row_stride: 128,
                ..Case::new(640, 640).sampled_by(sampling)
            };
            let inputs = steps(&case, &[level; 5]);
            let outcome = run(&case, &inputs, Budget::Blocks, Mode::Fast);
            check(&case, Budget::Blocks, &inputs, &outcome);
        }
    }
}

/// A score of −∞ is no mass; one of +∞ is no number, and spoils its row.
#[test]
fn infinite_keys_spoil_the_same_rows_on_every_kernel() {
    for value in [f32::INFINITY, f32::NEG_INFINITY] {
        let spoilt_key = 200;
        let case = Case::new(640, 640);
        let [portable, hopper] = Sampling::ALL.map(|sampling| {
            let case = case.clone().sampled_by(sampling);
            let mut inputs = Inputs::new(&case);
            let at = inputs.k_place.token(0, 0, spoilt_key);
            inputs.k[at + 7] = case.format.encode(value);
            run(&case, &inputs, Budget::Rows, Mode::Fast)
        });
        let mut spoilt = [0; 2];
        for rank in 0..portable.row_lse.len() / 2 {
            let [x, y] = [&portable, &hopper].map(|outcome| row_lse(&case, outcome, rank));
            assert_eq!(x.is_nan(), y.is_nan(), "{value}: rank {rank}");
            assert!(x.is_nan() || (x - y).abs() < 1e-4, "{value}: rank {rank}");
            spoilt[usize::from(x.is_nan())] += 1;
        }
        assert_eq!(portable.lists, hopper.lists, "{value}");
        assert!(spoilt[0] > 13 && spoilt[1] > 0, "{spoilt:?}");
    }
}
