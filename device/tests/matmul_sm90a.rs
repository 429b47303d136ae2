//! A worked example: a matrix product with TMA, mbarriers and `wgmma`.
//!
//! C = A · B for row-major `bf16` A [m, k], B [k, n] and `f32` C. A block makes a 64 × 64 tile of C
//! with two warpgroups: one thread of the first, the producer, issues bulk tensor loads of 64 × 64
//! tiles into two stages; the second, the consumer, multiplies, and stores its tile by TMA.
//!
//! Synchronisation: `full[s]` takes one arrival (the producer's, expecting both tiles' bytes);
//! `empty[s]` takes four (lane 0 of each consumer warp, after its wait for the product).

use sample_attention_device::gpu::{
    self, Global, KMajor, MnMajor, Shared, Swizzle, TensorMap, TensorMapLayout, Walk, emu,
};

mod support;

const TILE: u32 = 64;
const TILE_BYTES: u32 = TILE * TILE * 2;
const C_BYTES: u32 = TILE * TILE * 4;
const STAGES: u32 = 2;
/// Tiles of A and B, a tile of C, then the mbarriers.
const BARRIERS_AT: u32 = STAGES * 2 * TILE_BYTES + C_BYTES;
const SHARED_BYTES: u32 = BARRIERS_AT + STAGES * 2 * 8;

/// m, n and k are multiples of 64.
#[repr(C)]
struct Params {
    a: TensorMap,
    b: TensorMap,
    c: TensorMap,
    k: u32,
}

fn full(stage: u32) -> Shared<u64> {
    gpu::dynamic_shared()
        .byte_add(BARRIERS_AT)
        .cast()
        .add(stage)
}

fn empty(stage: u32) -> Shared<u64> {
    full(STAGES + stage)
}

fn tiles(stage: u32) -> (Shared<u16>, Shared<u16>) {
    let a = gpu::dynamic_shared()
        .byte_add(stage * 2 * TILE_BYTES)
        .cast();
    (a, a.byte_add(TILE_BYTES))
}

fn matmul(p: &Params) {
    let thread = gpu::tid_x();
    if thread == 0 {
        for stage in 0..STAGES {
            gpu::mbarrier_init(full(stage), 1);
            gpu::mbarrier_init(empty(stage), 4);
        }
        gpu::fence_mbarrier_init();
    }
    gpu::bar_sync(0);
    let steps = p.k / TILE;
    if gpu::shfl_sync_idx(gpu::FULL_MASK, thread / 128, 0) == 0 {
        gpu::setmaxnreg_dec::<40>();
        if thread == 0 {
            produce(p, steps);
        }
    } else {
        gpu::setmaxnreg_inc::<232>();
        consume(p, steps);
    }
}

fn produce(p: &Params, steps: u32) {
    let (row, column) = (gpu::ctaid_y() * TILE, gpu::ctaid_x() * TILE);
    for step in 0..steps {
        let (stage, round) = (step % STAGES, step / STAGES);
        gpu::mbarrier_wait_parity(empty(stage), round & 1 ^ 1);
        gpu::mbarrier_arrive_expect_tx(full(stage), 2 * TILE_BYTES);
        let (a, b) = tiles(stage);
        let k = (step * TILE) as i32;
        gpu::cp_async_bulk_tensor_2d_shared_global(a, &p.a, [k, row as i32], full(stage));
        gpu::cp_async_bulk_tensor_2d_shared_global(b, &p.b, [column as i32, k], full(stage));
    }
}

fn consume(p: &Params, steps: u32) {
    let (thread, lane) = (gpu::tid_x() - 128, gpu::laneid());
    let mut d = [0.0; 32];
    for step in 0..steps {
        let (stage, round) = (step % STAGES, step / STAGES);
        gpu::mbarrier_wait_parity(full(stage), round & 1);
        let (a, b) = tiles(stage);
        gpu::wgmma_m64n64k16x4_f32_bf16_ss::<KMajor<TILE>, MnMajor<TILE>>(
            &mut d,
            KMajor::<TILE>::descriptor(a),
            MnMajor::<TILE>::descriptor(b),
        );
        gpu::wgmma_wait_group::<0, _>(&mut d);
        if lane == 0 {
            gpu::mbarrier_arrive(empty(stage));
        }
    }
    let tile = gpu::dynamic_shared()
        .byte_add(STAGES * 2 * TILE_BYTES)
        .cast::<f32>();
    for pair in 0..16 {
        let [row, column] = gpu::fragment::WgmmaM64K16::accumulator(thread, 2 * pair);
        let at = tile.add((row * TILE as usize + column) as u32);
        let i = 2 * pair as usize;
        gpu::st_shared_v2(at, [d[i], d[i + 1]]);
    }
    gpu::fence_proxy_async_shared_cta();
    gpu::bar_sync_count(1, 128);
    if thread == 0 {
        let at = [gpu::ctaid_x() * TILE, gpu::ctaid_y() * TILE].map(|n| n as i32);
        gpu::cp_async_bulk_tensor_2d_global_shared(&p.c, at, tile);
        gpu::cp_async_bulk_commit_group();
        gpu::cp_async_bulk_wait_group::<0>();
    }
}

fn layout<T>(base: Global<T>, rows: usize, columns: usize, swizzle: Swizzle) -> TensorMapLayout {
    TensorMapLayout {
        base: base.address(),
        element_bytes: size_of::<T>() as u32,
        rank: 2,
        dims: [columns as u64, rows as u64, 0, 0, 0],
        strides_bytes: [(columns * size_of::<T>()) as u64, 0, 0, 0],
        box_dims: [TILE, TILE, 0, 0, 0],
        swizzle,
    }
}

fn run(mode: emu::Mode) -> Vec<f32> {
    let [m, n, k] = [64usize, 128, 320];
    let (a, b) = (
        support::random_bf16(m * k, 1),
        support::random_bf16(k * n, 2),
    );
    let mut device = emu::Gpu::new();
    let a_layout = layout(device.upload("a", &a).address(), m, k, Swizzle::Bytes128);
    let b_layout = layout(device.upload("b", &b).address(), k, n, Swizzle::Bytes128);
    let c = device.alloc::<f32>("c", m * n);
    let c_layout = layout(c.address(), m, n, Swizzle::None);
    let map = |layout| emu::tensor_map(layout).expect("a valid layout");
    let params = Params {
        a: map(&a_layout),
        b: map(&b_layout),
        c: map(&c_layout),
        k: k as u32,
    };
    let shape = emu::Launch::new([n as u32 / TILE, m as u32 / TILE, 1], [256, 1, 1])
        .shared_bytes(SHARED_BYTES)
        .mode(mode);
    device
        .launch(emu::Kernel::new("matmul_sm90a", matmul), &shape, &params)
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
