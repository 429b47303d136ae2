//! The selections alone, on masses that no attention would give.

use sample_attention_device::abi::TileSlice;
use sample_attention_device::gpu::Global;
use sample_attention_device::gpu::emu::{Gpu, Mode};
use sample_attention_device::reduction::keys::WholeHeads;
use sample_attention_device::top_k::{Masses, blocks, keys};

use crate::case::{Case, Random};
use crate::pipeline::{Budget, Output, launch, whole};
use crate::reference::top_k as by_sorting;

/// One head, one position in `row_stride` of which is sampled, all of whose mass is to be kept.
fn one_head(k_len: usize, row_stride: usize, budget: Budget) -> TileSlice {
    let case = Case {
        row_stride,
        sinks: 0,
        window: 1,
        coverage: 1.0,
        ..Case::new(k_len, k_len)
    };
    whole(&case, budget, u32::MAX)
}

/// The mass of a row.
const ROW: u64 = 1 << 32;

/// Selected keys, and their mass, where the selection has to reach `need`, at most one row's mass a key.
fn select_keys(mass: &[u64], need: u64, mode: Mode) -> (Vec<u32>, u64) {
    let slice = one_head(mass.len(), 1, Budget::Residual);
    let units = WholeHeads {
        slice,
        first_sequence: 0,
        sequence_count: 1,
    };
    let mut gpu = Gpu::new();
    let mut padded = mass.to_vec();
    padded.resize(units.key_capacity() as usize, 0);
    // Coverage 1: all of the rows but what is covered already.
    let covers = mass.len() as u64 * ROW - need;
    let mut covered = vec![0; slice.block_capacity as usize];
    covered[0] = covers / 3;
    *covered.last_mut().unwrap() += covers - covers / 3;
    let output = Output::new(&mut gpu, &slice, mass.len() as u32);
    let params = keys::TopKKeysParams {
        units,
        masses: Masses {
            mass: gpu.upload("mass", &padded).address(),
            outside: Global::NULL,
            covered: gpu.upload("covered", &covered).address(),
        },
        output: output.params(),
    };
    launch(
        &mut gpu,
        mode,
        keys::TOP_K_KEYS,
        keys::launch_shape(&units),
        &params,
    );
    assert!(
        output.lists(&gpu).iter().all(|list| list.len() == 1),
        "a window of one block"
    );
    let kept: u64 = gpu.read(&output.kept).iter().sum();
    (output.keys(&gpu, 1).remove(0), kept - covers)
}

fn assert_selects_like_a_sort(mass: &[u64], need: u64, mode: Mode) {
    let (stripes, kept) = select_keys(mass, need, mode);
    let expected = by_sorting(mass, need);
    let reached: u64 = expected.iter().map(|&key| mass[key]).sum();
    assert_eq!(kept, reached, "{} keys, need {need}", mass.len());
    let same = stripes
        .iter()
        .map(|&key| key as usize)
        .eq(expected.iter().copied());
    assert!(
        same,
        "{} keys, need {need}: {} selected, not {}",
        mass.len(),
        stripes.len(),
        expected.len()
    );
}

#[test]
fn ties_go_to_the_lower_index_wherever_they_lie() {
    let equal = vec![1000; 3000];
    for need in [1, 999, 1000, 1001, 64_000, 1_500_001, 2_999_999, 3_000_000] {
        assert_selects_like_a_sort(&equal, need, Mode::Fast);
    }
    let mixed: Vec<u64> = (0..2000)
        .map(|i| [7, 9_000_000, 7, 0, 123_456][i % 5])
        .collect();
    for need in [
        8_999_999,
        9_000_001,
        3_600_123_456,
        3_649_000_000,
        3_649_385_000,
    ] {
        assert_selects_like_a_sort(&mixed, need, Mode::Fast);
    }
}

#[test]
fn extremes_of_need_select_nothing_and_everything() {
    let mass = [3, 0, 7, 1 << 20];
    let all = 3 + 7 + (1 << 20);
    assert_eq!(select_keys(&mass, 0, Mode::Fast), (vec![], 0));
    assert_eq!(select_keys(&mass, all, Mode::Fast).0, [0, 2, 3]);
    assert_eq!(select_keys(&mass, all + 1, Mode::Fast).0, [0, 2, 3]);
    assert_eq!(select_keys(&mass, ROW, Mode::Fast).0, [0, 2, 3]);
    assert_eq!(select_keys(&[0; 300], ROW, Mode::Fast), (vec![], 0));
}

#[test]
fn masses_of_every_size_are_told_apart() {
    let mut random = Random(5);
    for bits in [3, 6, 12, 25, 40, 50] {
        let mass: Vec<u64> = (0..700)
            .map(|_| random.bits() >> (64 - bits) >> (random.bits() % u64::from(bits as u32)))
            .collect();
        let all = mass.iter().sum::<u64>().min(700 * ROW);
        for share in [0.001, 0.3, 0.77, 0.999] {
            assert_selects_like_a_sort(&mass, (all as f64 * share) as u64, Mode::Fast);
        }
    }
}

/// Counters hold more than 32 bits, and carry into the high half whoever comes first.
#[test]
fn masses_of_whole_rows_add_up() {
    let mass: Vec<u64> = (0..3000).map(|i| (1 << 31) + i % 2).collect();
    for need in [
        1,
        (1 << 31) + 1,
        1000 << 31,
        (1000 << 31) + 1001,
        2999 << 31,
    ] {
        assert_selects_like_a_sort(&mass, need, Mode::Fast);
    }
    assert_selects_like_a_sort(&vec![ROW * 40; 900], ROW * 900, Mode::Checked { seed: 1 });
}

#[test]
fn any_order_of_threads_selects_the_same_keys() {
    let mass: Vec<u64> = (0..1500).map(|i| i * i % 97 * 1_000_003).collect();
    for seed in 0..2 {
        assert_selects_like_a_sort(&mass, ROW / 3, Mode::Checked { seed });
    }
}

#[test]
fn a_million_keys_are_selected_exactly() {
    let mut random = Random(9);
    // Heavy tails, many ties and zeros.
    let mass: Vec<u64> = (0..1 << 20)
        .map(|_| {
            let x = random.bits();
            (x >> 52) << (x % 11) >> 8
        })
        .collect();
    let all: u64 = mass.iter().sum();
    assert!(all < ROW);
    assert_selects_like_a_sort(&mass, all / 10 * 6, Mode::Fast);
}

#[test]
fn ties_between_query_blocks_go_to_the_earlier_one() {
    let k_len = 70 * 128;
    // Only the last row is sampled.
    let slice = one_head(k_len, usize::MAX >> 33, Budget::Blocks);
    let key_blocks = slice.block_capacity as usize;
    let mut mass = vec![0u64; slice.tiles as usize * key_blocks];
    for query_block in 0..key_blocks {
        for (key_block, mass) in mass[query_block * key_blocks..][..query_block]
            .iter_mut()
            .enumerate()
        {
            *mass = if key_block % 3 == 0 { 5 } else { 4 };
        }
    }
    // Segment 0 has no sampled row and needs nothing; segment 1 needs all fives and some of the fours.
    let need = 1000;
    let mut covered = vec![0u64; slice.tiles as usize];
    covered[64] = ROW - need;
    let mut gpu = Gpu::new();
    let output = Output::new(&mut gpu, &slice, 0);
    let params = blocks::TopKBlocksParams {
        slice,
        masses: Masses {
            mass: gpu.upload("mass", &mass).address(),
            outside: Global::NULL,
            covered: gpu.upload("covered", &covered).address(),
        },
        output: output.params(),
    };
    launch(
        &mut gpu,
        Mode::Fast,
        blocks::TOP_K_BLOCKS,
        blocks::launch_shape(&slice),
        &params,
    );
    let of_segment = &mass[64 * key_blocks..];
    let chosen = by_sorting(of_segment, need);
    for (query_block, list) in output.lists(&gpu).iter().enumerate() {
        let mut expected: Vec<u32> = (0..key_blocks)
            .filter(|&key_block| {
                query_block >= 64 && chosen.contains(&((query_block - 64) * key_blocks + key_block))
            })
            .map(|key_block| key_block as u32)
            .collect();
        expected.push(query_block as u32);
        assert_eq!(list, &expected, "query block {query_block}");
    }
    let reached: u64 = chosen.iter().map(|&pair| of_segment[pair]).sum();
    let kept = gpu.read(&output.kept);
    assert_eq!(kept[..64], [0; 64]);
    assert_eq!(kept[64], ROW - need + reached);
    assert_eq!(kept[65..], [0; 5]);
}
