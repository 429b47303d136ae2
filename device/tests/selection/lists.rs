//! The choice of dense heads, on lists of the caller's own.

use sample_attention_device::gpu::emu::{Gpu, Mode};
use sample_attention_device::top_k::{BlockLists, dense};

use crate::case::{Case, Random};
use crate::pipeline::{Budget, launch, units};
use crate::reference;

#[test]
fn heads_are_dense_where_their_lists_and_stripes_cost_as_much() {
    let mut random = Random(3);
    let mut seen = [0; 2];
    for trial in 0..60 {
        let case = Case {
            q_heads: 3,
            sinks: [0, 16, 130, 300][trial % 4],
            ..Case::new([1500, 700, 2000][trial % 3], 1500)
        };
        let blocks = case.blocks();
        let lists: Vec<Vec<Vec<u32>>> = (0..3)
            .map(|head| {
                let one_in = [2, 3, 8][head];
                let keep = |random: &mut Random| random.bits().is_multiple_of(one_in);
                (0..blocks as u32)
                    .map(|own| {
                        (0..=own)
                            .filter(|&b| b == own || keep(&mut random))
                            .collect()
                    })
                    .collect()
            })
            .collect();
        let stripes: Vec<Vec<u32>> = (0..3)
            .map(|_| {
                let one_in = [1, 2, 4, 50, u64::MAX][trial % 5];
                (0..1500)
                    .filter(|_| random.bits().is_multiple_of(one_in))
                    .collect()
            })
            .collect();

        let units = units(&case, Budget::Residual);
        let mut key_blocks = vec![u32::MAX; BlockLists::key_blocks_len(&units) as usize];
        let mut counts = vec![u32::MAX; BlockLists::counts_len(&units) as usize];
        for (head, lists) in lists.iter().enumerate() {
            let first = units.sizes.first_query_block() as usize;
            for (block, list) in lists.iter().enumerate().skip(first) {
                let row = BlockLists::row(&units, head as u32, block as u32) as usize;
                key_blocks[row * blocks..][..list.len()].copy_from_slice(list);
                counts[row] = list.len() as u32;
            }
        }
        let mut stripes_in_memory = vec![u32::MAX; 3 * case.k_len];
        for (head, stripes) in stripes.iter().enumerate() {
            stripes_in_memory[head * case.k_len..][..stripes.len()].copy_from_slice(stripes);
        }
        let stripe_counts: Vec<u32> = stripes.iter().map(|list| list.len() as u32).collect();
        let mut gpu = Gpu::new();
        let is_dense = gpu.alloc::<u32>("dense", 3);
        let params = dense::ChooseDenseParams {
            units,
            lists: BlockLists {
                key_blocks: gpu.upload("key_blocks", &key_blocks).address(),
                counts: gpu.upload("counts", &counts).address(),
            },
            stripes: gpu.upload("stripes", &stripes_in_memory).address(),
            stripe_counts: gpu.upload("stripe_counts", &stripe_counts).address(),
            dense: is_dense.address(),
        };
        let mode = if trial < 4 {
            Mode::Checked { seed: trial as u64 }
        } else {
            Mode::Fast
        };
        launch(
            &mut gpu,
            mode,
            dense::CHOOSE_DENSE,
            dense::launch_shape(&units),
            &params,
        );
        for (head, &got) in gpu.read(&is_dense).iter().enumerate() {
            let expected = reference::is_dense(&case, &lists[head], &stripes[head]);
            assert_eq!(got, u32::from(expected), "trial {trial}, head {head}");
            seen[usize::from(expected)] += 1;
        }
    }
    assert!(
        seen.iter().all(|&times| times > 10),
        "both choices occur: {seen:?}"
    );
}
