//! A worked example: a tiled matrix product with `cp.async`, `ldmatrix` and `mma.sync`.
//!
//! C = A · B for row-major `bf16` A [m, k], B [k, n] and `f32` C. A block makes a 64 × 64 tile of C
//! with four warps of 16 rows each, walking k in steps of 32 through two stages of shared memory.
//! Rows in shared memory are padded by 16 bytes, so that `ldmatrix` meets every bank once.

use sample_attention_device::gpu::{self, Global, Shared, emu};

mod support;

const TILE: u32 = 64;
const TILE_K: u32 = 32;
const THREADS: u32 = 128;
const A_ROW_BYTES: u32 = TILE_K * 2 + 16;
const B_ROW_BYTES: u32 = TILE * 2 + 16;
const STAGE_BYTES: u32 = TILE * A_ROW_BYTES + TILE_K * B_ROW_BYTES;
const SHARED_BYTES: u32 = 2 * STAGE_BYTES;

/// m and n are multiples of 64, k of 32.
#[repr(C)]
#[derive(Clone, Copy)]
struct Params {
    a: Global<u16>,
    b: Global<u16>,
    c: Global<f32>,
    n: u32,
    k: u32,
}

sample_attention_device::entry! {
    /// The example as a PTX entry.
    MATMUL, matmul_sm80 = matmul, Params
}

fn stage(index: u32) -> (Shared<u8>, Shared<u8>) {
    let a = gpu::dynamic_shared().byte_add(index % 2 * STAGE_BYTES);
    (a, a.byte_add(TILE * A_ROW_BYTES))
}

fn copy_tiles(p: &Params, step: u32) {
    let (a, b) = stage(step);
    let (row, column) = (gpu::ctaid_y() * TILE, gpu::ctaid_x() * TILE);
    let mut chunk = gpu::tid_x();
    while chunk < TILE * TILE_K / 8 {
        let (r, c) = (chunk / (TILE_K / 8), chunk % (TILE_K / 8));
        let from = u64::from(row + r) * u64::from(p.k) + u64::from(step * TILE_K + c * 8);
        gpu::cp_async_cg_16(a.byte_add(r * A_ROW_BYTES + c * 16).cast(), p.a.add(from));
        let (r, c) = (chunk / (TILE / 8), chunk % (TILE / 8));
        let from = u64::from(step * TILE_K + r) * u64::from(p.n) + u64::from(column + c * 8);
        gpu::cp_async_cg_16(b.byte_add(r * B_ROW_BYTES + c * 16).cast(), p.b.add(from));
        chunk += THREADS;
    }
    gpu::cp_async_commit_group();
}

fn matmul(p: &Params) {
    let lane = gpu::laneid();
    let warp = gpu::tid_x() / 32;
    let steps = p.k / TILE_K;
    let mut c = [[0.0; 4]; 8];
    copy_tiles(p, 0);
    for step in 0..steps {
        if step + 1 < steps {
            copy_tiles(p, step + 1);
            gpu::cp_async_wait_group::<1>();
        } else {
            gpu::cp_async_wait_group::<0>();
        }
        gpu::bar_sync(0);
        let (a, b) = stage(step);
        for k in 0..TILE_K / 16 {
            let a_row = warp * 16 + lane % 16;
            let a = gpu::ldmatrix_x4(a.byte_add(a_row * A_ROW_BYTES + k * 32 + lane / 16 * 16));
            for (column, c) in c.iter_mut().enumerate() {
                let row = b.byte_add((k * 16 + lane % 16) * B_ROW_BYTES + column as u32 * 16);
                *c = gpu::mma_m16n8k16_f32_bf16(a, gpu::ldmatrix_x2_trans(row), *c);
            }
        }
        // The stage is refilled in the next iteration.
        gpu::bar_sync(0);
    }
    for (tile, c) in c.into_iter().enumerate() {
        for pair in 0..2 {
            let [row, column] = gpu::fragment::MmaM16N8K16::c(lane, 2 * pair);
            let row = gpu::ctaid_y() * TILE + warp * 16 + row as u32;
            let column = gpu::ctaid_x() * TILE + tile as u32 * 8 + column as u32;
            let at = p.c.add(u64::from(row) * u64::from(p.n) + u64::from(column));
            let i = 2 * pair as usize;
            gpu::st_global_v2(at, [c[i], c[i + 1]]);
        }
    }
}

fn run(mode: emu::Mode) -> Vec<f32> {
    let [m, n, k] = [128usize, 64, 96];
    let (a, b) = (
        support::random_bf16(m * k, 1),
        support::random_bf16(k * n, 2),
    );
    let mut device = emu::Gpu::new();
    let params = Params {
        a: device.upload("a", &a).address(),
        b: device.upload("b", &b).address(),
        c: Global::NULL,
        n: n as u32,
        k: k as u32,
    };
    let c = device.alloc::<f32>("c", m * n);
    let params = Params {
        c: c.address(),
        ..params
    };
    let shape = emu::Launch::new([n as u32 / TILE, m as u32 / TILE, 1], [THREADS, 1, 1])
        .shared_bytes(SHARED_BYTES)
        .mode(mode);
    device
        .launch(MATMUL, &shape, &params)
        .unwrap_or_else(|fault| panic!("{fault}"));
    let c = device.read(&c);
    support::assert_matmul(&c, &a, &b, [m, n, k]);
    c
}

#[test]
fn matches_f64_in_both_modes_and_any_order() {
    let fast = run(emu::Mode::Fast);
    for seed in 0..4 {
        assert_eq!(fast, run(emu::Mode::Checked { seed }), "seed {seed}");
    }
}
