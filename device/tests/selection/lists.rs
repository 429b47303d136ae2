//! The choice of dense heads, on lists of the caller's own.

use sample_attention_device::abi::SparseMask;
use sample_attention_device::gpu::emu::{Gpu, Mode};
use sample_attention_device::top_k::dense;

use crate::case::{Case, Random};
use crate::pipeline::{Budget, launch, whole};
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

        let slice = whole(&case, Budget::Residual, 1);
        let first = case.k_len.saturating_sub(case.q_len) / 128;
        // Tiles whose rows see no key come first.
        let masked = vec![Vec::new(); case.q_len.saturating_sub(case.k_len).div_ceil(128)];
        let live: Vec<&Vec<u32>> = lists
            .iter()
            .flat_map(|lists| masked.iter().chain(&lists[first..]))
            .collect();
        let mut kv_indices = vec![u32::MAX; live.len() * blocks];
        for (row, list) in live.iter().enumerate() {
            kv_indices[row * blocks..][..list.len()].copy_from_slice(list);
        }
        let counts: Vec<u32> = live.iter().map(|list| list.len() as u32).collect();
        let mut stripes_in_memory = vec![u32::MAX; 3 * case.k_len];
        for (head, stripes) in stripes.iter().enumerate() {
            stripes_in_memory[head * case.k_len..][..stripes.len()].copy_from_slice(stripes);
        }
        let stripe_counts: Vec<u32> = stripes.iter().map(|list| list.len() as u32).collect();
        let mut gpu = Gpu::new();
        let is_dense = gpu.alloc::<u32>("dense", 3);
        let params = dense::ChooseDenseParams {
            sequences: slice.sequences,
            heads: slice.heads,
            q_heads: 3,
            mask: SparseMask {
                kv_num_blocks: gpu.upload("kv_num_blocks", &counts).address(),
                kv_indices: gpu.upload("kv_indices", &kv_indices).address(),
                num_keys: gpu.upload("num_keys", &stripe_counts).address(),
                key_indices: gpu.upload("key_indices", &stripes_in_memory).address(),
                dense: is_dense.address(),
                block_capacity: blocks as u32,
                key_capacity: case.k_len as u32,
                keys_per_tile: 0,
                sinks: case.sinks as u32,
                first_tile: 0,
                tiles: slice.tiles,
            },
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
            dense::launch_shape(&slice.sequences, 3),
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
