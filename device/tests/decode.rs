//! Few queries over many keys in the emulator, against the definition of attention.

use sample_attention_device::decode::{self, DecodeParams, Splits};
use sample_attention_device::gpu::Global;
use sample_attention_device::gpu::emu::{self, Mode};
use sample_attention_device::launch::LaunchShape;
use sample_attention_device::sparse_flash::SparseFlashParams;

mod attention;

use attention::batch::{Batch, Paging, alike};
use attention::case::{Case, listed};
use attention::run::{Outcome, compare};
use attention::{Dtype, Kernel};

const CHECKED: Mode = Mode::Checked { seed: 7 };

/// Queries and keys: tiles of 64 keys, one less and one more, empty, and more queries than keys.
const LENS: [(usize, usize); 8] = [
    (1, 1),
    (1, 300),
    (2, 65),
    (3, 0),
    (0, 70),
    (5, 640),
    (9, 4),
    (4, 64),
];

type MakeSplits = fn(&SparseFlashParams) -> Splits;

const SPLITS: [MakeSplits; 4] = [
    |_| Splits { count: 1, tiles: 0 },
    |_| Splits { count: 3, tiles: 0 },
    |p| Splits::of_tiles(p, 2),
    |p| Splits::even(p, 33),
];

fn launch(
    device: &mut emu::Gpu,
    dtype: Dtype,
    attention: SparseFlashParams,
    splits: Splits,
    mode: Mode,
) -> Result<(), emu::Fault> {
    let mut params = DecodeParams {
        attention,
        splits,
        partial_o: Global::NULL,
        partial_sums: Global::NULL,
    };
    let shape = |shape: LaunchShape| {
        emu::Launch::new(shape.grid, shape.block)
            .shared_bytes(shape.shared_bytes)
            .mode(mode)
    };
    if splits.count > 1 {
        let len = splits.partial_o_len(&attention) as usize;
        params.partial_o = device.alloc::<f32>("partial_o", len).address();
        let len = splits.partial_sums_len(&attention) as usize;
        params.partial_sums = device.alloc::<f32>("partial_sums", len).address();
    }
    let rows = splits.tile_rows(&attention);
    let kernel = match (dtype, attention.head_dim, rows) {
        (Dtype::Bf16, 64, 16) => decode::BF16_D64_M16,
        (Dtype::Bf16, 64, _) => decode::BF16_D64_M64,
        (Dtype::Bf16, _, 16) => decode::BF16_D128_M16,
        (Dtype::Bf16, _, _) => decode::BF16_D128_M64,
        (Dtype::F16, 64, 16) => decode::F16_D64_M16,
        (Dtype::F16, 64, _) => decode::F16_D64_M64,
        (Dtype::F16, _, 16) => decode::F16_D128_M16,
        (Dtype::F16, _, _) => decode::F16_D128_M64,
    };
    device.launch(kernel, &shape(decode::launch_shape(&params)), &params)?;
    if splits.count > 1 {
        let combine = match dtype {
            Dtype::Bf16 => decode::combine::COMBINE_BF16,
            Dtype::F16 => decode::combine::COMBINE_F16,
        };
        device.launch(combine, &shape(decode::combine_shape(&params)), &params)?;
    }
    Ok(())
}

fn run(
    batch: &Batch,
    poisoned: impl Fn(usize) -> bool,
    splits: MakeSplits,
    mode: Mode,
) -> Vec<Outcome> {
    let dtype = batch.cases[0].dtype;
    batch.run_by(poisoned, |device, params, _| {
        launch(device, dtype, params, splits(&params), mode)
    })
}

fn batch(alike: Case, lens: &[(usize, usize)]) -> Batch {
    Batch::new(&alike, lens, |case| case)
}

fn case(head_dim: usize, causal: bool) -> Case {
    alike(Kernel::Portable, head_dim, causal)
}

/// Compares with the oracle every sequence that has rows.
fn check(batch: &Batch, splits: MakeSplits, mode: Mode) -> Vec<Outcome> {
    let outcomes = run(batch, |_| false, splits, mode);
    for ((case, inputs), outcome) in batch.cases.iter().zip(&batch.inputs).zip(&outcomes) {
        if case.q_len > 0 {
            compare(case, inputs, outcome);
        }
    }
    outcomes
}

#[test]
fn few_queries_agree_with_the_definition() {
    for (i, splits) in SPLITS.into_iter().enumerate() {
        for causal in [true, false] {
            for (q_heads, kv_heads) in [(4, 2), (8, 1), (3, 3)] {
                let mut case = case([64, 128][i % 2], causal).heads(q_heads, kv_heads);
                case.dtype = [Dtype::Bf16, Dtype::F16][i / 2];
                check(&batch(case, &LENS), splits, Mode::Fast);
            }
            // Up to 16 packed rows: the narrow kernel.
            let case = case([128, 64][i % 2], causal).heads(4, 1);
            let narrow = [(1, 1), (4, 700), (1, 128), (3, 2), (2, 0)];
            check(&batch(case, &narrow), splits, Mode::Fast);
        }
    }
    // More than one row tile.
    check(
        &batch(case(64, true).heads(4, 1), &[(40, 200), (33, 33)]),
        SPLITS[1],
        Mode::Fast,
    );
    let mut steep = case(128, true);
    steep.softmax_scale = -2.0;
    check(&batch(steep, &LENS), SPLITS[1], Mode::Fast);
}

/// Window, far blocks, single keys in and out of the listed blocks, sinks, and a head that is dense.
fn mixed_masks(case: Case) -> Case {
    let masks = (0..case.q_heads)
        .map(|head| {
            let mut mask = listed(&case, |query, key| {
                key == query || (query + 2 * key + head as u32).is_multiple_of(3)
            });
            mask.stripes = (0..case.k_len as u32)
                .filter(|key| key.wrapping_mul(2_654_435_761) >> 28 < 2 + head as u32 % 3)
                .collect();
            mask.dense = head % 4 == 3;
            mask
        })
        .collect();
    case.sinks(5).masks(masks)
}

#[test]
fn lists_agree_with_the_definition() {
    for (i, splits) in SPLITS.into_iter().enumerate() {
        for causal in [true, false] {
            let case = case([64, 128][i % 2], causal);
            let lens = [(1, 900), (20, 390), (0, 50), (3, 0), (30, 7), (2, 257)];
            let mode = if i == 1 { CHECKED } else { Mode::Fast };
            check(&Batch::new(&case, &lens, mixed_masks), splits, mode);
            let lens = [(1, 700), (9, 517), (2, 1)];
            let mut batch = Batch::new(&case, &lens, mixed_masks);
            let contiguous = check(&batch, splits, Mode::Fast);
            batch.paging = Some(Paging {
                page: 16,
                interleaved: true,
                csr: false,
                lens_each: false,
            });
            assert_eq!(contiguous, run(&batch, |_| false, splits, Mode::Fast));
        }
    }
}

#[test]
fn any_order_of_threads_gives_the_same_bits_without_races() {
    for (heads, lens) in [
        ((4, 1), [(1, 300), (4, 130)]),
        ((8, 2), [(7, 200), (16, 190)]),
    ] {
        let batch = batch(case(64, true).heads(heads.0, heads.1), &lens);
        for splits in SPLITS {
            let fast = check(&batch, splits, Mode::Fast);
            assert_eq!(fast, run(&batch, |_| false, splits, CHECKED));
        }
    }
}

#[test]
fn fixed_splits_have_the_bits_of_each_sequence_alone() {
    for head_dim in [64, 128] {
        let alike = case(head_dim, true).heads(4, 1);
        let lens = [(1, 500), (3, 129), (4, 2), (1, 64), (2, 1000)];
        let together = batch(alike.clone(), &lens);
        let of_two: MakeSplits = |p| Splits::of_tiles(p, 2);
        let outcomes = run(&together, |_| false, of_two, Mode::Fast);
        for (i, outcome) in outcomes.iter().enumerate() {
            let mut alone = batch(alike.clone(), &lens[i..=i]);
            alone.inputs = Batch::new(&alike, &lens, |case| case)
                .inputs
                .drain(i..=i)
                .collect();
            let alone = run(&alone, |_| false, of_two, Mode::Fast);
            assert_eq!(outcome, &alone[0], "sequence {i}");
        }
        for parity in [0, 1] {
            let poisoned = run(&together, |i| i % 2 == parity, of_two, Mode::Fast);
            for (i, outcome) in poisoned.iter().enumerate() {
                assert!(i % 2 == parity || outcome == &outcomes[i], "sequence {i}");
            }
        }
    }
}

#[test]
fn pages_are_contiguous_keys() {
    for (i, page) in [16, 32, 64, 128].into_iter().enumerate() {
        let mut batch = batch(case([64, 128][i % 2], i != 2), &LENS);
        for splits in [SPLITS[0], SPLITS[2]] {
            batch.paging = None;
            let contiguous = run(&batch, |_| false, splits, Mode::Fast);
            batch.paging = Some(Paging {
                page,
                interleaved: i % 2 == 0,
                csr: i < 2,
                lens_each: i % 2 == 1,
            });
            assert_eq!(contiguous, run(&batch, |_| false, splits, Mode::Fast));
        }
    }
}

#[test]
fn poison_reaches_only_rows_that_see_it() {
    for (q_len, heads) in [(4, (4, 1)), (30, (4, 2))] {
        for (i, poison) in [f32::NAN, f32::INFINITY].into_iter().enumerate() {
            let mut case = case([64, 128][i], true).heads(heads.0, heads.1);
            // No weight underflows in 16 bits, where 0·∞ would be NaN.
            case.softmax_scale = 0.03;
            let dim = case.head_dim;
            let k_len = 200;
            let lens = [(q_len, k_len)];
            let before = run(
                &batch(case.clone(), &lens),
                |_| false,
                SPLITS[1],
                Mode::Fast,
            );
            for key in [k_len - 1, k_len - 3, k_len - q_len, 5] {
                let mut values = case.clone();
                values.poisoned_values = vec![(0, key, poison)];
                let values = batch(values, &lens);
                let after = check(&values, SPLITS[1], Mode::Fast);
                for head in 0..heads.0 {
                    // Rows before the first that sees the key.
                    let rows = (key + q_len).saturating_sub(k_len);
                    let first = head * q_len * dim;
                    let of_head = first..first + rows * dim;
                    assert_eq!(before[0].o[of_head.clone()], after[0].o[of_head]);
                }
            }
        }
    }
}

#[test]
fn splits_fill_the_multiprocessors_and_share_every_tile() {
    use sample_attention_device::abi::Sequences;
    let params = |count, q_len, k_len| {
        let sequences = Sequences::uniform(count, q_len, k_len, true);
        SparseFlashParams::at_nowhere(sequences, (32, 8), 128)
    };
    for (count, q_len, k_len, splits) in [
        (1, 1, 1 << 17, 33),
        (8, 1, 1 << 15, 4),
        (32, 1, 1 << 13, 1),
        (1, 16, 1 << 17, 33),
        (1, 1, 100, 1),
        (1, 1, 0, 1),
    ] {
        let p = params(count, q_len, k_len);
        assert_eq!(
            Splits::even(&p, 132).count,
            splits,
            "{count} {q_len} {k_len}"
        );
    }
    // 4 MiB at most, beyond inputs and outputs.
    let p = params(1, 1, 1 << 17);
    let splits = Splits::even(&p, 132);
    assert!(4 * (splits.partial_o_len(&p) + splits.partial_sums_len(&p)) < 4 << 20);
}
