//! What a selection by rows promises beside its definition: what a row finds, and what a query tile lists, depends on nothing else.

use sample_attention_device::gpu::emu::Mode;

use crate::case::{Case, Inputs, Sampling};
use crate::check::{check, lists_of};
use crate::pipeline::{Budget, Outcome, Slicing, run, run_in_slices};

/// Scores of some ten bits of spread, so that references are raised in some rows and not in others.
fn case(sampling: Sampling) -> Case {
    Case {
        batch: 1,
        q_heads: 2,
        row_stride: 8,
        softmax_scale: 9.0,
        ..Case::new(900, 900).sampled_by(sampling)
    }
}

/// The queries at positions `from..to` alone, and the keys before `to`.
fn chunk(case: &Case, inputs: &Inputs, from: usize, to: usize) -> (Case, Inputs) {
    let chunk = Case {
        q_len: to - from,
        k_len: to,
        ..case.clone()
    };
    let mut of_chunk = Inputs::new(&chunk);
    let dim = case.head_dim;
    for head in 0..case.q_heads {
        for row in from..to {
            let x = inputs.q_place.token(0, head, row);
            let y = of_chunk.q_place.token(0, head, row - from);
            of_chunk.q[y..y + dim].copy_from_slice(&inputs.q[x..x + dim]);
        }
    }
    for head in 0..case.kv_heads {
        for key in 0..to {
            let x = inputs.k_place.token(0, head, key);
            let y = of_chunk.k_place.token(0, head, key);
            of_chunk.k[y..y + dim].copy_from_slice(&inputs.k[x..x + dim]);
        }
    }
    (chunk, of_chunk)
}

/// Masses of the rows of a query block, as far as they see.
fn masses(outcome: &Outcome, head: usize, query_block: usize, rows: usize) -> Vec<u32> {
    let shape = &outcome.shape;
    let first = shape.tile_row(head, query_block) * shape.row_capacity;
    (first..first + rows)
        .flat_map(|row| outcome.row_mass[row * shape.block_capacity..][..=query_block].to_vec())
        .collect()
}

#[test]
fn chunks_of_whole_blocks_find_the_bits_that_the_whole_prompt_finds() {
    for sampling in Sampling::ALL {
        let case = case(sampling);
        let inputs = Inputs::new(&case);
        let whole = run(&case, &inputs, Budget::Rows, Mode::Fast);
        for (from, to) in [(0, 256), (256, 896), (384, 512), (896, 900)] {
            let (chunk, of_chunk) = chunk(&case, &inputs, from, to);
            let chunked = run(&chunk, &of_chunk, Budget::Rows, Mode::Fast);
            for head in 0..case.q_heads {
                let [x, y] = [(&chunk, &chunked), (&case, &whole)]
                    .map(|(case, outcome)| lists_of(case, outcome, head));
                let blocks = from / 128..to.div_ceil(128);
                assert_eq!(
                    x[blocks.clone()],
                    y[blocks.clone()],
                    "{sampling:?} {from}..{to}"
                );
                for block in blocks {
                    let rows = (to.min(block * 128 + 128) - block * 128).div_ceil(8);
                    let [x, y] = [&chunked, &whole].map(|run| masses(run, head, block, rows));
                    assert_eq!(x, y, "{sampling:?} {from}..{to}, block {block}");
                }
            }
        }
    }
}

#[test]
fn slices_and_row_strides_of_others_leave_the_bits_of_a_row_alone() {
    for sampling in Sampling::ALL {
        let case = case(sampling);
        let inputs = Inputs::new(&case);
        let whole = run(&case, &inputs, Budget::Rows, Mode::Fast);
        for tiles in [1, 3, 5] {
            let slicing = Slicing {
                tiles,
                heads: 1,
                ..Slicing::WHOLE
            };
            let slices = run_in_slices(&case, &inputs, Budget::Rows, Mode::Fast, slicing);
            assert_eq!(slices.lists, whole.lists);
            assert_eq!(slices.kept, whole.kept);
            for block in 0..case.blocks() {
                let rows = (case.k_len.min(block * 128 + 128) - block * 128).div_ceil(8);
                for head in 0..case.q_heads {
                    assert_eq!(
                        masses(&slices, head, block, rows),
                        masses(&whole, head, block, rows)
                    );
                }
            }
        }
        // Twice as many rows beside it: every second one is a row of before.
        let denser = Case {
            row_stride: 4,
            ..case.clone()
        };
        let denser = run(&denser, &inputs, Budget::Rows, Mode::Fast);
        for block in 0..7 {
            let every_second: Vec<u32> = masses(&denser, 0, block, 32)
                .chunks(2 * (block + 1))
                .flat_map(|pair| pair[block + 1..].to_vec())
                .collect();
            assert_eq!(
                every_second,
                masses(&whole, 0, block, 16),
                "{sampling:?}, block {block}"
            );
        }
    }
}

#[test]
fn splits_of_the_keys_find_what_the_definition_does() {
    for sampling in Sampling::ALL {
        for softmax_scale in [0.7, 9.0, -9.0] {
            for sinks in [0, 16, 300] {
                let case = Case {
                    softmax_scale,
                    sinks,
                    ..case(sampling)
                };
                let inputs = Inputs::new(&case);
                for budget in [Budget::Rows, Budget::Blocks] {
                    let slicing = Slicing {
                        split_blocks: 2,
                        ..Slicing::WHOLE
                    };
                    let outcome = run_in_slices(&case, &inputs, budget, Mode::Fast, slicing);
                    check(&case, budget, &inputs, &outcome);
                }
            }
        }
    }
}
