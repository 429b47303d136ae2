//! The merge of attention over two sets of keys in the emulator.

use sample_attention_device::abi::LseTensor;
use sample_attention_device::gpu::Global;
use sample_attention_device::gpu::emu::{Gpu, Kernel, Launch, Mode};
use sample_attention_device::merge::{self, MERGE_BF16, MERGE_F16, MERGE_F32, MergeParams};
use sample_attention_device::params::TensorArg;

mod attention;

use attention::case::{Dtype, random};

const BATCH: usize = 2;
const HEADS: usize = 3;
const ROWS: usize = 9;

/// An element type: its kernel and bits.
struct Element {
    kernel: Kernel<MergeParams>,
    dtype: Option<Dtype>,
    tolerance: f64,
}

fn elements() -> [Element; 3] {
    let element = |kernel, dtype, tolerance| Element {
        kernel,
        dtype,
        tolerance,
    };
    [
        element(MERGE_F32, None, 1e-6),
        element(MERGE_BF16, Some(Dtype::Bf16), 1.0 / 256.0),
        element(MERGE_F16, Some(Dtype::F16), 1.0 / 2048.0),
    ]
}

#[test]
fn merged_halves_are_the_average_by_their_masses() {
    for element in elements() {
        for head_dim in [64, 128, 256] {
            let len = BATCH * HEADS * ROWS;
            let round = |x: f32| match element.dtype {
                None => x,
                Some(dtype) => dtype.widen(dtype.round(x)),
            };
            let sides = [1, 2].map(|seed| -> Vec<f32> {
                let o = random(len * head_dim, seed).into_iter();
                o.map(|x| if seed == 2 { round(x) } else { round(3.0 * x) })
                    .collect()
            });
            let mut lse = [3, 4].map(|seed| -> Vec<f32> {
                random(len, seed).into_iter().map(|x| 20.0 * x).collect()
            });
            // Either side empty, and both; what O holds there does not count.
            lse[0][3] = f32::NEG_INFINITY;
            lse[1][4] = f32::NEG_INFINITY;
            (lse[0][5], lse[1][5]) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
            let mut with_garbage = sides.clone();
            with_garbage[0][3 * head_dim..4 * head_dim].fill(f32::NAN);
            with_garbage[1][5 * head_dim..6 * head_dim].fill(f32::INFINITY);

            let mut gpu = Gpu::new();
            let mut upload = |name, data: &[f32]| -> Global<u8> {
                match element.dtype {
                    None => gpu.upload(name, data).address().cast(),
                    Some(dtype) => {
                        let bits: Vec<u16> = data.iter().map(|&x| dtype.round(x)).collect();
                        gpu.upload(name, &bits).address().cast()
                    }
                }
            };
            let tensor = |address: Global<u8>| {
                let [heads, rows, dim] = [HEADS, ROWS, head_dim].map(|x| x as u32);
                TensorArg::contiguous(address, heads, rows, dim)
            };
            let o = [
                tensor(upload("o_a", &with_garbage[0])),
                tensor(upload("o_b", &with_garbage[1])),
            ];
            let lse_tensor = |address| LseTensor {
                address,
                stride_batch: (HEADS * ROWS) as u64,
                stride_head: ROWS as u64,
            };
            let of_lse = [
                lse_tensor(gpu.upload("lse_a", &lse[0]).address()),
                lse_tensor(gpu.upload("lse_b", &lse[1]).address()),
            ];
            let wide = gpu.alloc::<f32>("o", len * head_dim);
            let narrow = gpu.alloc::<u16>("o", len * head_dim);
            let merged_lse = gpu.alloc::<f32>("lse", len);
            let params = MergeParams {
                o,
                lse: of_lse,
                merged_o: tensor(match element.dtype {
                    None => wide.address().cast(),
                    Some(_) => narrow.address().cast(),
                }),
                merged_lse: lse_tensor(merged_lse.address()),
                batch: BATCH as u32,
                heads: HEADS as u32,
                rows: ROWS as u32,
                head_dim: head_dim as u32,
            };
            let shape = merge::launch_shape(&params);
            let launch = Launch::new(shape.grid, shape.block).mode(Mode::Checked { seed: 1 });
            gpu.launch(element.kernel, &launch, &params)
                .unwrap_or_else(|fault| panic!("{fault}"));
            let got: Vec<f32> = match element.dtype {
                None => gpu.read(&wide),
                Some(dtype) => gpu
                    .read(&narrow)
                    .into_iter()
                    .map(|x| dtype.widen(x))
                    .collect(),
            };
            let got_lse = gpu.read(&merged_lse);
            for row in 0..len {
                let [a, b] = [lse[0][row], lse[1][row]].map(|lse| f64::from(lse).exp());
                let want = (a + b).ln();
                let close = (f64::from(got_lse[row]) - want).abs() <= 1e-5 * (1.0 + want.abs());
                assert!(close || f64::from(got_lse[row]) == want, "lse of row {row}");
                for column in 0..head_dim {
                    let at = row * head_dim + column;
                    let [x, y] = [&sides[0], &sides[1]].map(|side| f64::from(side[at]));
                    let want = if a + b == 0.0 {
                        0.0
                    } else {
                        (a * x + b * y) / (a + b)
                    };
                    let error = (f64::from(got[at]) - want).abs();
                    let allowed = element.tolerance * (1.0 + want.abs());
                    assert!(error <= allowed, "row {row}: {} and not {want}", got[at]);
                }
            }
        }
    }
}
