//! A case in the emulator.

use sample_attention_device::abi::{KvTensor, LseTensor, SparseMask};
use sample_attention_device::gpu::{Global, emu};
use sample_attention_device::launch::LaunchShape;
use sample_attention_device::params::TensorArg;
use sample_attention_device::sparse_flash::hopper::schedule::{
    self, Groups, ScheduleParams, TileScheduler,
};
use sample_attention_device::sparse_flash::hopper::{self, HopperParams};
use sample_attention_device::sparse_flash::{SparseFlashParams, portable};

use super::case::{Case, Dtype, HeadMask, Kernel};
use super::oracle::{self, Inputs};

/// What the kernel wrote, as [batch, head, row, head_dim] and [batch, head, row]: as numbers and as
/// bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub o: Vec<u32>,
    pub lse: Vec<u32>,
}

const UNTOUCHED: u32 = u32::MAX;

/// Runs the case on random inputs.
pub fn launch(case: &Case, inputs: &Inputs, mode: emu::Mode) -> Outcome {
    let mut device = emu::Gpu::new();
    let dim = case.head_dim;
    let mut upload = |name, data: &[f32], heads, tokens| {
        let [batch, head, token, len] = case.layout.strides(heads, tokens, dim, case.batch);
        let mut bits = vec![0xffff; len];
        for (i, row) in data.chunks_exact(dim).enumerate() {
            let at = i / tokens / heads * batch + i / tokens % heads * head + i % tokens * token;
            for (bits, &x) in bits[at..at + dim].iter_mut().zip(row) {
                *bits = case.dtype.round(x);
            }
        }
        TensorArg {
            address: device.upload(name, &bits).address().cast(),
            stride_batch: batch as u64,
            stride_head: head as u64,
            stride_token: token as u64,
        }
    };
    let q = upload("q", &inputs.q, case.q_heads, case.q_len);
    let k = upload("k", &inputs.k, case.kv_heads, case.k_len);
    let v = upload("v", &inputs.v, case.kv_heads, case.k_len);

    let [batch, head, token, len] = case
        .layout
        .strides(case.q_heads, case.q_len, dim, case.batch);
    let wide = device.alloc::<u32>("o", if case.output_f32 { len } else { 0 });
    let narrow = device.alloc::<u16>("o", if case.output_f32 { 0 } else { len });
    let heads = case.batch * case.q_heads;
    let lse = device.alloc::<f32>("lse", heads * case.q_len);
    let mut params = SparseFlashParams {
        sequences: case.sequences(),
        q_heads: case.q_heads as u32,
        kv_heads: case.kv_heads as u32,
        head_dim: dim as u32,
        scale_log2: case.softmax_scale * std::f32::consts::LOG2_E,
        output_f32: case.output_f32.into(),
        q,
        k: KvTensor::strided(k),
        v: KvTensor::strided(v),
        o: TensorArg {
            address: if case.output_f32 {
                wide.address().cast()
            } else {
                narrow.address().cast()
            },
            stride_batch: batch as u64,
            stride_head: head as u64,
            stride_token: token as u64,
        },
        lse: LseTensor {
            address: lse.address(),
            stride_batch: (case.q_heads * case.q_len) as u64,
            stride_head: case.q_len as u64,
        },
        mask: SparseMask::DENSE,
    };
    if let Some(masks) = &case.masks {
        params.mask = upload_masks(&mut device, case, masks);
    }
    let extents = |heads: usize, tokens: usize| [case.batch, heads, tokens].map(|x| x as u32);
    let extents = [
        extents(case.q_heads, case.q_len),
        extents(case.kv_heads, case.k_len),
    ];
    attend(&mut device, case.kernel, case.dtype, params, extents, mode)
        .unwrap_or_else(|fault| panic!("{fault}\n{case:?}"));

    let mut written: Vec<u32> = if case.output_f32 {
        device.read(&wide)
    } else {
        let narrow = device.read(&narrow).into_iter();
        narrow
            .map(|bits| {
                if bits == 0xffff {
                    UNTOUCHED
                } else {
                    bits.into()
                }
            })
            .collect()
    };
    let mut o = vec![];
    for row in 0..heads * case.q_len {
        let (h, t) = (row / case.q_len, row % case.q_len);
        let at = h / case.q_heads * batch + h % case.q_heads * head + t * token;
        for x in &mut written[at..at + dim] {
            o.push(std::mem::replace(x, UNTOUCHED));
        }
    }
    assert!(!o.contains(&UNTOUCHED), "an element of O was not written");
    assert!(
        written.iter().all(|&bits| bits == UNTOUCHED),
        "something was written between the rows of O"
    );
    let lse = device.read(&lse).into_iter().map(f32::to_bits).collect();
    Outcome { o, lse }
}

fn shape(shape: LaunchShape, mode: emu::Mode) -> emu::Launch {
    emu::Launch::new(shape.grid, shape.block)
        .shared_bytes(shape.shared_bytes)
        .mode(mode)
}

/// Runs a kernel. `extents` are those of the tensor maps of Q, and of K and V: batch or pages, heads, and tokens.
pub fn attend(
    device: &mut emu::Gpu,
    kernel: Kernel,
    dtype: Dtype,
    params: SparseFlashParams,
    extents: [[u32; 3]; 2],
    mode: emu::Mode,
) -> Result<(), emu::Fault> {
    match kernel {
        Kernel::Portable => launch_portable(device, dtype, &params, mode),
        Kernel::Hopper {
            rescale_threshold_log2,
        } => launch_hopper(device, dtype, params, extents, rescale_threshold_log2, mode),
    }
}

fn launch_portable(
    device: &mut emu::Gpu,
    dtype: Dtype,
    params: &SparseFlashParams,
    mode: emu::Mode,
) -> Result<(), emu::Fault> {
    let kernel = match (dtype, params.head_dim) {
        (Dtype::Bf16, 64) => portable::BF16_D64,
        (Dtype::Bf16, 128) => portable::BF16_D128,
        (Dtype::F16, 64) => portable::F16_D64,
        (Dtype::F16, 128) => portable::F16_D128,
        (_, dim) => panic!("no entry for head_dim {dim}"),
    };
    device.launch(kernel, &shape(portable::launch_shape(params), mode), params)
}

/// Few, so that each block has several tasks.
const MULTIPROCESSORS: u32 = 3;

fn launch_hopper(
    device: &mut emu::Gpu,
    dtype: Dtype,
    attention: SparseFlashParams,
    [of_q, of_kv]: [[u32; 3]; 2],
    rescale_threshold_log2: f32,
    mode: emu::Mode,
) -> Result<(), emu::Fault> {
    let work_tiles = schedule::work_tiles(&attention) as usize;
    let schedule = TileScheduler {
        taken: device.alloc::<u32>("taken", 1).address(),
        order: if attention.mask.is_dense() {
            Global::NULL
        } else {
            device.alloc::<u32>("order", work_tiles).address()
        },
        groups: Groups::new(&attention),
    };
    let order = ScheduleParams {
        attention,
        schedule,
    };
    device.launch(
        schedule::SCHEDULE,
        &shape(schedule::launch_shape(&attention, &schedule), mode),
        &order,
    )?;
    let map = |layout| emu::tensor_map(&layout).expect("a valid layout");
    let dim = attention.head_dim;
    let params = HopperParams {
        q_map: map(hopper::map_layout(&attention.q, dim, of_q)),
        k_map: map(hopper::kv_map_layout(&attention.k, dim, of_kv)),
        v_map: map(hopper::kv_map_layout(&attention.v, dim, of_kv)),
        attention,
        schedule,
        rescale_threshold_log2,
    };
    let kernel = match (dtype, dim) {
        (Dtype::Bf16, 64) => hopper::BF16_D64,
        (Dtype::Bf16, 128) => hopper::BF16_D128,
        (Dtype::F16, 64) => hopper::F16_D64,
        (Dtype::F16, 128) => hopper::F16_D128,
        (_, dim) => panic!("no entry for head_dim {dim}"),
    };
    let shape = shape(hopper::launch_shape(&attention, MULTIPROCESSORS), mode);
    device.launch(kernel, &shape, &params)
}

/// Puts the masks in the kernels' layout.
fn upload_masks(device: &mut emu::Gpu, case: &Case, masks: &[HeadMask]) -> SparseMask {
    let sequences = case.sequences();
    let tiles = sequences.query_tiles();
    let capacity = sequences.max_key_blocks();
    let key_capacity = masks.iter().map(|mask| mask.stripes.len()).max().unwrap();
    let (mut lists, mut counts, mut keys) = (vec![], vec![], vec![]);
    for q_head in 0..case.q_heads {
        for tile in 0..tiles {
            let tile = sequences.query_tile(tile).expect("lengths are uniform");
            let mask = &masks[tile.sequence.index as usize * case.q_heads + q_head];
            let list = tile
                .query_block
                .and_then(|block| mask.blocks.get(block as usize));
            let mut row = list.cloned().unwrap_or_default();
            // A dense head's lists are not read: any number will do.
            counts.push(if mask.dense {
                u32::MAX
            } else {
                row.len() as u32
            });
            row.resize(capacity as usize, u32::MAX);
            lists.extend(row);
        }
    }
    for mask in masks {
        let mut row = mask.stripes.clone();
        row.resize(key_capacity, 0);
        keys.extend(row);
    }
    let mut mask = SparseMask {
        kv_num_blocks: device.upload("kv_num_blocks", &counts).address(),
        kv_indices: device.upload("kv_indices", &lists).address(),
        block_capacity: capacity,
        key_capacity: key_capacity as u32,
        sinks: case.sinks as u32,
        tiles,
        ..SparseMask::DENSE
    };
    if masks.iter().any(|mask| mask.dense) {
        let dense: Vec<u32> = masks.iter().map(|mask| mask.dense.into()).collect();
        mask.dense = device.upload("dense", &dense).address();
    }
    if key_capacity != 0 {
        let counts: Vec<u32> = masks.iter().map(|m| m.stripes.len() as u32).collect();
        mask.key_indices = device.upload("key_indices", &keys).address();
        mask.num_keys = device.upload("num_keys", &counts).address();
    }
    mask
}

/// Runs the case and compares with the definition of attention: O within twice the error of a 16-bit
/// reference, and the log-sum-exp.
#[track_caller]
pub fn check(case: &Case, mode: emu::Mode) -> Outcome {
    let inputs = Inputs::random(case);
    let outcome = launch(case, &inputs, mode);
    compare(case, &inputs, &outcome);
    outcome
}

/// The same for what some kernel wrote.
#[track_caller]
pub fn compare(case: &Case, inputs: &Inputs, outcome: &Outcome) {
    let (want, error16) = oracle::attention(case, inputs);
    let bound = 2.0 * error16 + 1e-5;
    let widen = |bits: u32| {
        f64::from(if case.output_f32 {
            f32::from_bits(bits)
        } else {
            case.dtype.widen(bits as u16)
        })
    };
    let mut worst = (0.0, 0);
    for (i, (&bits, &want)) in outcome.o.iter().zip(&want.o).enumerate() {
        let got = widen(bits);
        // Infinities and NaNs must be where the definition has them.
        let error = if want.is_finite() {
            (got - want).abs()
        } else if got.is_nan() == want.is_nan() && (got.is_nan() || got == want) {
            0.0
        } else {
            f64::INFINITY
        };
        if error.is_nan() || error > worst.0 {
            worst = (if error.is_nan() { f64::INFINITY } else { error }, i);
        }
    }
    let (error, i) = worst;
    let (row, column) = (i / case.head_dim, i % case.head_dim);
    assert!(
        error <= bound,
        "O[head {}, row {}, {column}] is {}, not {} (error {error:.2e}, allowed {bound:.2e})\n{case:?}",
        row / case.q_len,
        row % case.q_len,
        widen(outcome.o[i]),
        want.o[i],
    );
    for (i, (&bits, &want)) in outcome.lse.iter().zip(&want.lse).enumerate() {
        let got = f64::from(f32::from_bits(bits));
        let close = (got - want).abs() <= 1e-5 * (1.0 + want.abs());
        assert!(
            close || got == want || got.is_nan() && want.is_nan(),
            "lse[head {}, row {}] is {got}, not {want}\n{case:?}",
            i / case.q_len,
            i % case.q_len,
        );
    }
}
