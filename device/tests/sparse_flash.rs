//! The attention kernels in the emulator, against the definition of attention.

use sample_attention_device::gpu::emu::Mode;
use sample_attention_device::params::BLOCK;

mod attention;

use attention::batch::{Batch, Paging, alike, check_batch};
use attention::case::listed;
use attention::oracle::Inputs;
use attention::{Case, Dtype, HeadMask, Kernel, Layout, check, launch};

const CHECKED: Mode = Mode::Checked { seed: 7 };

/// Shapes that peers publish, and lengths around a tile.
const SHAPES: [(usize, usize); 22] = [
    (113, 203),
    (128, 217),
    (113, 211),
    (108, 256),
    (256, 512),
    (512, 256),
    (1, 1),
    (64, 128),
    (239, 1),
    (799, 3),
    (65, 65),
    (129, 129),
    (1, 300),
    (2, 129),
    (63, 63),
    (127, 127),
    (128, 128),
    (193, 257),
    (257, 193),
    (257, 257),
    (64, 321),
    (130, 1),
];

/// A sparse mask with stripes for every head, another for each: window, a far block, stripes in and
/// out of the listed blocks, and one head that is dense.
fn mixed_masks(case: Case) -> Case {
    let masks = (0..case.batch * case.q_heads)
        .map(|head| {
            let mut mask = listed(&case, |query, key| {
                key == query || (query + 2 * key + head as u32).is_multiple_of(5)
            });
            mask.stripes = (0..case.k_len as u32)
                .filter(|key| key.wrapping_mul(2_654_435_761) >> 28 < 3 + head as u32 % 3)
                .collect();
            mask.dense = head % 4 == 3;
            mask
        })
        .collect();
    case.sinks(5).masks(masks)
}

fn dense_agrees_over_the_shapes(kernel: Kernel) {
    for (i, (q_len, k_len)) in SHAPES.into_iter().enumerate() {
        let case = kernel.causal(q_len, k_len).head_dim([64, 128][i % 2]);
        check(&case, Mode::Fast);
        let dtype = [Dtype::F16, Dtype::Bf16][i / 2 % 2];
        check(&case.dtype(dtype).not_causal().output_f32(), Mode::Fast);
    }
}

fn sparse_agrees_over_the_shapes(kernel: Kernel) {
    for (i, (q_len, k_len)) in SHAPES.into_iter().enumerate() {
        let heads = [(2, 2), (3, 1), (4, 2)][i % 3];
        let case = kernel
            .causal(q_len, k_len)
            .heads(heads.0, heads.1)
            .head_dim([128, 64][i % 2])
            .dtype([Dtype::Bf16, Dtype::F16][i / 2 % 2]);
        check(&mixed_masks(case.clone()), Mode::Fast);
        check(&mixed_masks(case.not_causal()), Mode::Fast);
    }
}

fn long_shapes_agree(kernel: Kernel) {
    for (q_len, k_len) in [(1024, 1024), (1023, 1024), (1024, 1023), (1023, 2049)] {
        check(&mixed_masks(kernel.causal(q_len, k_len)), Mode::Fast);
    }
    check(&kernel.causal(2048, 2048), Mode::Fast);
    check(&kernel.causal(1024, 1024).head_dim(128), Mode::Fast);
    let long = kernel.causal(2048, 2048).head_dim(128).dtype(Dtype::F16);
    check(&mixed_masks(long), Mode::Fast);
}

fn query_heads_share_key_heads(kernel: Kernel) {
    for (q_heads, kv_heads) in [(8, 8), (8, 1), (16, 2), (6, 3)] {
        let case = kernel.causal(150, 200).heads(q_heads, kv_heads);
        check(&case, Mode::Fast);
    }
    let mut case = kernel.causal(140, 150).heads(4, 2).head_dim(128);
    case.batch = 3;
    check(&mixed_masks(case), Mode::Fast);
}

fn layouts_do_not_matter(kernel: Kernel) {
    let outcomes = [Layout::Bhsd, Layout::Bshd, Layout::Padded].map(|layout| {
        let mut case = kernel.causal(150, 301).heads(4, 2).head_dim(128);
        case.batch = 2;
        check(&mixed_masks(case.layout(layout)), Mode::Fast)
    });
    assert!(outcomes[0] == outcomes[1] && outcomes[0] == outcomes[2]);
    for layout in [Layout::Bshd, Layout::Padded] {
        let case = kernel
            .causal(301, 150)
            .heads(2, 2)
            .layout(layout)
            .output_f32();
        check(&case, Mode::Fast);
    }
}

fn any_order_of_threads_gives_the_same_bits_without_races(kernel: Kernel) {
    let cases = [
        kernel.causal(200, 330).heads(2, 1).head_dim(128),
        kernel.causal(330, 200).heads(2, 1).dtype(Dtype::F16),
        kernel.causal(150, 400).not_causal().heads(2, 1),
    ];
    for case in cases.map(mixed_masks) {
        let fast = check(&case, Mode::Fast);
        for seed in 0..4 {
            let checked = launch(&case, &Inputs::random(&case), Mode::Checked { seed });
            assert!(fast == checked, "seed {seed}\n{case:?}");
        }
    }
}

fn stripes_empty_full_and_at_the_edges(kernel: Kernel) {
    let case = kernel.causal(400, 700);
    let window = |case: &Case| listed(case, |query, key| key + 1 >= query);
    let with = |stripes: Vec<u32>| HeadMask {
        stripes,
        ..window(&case)
    };
    check(&case.clone().mask(with(vec![])), Mode::Fast);
    let full = check(&case.clone().mask(with((0..700).collect())), Mode::Fast);
    // Keys in another order, so not the same bits: but the same attention.
    let dense = check(&case, Mode::Fast);
    assert_ne!(full, dense);
    // The last key before each window, the first in it, and the own block's.
    let edges = (1..6).flat_map(|b| [b * BLOCK - 1, b * BLOCK, b * BLOCK + 1]);
    check(&case.clone().mask(with(edges.collect())), Mode::Fast);
    // Exactly a tile, one more, and one less.
    for count in [63, 64, 65, 96, 127, 128, 129] {
        check(&case.clone().mask(with((0..count).collect())), Mode::Fast);
        check(
            &case
                .clone()
                .mask(with((1..=count).map(|i| i * 2).collect())),
            CHECKED,
        );
    }
}

fn sinks_count_once(kernel: Kernel) {
    let case = kernel.causal(300, 600);
    for sinks in [1, 16, 64, 127, 128, 129, 200, 600, 10_000] {
        // Some are stripes too, and some lie in a listed block.
        let mut mask = listed(&case, |query, key| key == query || key == 1 && query == 3);
        mask.stripes = (0..260).step_by(3).collect();
        check(&case.clone().sinks(sinks).mask(mask), Mode::Fast);
        let mask = listed(&case, |query, key| key == query);
        check(&case.clone().sinks(sinks).mask(mask), Mode::Fast);
    }
}

fn every_key_as_a_sink_is_dense(kernel: Kernel) {
    let case = kernel.causal(150, 290).not_causal();
    let nothing = listed(&case, |_, _| false);
    let sinks = check(&case.clone().sinks(290).mask(nothing), Mode::Fast);
    // The same tiles in the same order.
    assert_eq!(sinks, check(&case, Mode::Fast));
}

fn a_causal_block_lists_itself(kernel: Kernel) {
    let case = kernel.causal(400, 400).head_dim(128);
    let without = listed(&case, |query, key| key + 2 == query);
    let with = listed(&case, |query, key| key + 2 == query || key == query);
    // Blocks that no row sees change nothing either.
    let beyond = HeadMask {
        blocks: with
            .blocks
            .iter()
            .cloned()
            .map(|mut list| {
                list.extend(list.last().map(|last| last + 1).filter(|&block| block < 4));
                list
            })
            .collect(),
        ..HeadMask::default()
    };
    let outcome = check(&case.clone().mask(without), Mode::Fast);
    assert_eq!(outcome, check(&case.clone().mask(with), Mode::Fast));
    assert_eq!(outcome, check(&case.clone().mask(beyond), Mode::Fast));
}

fn fully_masked_rows_are_zero(kernel: Kernel) {
    // Nothing listed: every other query block sees nothing.
    let case = kernel.causal(300, 200).not_causal().head_dim(128);
    let mask = listed(&case, |query, key| query % 2 == 1 && key == 0);
    let outcome = check(&case.mask(mask), Mode::Fast);
    assert!(outcome.o[..128 * 128].iter().all(|&bits| bits == 0));
    let empty = f32::NEG_INFINITY.to_bits();
    assert!(outcome.lse[..128].iter().all(|&bits| bits == empty));
    // More queries than keys.
    for q_len in [131, 300, 700] {
        let blind = q_len - 130;
        let outcome = check(&kernel.causal(q_len, 130).output_f32(), CHECKED);
        assert!(outcome.o[..blind * 64].iter().all(|&bits| bits == 0));
        assert!(outcome.lse[..blind].iter().all(|&bits| bits == empty));
    }
}

fn poison_that_no_row_keeps_changes_nothing(kernel: Kernel) {
    for causal in [true, false] {
        for poison in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut case = kernel.causal(300, 520).heads(2, 1).head_dim(128);
            case.causal = causal;
            let mut mask = listed(&case, |query, key| key == query || key == 1);
            mask.stripes = vec![3, 10, 60, 260, 261, 300];
            let mut case = case.mask(mask);
            let clean = check(&case, Mode::Fast);
            let dropped: Vec<usize> = (0..case.k_len)
                .filter(|&key| (0..2 * 300).all(|i| !case.keeps(i / 300, i % 300, key)))
                .collect();
            assert!(dropped.len() > 100);
            case.poisoned_keys = dropped.iter().map(|&key| (0, key, poison)).collect();
            case.poisoned_values = case.poisoned_keys.clone();
            assert_eq!(clean, check(&case, Mode::Fast));
        }
    }
}

fn poison_under_the_diagonal_reaches_only_rows_that_see_it(kernel: Kernel) {
    for dtype in [Dtype::Bf16, Dtype::F16] {
        for (i, poison) in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY]
            .into_iter()
            .enumerate()
        {
            let dim = [64, 128, 64][i];
            let mut clean = kernel.causal(250, 250).head_dim(dim).dtype(dtype);
            // No weight underflows in 16 bits, where 0·∞ would be NaN.
            clean.softmax_scale = 0.03;
            let before = launch(&clean, &Inputs::random(&clean), Mode::Fast);
            for key in [0, 1, 17, 63, 64, 100, 127, 128, 200, 249] {
                let mut values = clean.clone();
                values.poisoned_values = vec![(0, key, poison)];
                let outcome = check(&values, Mode::Fast);
                // Not a bit of the rows above changes.
                assert_eq!(before.o[..key * dim], outcome.o[..key * dim], "{values:?}");
                assert_eq!(before.lse, outcome.lse);
            }
            let mut keys = clean.clone();
            keys.poisoned_keys = vec![(0, 70, f32::NAN)];
            let outcome = launch(&keys, &Inputs::random(&keys), Mode::Fast);
            assert_eq!(before.o[..70 * dim], outcome.o[..70 * dim]);
            let lse = |row: usize| f32::from_bits(outcome.lse[row]);
            assert!((0..70).all(|row| lse(row).is_finite()));
            assert!((70..250).all(|row| lse(row).is_nan()));
        }
    }
    // Several at once, in every warp's rows, in checked mode.
    let mut case = kernel.causal(128, 256).head_dim(128);
    case.poisoned_values = vec![
        (0, 130, f32::NAN),
        (0, 199, f32::INFINITY),
        (0, 255, f32::NAN),
    ];
    check(&case, CHECKED);
}

fn any_finite_scale(kernel: Kernel) {
    for scale in [-0.125, 0.0, 1.0e-20, 0.5, -2.0, f32::MIN_POSITIVE] {
        let mut case = kernel.causal(140, 200);
        case.softmax_scale = scale;
        check(&case, Mode::Fast);
        check(&mixed_masks(case.not_causal().head_dim(128)), CHECKED);
    }
}

fn a_query_block_does_not_depend_on_the_rest(kernel: Kernel) {
    // A prompt in two chunks: the second's rows have the bits of the whole prompt's.
    let whole = mixed_masks(kernel.causal(384, 384).output_f32());
    let mut chunk = whole.clone();
    chunk.q_len = 200;
    let inputs = Inputs::random(&whole);
    let of_whole = launch(&whole, &inputs, Mode::Fast);
    let last_rows = Inputs {
        q: inputs.q[184 * 64..].to_vec(),
        ..inputs
    };
    let of_chunk = launch(&chunk, &last_rows, Mode::Fast);
    assert_eq!(of_chunk.o, of_whole.o[184 * 64..]);
    assert_eq!(of_chunk.lse, of_whole.lse[184..]);
}

fn repeats_are_identical(kernel: Kernel) {
    let case = mixed_masks(kernel.causal(200, 300).heads(2, 2));
    let first = launch(&case, &Inputs::random(&case), Mode::Fast);
    for _ in 0..5 {
        assert_eq!(first, launch(&case, &Inputs::random(&case), Mode::Fast));
    }
}

/// Lengths of a ragged batch: around a tile, empty, and more queries than keys.
const RAGGED: [(usize, usize); 9] = [
    (5, 200),
    (0, 40),
    (130, 130),
    (7, 0),
    (300, 90),
    (1, 129),
    (128, 128),
    (0, 0),
    (97, 301),
];

fn a_ragged_batch_is_each_sequence_alone(kernel: Kernel) {
    for (i, causal) in [true, false, true, false].into_iter().enumerate() {
        let alike = alike(kernel, [64, 128][i % 2], causal);
        let batch = if i < 2 {
            Batch::new(&alike, &RAGGED, |case| case)
        } else {
            Batch::new(&alike, &RAGGED, mixed_masks)
        };
        check_batch(&batch, Mode::Fast);
    }
    let small = [(3, 70), (0, 1), (140, 9)];
    let batch = Batch::new(&alike(kernel, 64, true), &small, mixed_masks);
    check_batch(&batch, CHECKED);
}

fn pages_are_contiguous_keys(kernel: Kernel) {
    for (i, page) in [16, 32, 64, 128].into_iter().enumerate() {
        let alike = alike(kernel, [64, 128][i % 2], i != 1);
        let mut batch = if i % 2 == 0 {
            Batch::new(&alike, &RAGGED, mixed_masks)
        } else {
            Batch::new(&alike, &RAGGED, |case| case)
        };
        batch.paging = Some(Paging {
            page,
            interleaved: i % 2 == 1,
            csr: i < 2,
            lens_each: i % 2 == 0,
        });
        check_batch(&batch, Mode::Fast);
    }
    let mut batch = Batch::new(&alike(kernel, 64, true), &[(3, 190), (5, 140)], mixed_masks);
    batch.paging = Some(Paging {
        page: 32,
        interleaved: false,
        csr: false,
        lens_each: false,
    });
    check_batch(&batch, CHECKED);
}

/// Every property is one of every kernel.
macro_rules! of_every_kernel {
    ($($property:ident)*) => {
        mod portable {
            $(#[test]
            fn $property() {
                super::$property(super::Kernel::Portable);
            })*
        }

        mod hopper {
            $(#[test]
            fn $property() {
                super::$property(super::Kernel::HOPPER);
            })*
        }
    };
}

of_every_kernel! {
    dense_agrees_over_the_shapes
    sparse_agrees_over_the_shapes
    long_shapes_agree
    query_heads_share_key_heads
    layouts_do_not_matter
    any_order_of_threads_gives_the_same_bits_without_races
    stripes_empty_full_and_at_the_edges
    sinks_count_once
    every_key_as_a_sink_is_dense
    a_causal_block_lists_itself
    fully_masked_rows_are_zero
    poison_that_no_row_keeps_changes_nothing
    poison_under_the_diagonal_reaches_only_rows_that_see_it
    any_finite_scale
    a_query_block_does_not_depend_on_the_rest
    repeats_are_identical
    a_ragged_batch_is_each_sequence_alone
    pages_are_contiguous_keys
}

#[test]
fn rescaling_always_or_rarely_is_the_same_attention() {
    let always = Kernel::Hopper {
        rescale_threshold_log2: 0.0,
    };
    for head_dim in [64, 128] {
        check(
            &mixed_masks(always.causal(300, 500).head_dim(head_dim)),
            Mode::Fast,
        );
        // Scores that grow along the keys by far more than the slack.
        let mut steep = Kernel::HOPPER.causal(300, 500).head_dim(head_dim);
        steep.softmax_scale = 4.0;
        check(&steep, Mode::Fast);
    }
}
