//! The caller's own lists, without a selection.

use sample_attention::{Dtype, Problem, Selection};
use testkit::lists::random_selection;
use testkit::runner::{Attend, Case, Cuda, Layout, check};

use crate::support::{every_target, tell};

#[test]
fn random_lists_of_every_head_are_the_mask() {
    let shapes = [
        (1, 1),
        (1, 700),
        (113, 203),
        (300, 113),
        (129, 129),
        (700, 700),
        (1023, 2049),
    ];
    let kernels = [
        (Dtype::Bf16, 64),
        (Dtype::F16, 64),
        (Dtype::Bf16, 128),
        (Dtype::F16, 128),
    ];
    for device in every_target() {
        tell(format_args!(
            "lists of {} shapes, {:?}",
            shapes.len(),
            device.target()
        ));
        for (index, (q_len, k_len)) in shapes.into_iter().enumerate() {
            for (at, (dtype, head_dim)) in kernels.into_iter().enumerate() {
                let problem = Problem::causal(k_len, head_dim, dtype)
                    .with_batch(1 + at % 2)
                    .with_heads(4, [1, 2, 4][(index + at) % 3])
                    .with_q_len(q_len)
                    .with_causal((index + at) % 3 != 2);
                let selection = random_selection(&problem, (10 * index + at) as u64);
                let case = Case {
                    layout: Layout::ALL[(index + at) % 5],
                    row_step: if k_len > 512 { 53 } else { 1 },
                    ..Case::new(problem, Attend::Own(selection))
                };
                check(&Cuda::new(device), &case);
            }
        }
    }
}

#[test]
fn every_block_is_dense_to_the_bit_and_every_stripe_is_dense() {
    for device in every_target() {
        let problem = Problem::causal(600, 128, Dtype::Bf16).with_heads(2, 1);
        let empty = Selection::new(&problem).unwrap();
        let [mut stripes, mut blocks, mut dense] = [empty.clone(), empty.clone(), empty];
        let every_key: Vec<u32> = (0..600).collect();
        for head in 0..2 {
            stripes.set_stripes(0, head, &every_key).unwrap();
            dense.set_dense(0, head, true).unwrap();
            for block in 0..5 {
                let seen: Vec<usize> = (0..=block).collect();
                blocks.set_blocks(0, head, block, &seen).unwrap();
            }
        }
        let bits = |attend| check(&Cuda::new(device), &Case::new(problem, attend)).bits();
        // Stripes are gathered in tiles of their own, so their sums may differ in the last bit: the oracle judges.
        bits(Attend::Own(stripes));
        let [blocks, dense] = [blocks, dense].map(|selection| bits(Attend::Own(selection)));
        let plain = bits(Attend::Dense);
        assert!(blocks == dense && dense == plain, "{:?}", device.target());
    }
}
