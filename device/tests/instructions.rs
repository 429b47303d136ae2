//! What instructions compute and move, against plain definitions of the same.

use sample_attention_device::gpu::emu::{Gpu, Kernel, Launch, Mode};
use sample_attention_device::gpu::fragment::{MmaM16N8K16, WgmmaM64K16};
use sample_attention_device::gpu::{
    self, FULL_MASK, Global, KMajor, MnMajor, Shared, Swizzle, TensorMap, TensorMapLayout, Walk,
};

mod support;

const SHARED_BYTES: u32 = 80 * 1024;

fn shared<T>(byte: u32) -> Shared<T> {
    gpu::dynamic_shared().byte_add(byte).cast()
}

#[track_caller]
fn launch<P: Sync>(device: &mut Gpu, threads: u32, kernel: fn(&P), params: &P) {
    let shape = Launch::new([1, 1, 1], [threads, 1, 1])
        .shared_bytes(SHARED_BYTES)
        .mode(Mode::Checked { seed: 11 });
    device
        .launch(Kernel::new("instructions", kernel), &shape, params)
        .unwrap_or_else(|fault| panic!("{fault}"));
}

/// Runs a kernel that leaves `N` words a thread.
#[track_caller]
fn words<const N: usize>(threads: u32, kernel: fn(&Global<u32>)) -> Vec<[u32; N]> {
    let mut device = Gpu::new();
    let out = device.alloc::<u32>("out", threads as usize * N);
    launch(&mut device, threads, kernel, &out.address());
    let words = device.read(&out);
    words.as_chunks::<N>().0.to_vec()
}

fn put<const N: usize>(out: &Global<u32>, words: [u32; N]) {
    for (i, word) in words.into_iter().enumerate() {
        gpu::st_global(out.add(u64::from(gpu::tid_x()) * N as u64 + i as u64), word);
    }
}

#[test]
fn shuffles_read_the_lane_they_name() {
    let got = words::<5>(32, |out| {
        let (all, lane) = (FULL_MASK, gpu::laneid());
        put(
            out,
            [
                gpu::shfl_sync_idx(all, lane * 10, lane + 33),
                gpu::shfl_sync_bfly(all, lane * 10, 5),
                gpu::shfl_sync_up(all, lane * 10, 3),
                gpu::shfl_sync_down(all, lane * 10, 3),
                gpu::shfl_sync_idx(all, lane as f32, 2).to_bits(),
            ],
        );
    });
    for (lane, got) in (0..32u32).zip(got) {
        let up = if lane < 3 { lane } else { lane - 3 };
        let down = if lane > 28 { lane } else { lane + 3 };
        let want = [
            (lane + 1) % 32 * 10,
            (lane ^ 5) * 10,
            up * 10,
            down * 10,
            2f32.to_bits(),
        ];
        assert_eq!(got, want, "lane {lane}");
    }
}

#[test]
fn votes_and_reductions_combine_their_lanes() {
    let got = words::<8>(32, |out| {
        let (all, lane) = (FULL_MASK, gpu::laneid());
        put(
            out,
            [
                gpu::vote_sync_ballot(all, lane % 3 == 0),
                u32::from(gpu::vote_sync_any(all, lane == 31)),
                u32::from(gpu::vote_sync_all(all, lane == 31)),
                gpu::match_any_sync(all, lane / 16),
                gpu::redux_sync_add_u32(all, lane),
                gpu::redux_sync_min_u32(all, lane + 4),
                gpu::redux_sync_xor_b32(all, 1 << lane),
                u32::from(gpu::elect_sync(all)),
            ],
        );
    });
    for (lane, got) in (0..32u32).zip(got) {
        let same = if lane < 16 { 0xffff } else { 0xffff_0000 };
        let want = [
            0x4924_9249,
            1,
            0,
            same,
            496,
            4,
            u32::MAX,
            u32::from(lane == 0),
        ];
        assert_eq!(got, want, "lane {lane}");
    }
}

#[test]
fn block_reductions_see_every_thread() {
    let got = words::<3>(96, |out| {
        let thread = gpu::tid_x();
        let count = gpu::bar_red_popc(0, thread.is_multiple_of(5));
        let all = gpu::bar_red_and(0, thread != 95);
        put(
            out,
            [
                count,
                u32::from(all),
                u32::from(gpu::bar_red_or(0, thread == 95)),
            ],
        );
    });
    assert_eq!(got, [[20, 0, 1]; 96]);
}

#[test]
fn ldmatrix_gives_the_operands_of_mma() {
    // A 16 × 16 matrix whose element (r, c) is 16·r + c, row-major in 32-byte rows.
    let got = words::<6>(32, |out| {
        let lane = gpu::laneid();
        for i in 0..8 {
            gpu::st_shared(shared((lane * 8 + i) * 2), (lane * 8 + i) as u16);
        }
        gpu::bar_warp_sync(FULL_MASK);
        let a = gpu::ldmatrix_x4(shared::<u16>(lane % 16 * 32 + lane / 16 * 16));
        let b = gpu::ldmatrix_x2_trans(shared::<u16>(lane % 16 * 32));
        put(out, [a[0], a[1], a[2], a[3], b[0], b[1]]);
    });
    for (lane, got) in (0..32u32).zip(got) {
        let half = |register: u32, i: u32| (register >> (i % 2 * 16)) as u16 as usize;
        for i in 0..8 {
            let [row, k] = MmaM16N8K16::a(lane, i);
            assert_eq!(half(got[i as usize / 2], i), 16 * row + k);
        }
        for i in 0..4 {
            let [k, column] = MmaM16N8K16::b(lane, i);
            assert_eq!(half(got[4 + i as usize / 2], i), 16 * k + column);
        }
    }
}

#[test]
fn stmatrix_undoes_ldmatrix() {
    let got = words::<2>(32, |out| {
        let lane = gpu::laneid();
        let row = shared::<u16>(lane * 16);
        gpu::st_shared_v4(
            row.cast(),
            [lane * 4, lane * 4 + 1, lane * 4 + 2, lane * 4 + 3],
        );
        gpu::bar_warp_sync(FULL_MASK);
        let (plain, transposed) = (gpu::ldmatrix_x4(row), gpu::ldmatrix_x4_trans(row));
        gpu::bar_warp_sync(FULL_MASK);
        gpu::stmatrix_x4(row.byte_add(512), plain);
        gpu::stmatrix_x4_trans(row.byte_add(1024), transposed);
        gpu::bar_warp_sync(FULL_MASK);
        let same = |at| {
            gpu::ld_shared_v4(row.byte_add(at).cast::<u32>())
                == gpu::ld_shared_v4(row.cast::<u32>())
        };
        put(out, [u32::from(same(512)), u32::from(same(1024))]);
    });
    assert_eq!(got, [[1, 1]; 32]);
}

#[test]
fn narrow_conversions_round_to_nearest_even() {
    let got = words::<4>(1, |out| {
        let tie = 1.0 + 1.0 / 256.0;
        put(
            out,
            [
                gpu::cvt_rn_bf16x2_f32(-2.0, tie),
                gpu::cvt_rn_f16x2_f32(65520.0, 1.0 + 1.0 / 2048.0),
                u32::from(gpu::cvt_rn_bf16_f32(f32::NAN)),
                gpu::ex2_approx_ftz_f32(f32::NEG_INFINITY).to_bits(),
            ],
        );
    });
    assert_eq!(got, [[0xc000_3f80, 0x7c00_3c00, 0x7fff, 0]]);
}

#[test]
fn extremes_prefer_numbers() {
    let got = words::<1>(1, |out| {
        let nan = f32::NAN;
        let extremes = [gpu::max_f32(nan, 1.0), gpu::min_f32(1.0, nan)];
        put(out, [u32::from(extremes == [1.0; 2])]);
    });
    assert_eq!(got, [[1]]);
}

/// A tensor of 3 planes of 10 rows of 72 elements, with padded strides, and a map of it.
struct Planes {
    device: Gpu,
    data: Vec<u16>,
    buffer: gpu::emu::Buffer<u16>,
    map: TensorMap,
}

const ROW: usize = 80;
const PLANE: usize = 11 * ROW;

fn planes(swizzle: Swizzle) -> Planes {
    let mut device = Gpu::new();
    let data: Vec<u16> = (0..3 * PLANE as u16).collect();
    let buffer = device.upload("planes", &data);
    let layout = TensorMapLayout {
        base: buffer.address().address(),
        element_bytes: 2,
        rank: 3,
        dims: [72, 10, 3, 0, 0],
        strides_bytes: [ROW as u64 * 2, PLANE as u64 * 2, 0, 0],
        box_dims: [(swizzle.row_bytes() / 2).max(16), 4, 2, 0, 0],
        swizzle,
    };
    let map = gpu::emu::tensor_map(&layout).expect("a valid layout");
    Planes {
        device,
        data,
        buffer,
        map,
    }
}

struct Corner {
    map: TensorMap,
    at: [i32; 3],
    bytes: u32,
    out: Global<u32>,
}

fn load_box(p: &Corner) {
    let mbarrier = shared::<u64>(0);
    let tile = shared::<u32>(1024);
    if gpu::tid_x() == 0 {
        gpu::mbarrier_init(mbarrier, 1);
        gpu::mbarrier_arrive_expect_tx(mbarrier, p.bytes);
        gpu::cp_async_bulk_tensor_3d_shared_global(tile, &p.map, p.at, mbarrier);
    }
    gpu::bar_sync(0);
    gpu::mbarrier_wait_parity(mbarrier, 0);
    let mut word = gpu::tid_x();
    while word < p.bytes / 4 {
        gpu::st_global(p.out.add(word.into()), gpu::ld_shared(tile.add(word)));
        word += 32;
    }
}

#[test]
fn tensor_loads_swizzle_and_fill_with_zeros() {
    for swizzle in [
        Swizzle::None,
        Swizzle::Bytes32,
        Swizzle::Bytes64,
        Swizzle::Bytes128,
    ] {
        for at in [[0, 0, 0], [8, 3, 1], [-3, -2, -1], [61, 8, 2], [100, 0, 0]] {
            let Planes {
                mut device,
                data,
                map,
                ..
            } = planes(swizzle);
            let width = (swizzle.row_bytes() / 2).max(16) as usize;
            let bytes = (width * 2 * 4 * 2) as u32;
            let out = device.alloc::<u32>("out", bytes as usize / 4);
            let corner = Corner {
                map,
                at,
                bytes,
                out: out.address(),
            };
            launch(&mut device, 32, load_box, &corner);
            let out = device.read(&out);
            for (z, y, x) in
                (0..2).flat_map(|z| (0..4).flat_map(move |y| (0..width).map(move |x| (z, y, x))))
            {
                let offset = swizzle.apply((((z * 4 + y) * width + x) * 2) as u32);
                let got = (out[offset as usize / 4] >> (offset % 4 * 8)) as u16;
                let [gx, gy, gz] = [x, y, z].map(|n| n as i32);
                let [gx, gy, gz] = [gx + at[0], gy + at[1], gz + at[2]];
                let inside = (0..72).contains(&gx) && (0..10).contains(&gy) && (0..3).contains(&gz);
                let want = if inside {
                    data[gz as usize * PLANE + gy as usize * ROW + gx as usize]
                } else {
                    0
                };
                assert_eq!(got, want, "{swizzle:?} {at:?}: element ({x}, {y}, {z})");
            }
        }
    }
}

#[test]
fn tensor_stores_leave_what_is_outside_alone() {
    let Planes {
        mut device,
        data,
        buffer,
        map,
    } = planes(Swizzle::Bytes128);
    let corner = Corner {
        map,
        at: [60, -1, 2],
        bytes: 1024,
        out: Global::NULL,
    };
    launch(
        &mut device,
        32,
        |p: &Corner| {
            for i in 0..8 {
                gpu::st_shared(shared::<u32>((i * 32 + gpu::tid_x()) * 4), 0xabcd_abcd);
            }
            gpu::fence_proxy_async_shared_cta();
            gpu::bar_sync(0);
            if gpu::tid_x() == 0 {
                gpu::cp_async_bulk_tensor_3d_global_shared(&p.map, p.at, shared::<u32>(0));
                gpu::cp_async_bulk_commit_group();
                gpu::cp_async_bulk_wait_group::<0>();
            }
        },
        &corner,
    );
    for (i, (&was, is)) in data.iter().zip(device.read(&buffer)).enumerate() {
        let (z, y, x) = (i / PLANE, i % PLANE / ROW, i % ROW);
        let written = z == 2 && y < 3 && (60..72).contains(&x);
        assert_eq!(
            is,
            if written { 0xabcd } else { was },
            "element ({x}, {y}, {z})"
        );
    }
}

/// Tiles for products: A [64, 128], B [128, 128] as rows of 128 elements, and D [64, n].
#[derive(Clone, Copy)]
struct Tiles {
    a: Global<u16>,
    b: Global<u16>,
    d: Global<f32>,
}

const B_AT: u32 = 64 * 256;

/// Lays rows of 128 elements down as two halves in 128-byte swizzled rows.
fn lay_down(to: u32, from: Global<u16>, rows: u32) {
    let mut chunk = gpu::tid_x();
    while chunk < rows * 16 {
        let (row, column) = (chunk / 16, chunk % 16);
        let at = to + column / 8 * rows * 128 + row * 128 + ((column % 8) ^ (row % 8)) * 16;
        gpu::st_shared_v4(
            shared(at),
            gpu::ld_global_v4(from.add((chunk * 8).into()).cast::<u32>()),
        );
        chunk += 128;
    }
}

fn begin(p: &Tiles) {
    lay_down(0, p.a, 64);
    lay_down(B_AT, p.b, 128);
    gpu::fence_proxy_async_shared_cta();
    gpu::bar_sync(0);
}

fn end<const N: usize>(p: &Tiles, d: &[f32; N]) {
    for (i, &value) in d.iter().enumerate() {
        let [row, column] = WgmmaM64K16::accumulator(gpu::tid_x(), i as u32);
        gpu::st_global(p.d.add((row * N * 2 + column) as u64), value);
    }
}

/// A's fragments of all eight k-steps, in registers.
fn a_registers(p: &Tiles) -> [[u32; 4]; 8] {
    std::array::from_fn(|step| {
        std::array::from_fn(|register| {
            let [row, k] = WgmmaM64K16::a(gpu::tid_x(), register as u32 * 2);
            let at = p.a.add((row * 128 + step * 16 + k) as u64);
            gpu::ld_global(at.cast::<u32>())
        })
    })
}

/// Runs a product and checks D = A · B (or A · Bᵀ) over the first `k`, times `times`.
#[track_caller]
fn assert_product(n: usize, k: usize, transposed: bool, times: f64, f16: bool, kernel: fn(&Tiles)) {
    let (a, b) = (
        support::random_bf16(64 * 128, 5),
        support::random_bf16(128 * 128, 6),
    );
    let wide = |bits: u16| half::bf16::from_bits(bits).to_f64();
    // As f16 the same numbers, but for what underflows.
    let narrow = |data: &[u16]| -> Vec<u16> {
        let number = |&bits: &u16| half::f16::from_f64(wide(bits)).to_bits();
        data.iter().map(number).collect()
    };
    let mut device = Gpu::new();
    let d = device.alloc::<f32>("d", 64 * n);
    let tiles = Tiles {
        a: device
            .upload("a", &if f16 { narrow(&a) } else { a.clone() })
            .address(),
        b: device
            .upload("b", &if f16 { narrow(&b) } else { b.clone() })
            .address(),
        d: d.address(),
    };
    launch(&mut device, 128, kernel, &tiles);
    let d = device.read(&d);
    for (i, &got) in d.iter().enumerate() {
        let (row, column) = (i / n, i % n);
        let b_at = |i: usize| {
            if transposed {
                column * 128 + i
            } else {
                i * 128 + column
            }
        };
        let want: f64 = (0..k)
            .map(|i| wide(a[row * 128 + i]) * wide(b[b_at(i)]))
            .sum();
        assert!(
            (f64::from(got) - times * want).abs() < 1e-4,
            "D[{row}, {column}] is {got}, not {}",
            times * want
        );
    }
}

#[test]
fn wgmma_multiplies_k_major_tiles_of_two_halves() {
    assert_product(128, 128, true, 1.0, false, |p| {
        begin(p);
        let (a, b) = (shared::<u16>(0), shared::<u16>(B_AT));
        let mut d = gpu::wgmma_m64n128k16x8_f32_bf16_ss_zero::<KMajor<64>, KMajor<128>>(
            KMajor::<64>::descriptor(a),
            KMajor::<128>::descriptor(b),
        );
        gpu::wgmma_wait_group::<0, _>(&mut d);
        end(p, &d);
    });
}

#[test]
fn wgmma_multiplies_registers_by_mn_major_tiles_and_accumulates() {
    let kernel = |p: &Tiles| {
        begin(p);
        let a = a_registers(p);
        let b = MnMajor::<128>::descriptor(shared::<u16>(B_AT));
        let mut d = gpu::wgmma_m64n128k16x8_f32_bf16_rs_zero::<MnMajor<128>>(&a, b);
        // In flight, and added to all the same.
        gpu::wgmma_m64n128k16x8_f32_bf16_rs::<MnMajor<128>>(&mut d, &a, b);
        gpu::wgmma_wait_group::<0, _>(&mut d);
        gpu::wgmma_m64n128k16x8_f32_bf16_rs::<MnMajor<128>>(&mut d, &a, b);
        gpu::wgmma_wait_group::<0, _>(&mut d);
        end(p, &d);
    };
    assert_product(128, 128, false, 3.0, false, kernel);
}

#[test]
fn wgmma_in_f16_with_four_steps() {
    assert_product(64, 64, true, 1.0, true, |p| {
        begin(p);
        let (a, b) = (shared::<u16>(0), shared::<u16>(B_AT));
        let mut d = gpu::wgmma_m64n64k16x4_f32_f16_ss_zero::<KMajor<64>, KMajor<128>>(
            KMajor::<64>::descriptor(a),
            KMajor::<128>::descriptor(b),
        );
        gpu::wgmma_wait_group::<0, _>(&mut d);
        end(p, &d);
    });
}

#[test]
fn the_older_of_two_products_is_done_first() {
    assert_product(64, 64, true, 1.0, false, |p| {
        begin(p);
        let a = KMajor::<64>::descriptor(shared::<u16>(0));
        let b = KMajor::<128>::descriptor(shared::<u16>(B_AT));
        let mut d = gpu::wgmma_m64n64k16x4_f32_bf16_ss_zero::<KMajor<64>, KMajor<128>>(a, b);
        let mut later = gpu::wgmma_m64n64k16x4_f32_bf16_ss_zero::<KMajor<64>, KMajor<128>>(a, b);
        gpu::wgmma_wait_group::<1, _>(&mut d);
        end(p, &d);
        gpu::wgmma_wait_group::<0, _>(&mut later);
        assert_eq!(d, later);
    });
}

#[test]
fn mma_in_f16_accumulates_onto_c() {
    let got = words::<4>(32, |out| {
        let two = 0x4000_4000;
        let c = gpu::mma_m16n8k16_f32_f16([two; 4], [two; 2], [1.0, 2.0, 3.0, 4.0]);
        put(out, c.map(f32::to_bits));
    });
    assert_eq!(got, [[65f32, 66.0, 67.0, 68.0].map(f32::to_bits); 32]);
}

#[test]
fn addresses_beyond_2_to_the_31_elements_do_not_wrap() {
    let far = Global::<u16>::from_address(1 << 40).add(3 << 31);
    assert_eq!(far.address(), (1 << 40) + (3 << 32));
}

#[test]
fn blocks_see_their_own_indices_in_every_dimension() {
    let mut device = Gpu::new();
    let out = device.upload("out", &[0u32; 2 * 3 * 4]);
    let kernel: fn(&Global<u32>) = |out| {
        let block =
            (gpu::ctaid_z() * gpu::nctaid_y() + gpu::ctaid_y()) * gpu::nctaid_x() + gpu::ctaid_x();
        let thread = (gpu::tid_z() * gpu::ntid_y() + gpu::tid_y()) * gpu::ntid_x() + gpu::tid_x();
        gpu::atom_global_add_u32(out.add(block.into()), block * thread);
    };
    let shape = Launch::new([2, 3, 4], [4, 2, 5]);
    device
        .launch(Kernel::new("indices", kernel), &shape, &out.address())
        .unwrap_or_else(|fault| panic!("{fault}"));
    let want: Vec<u32> = (0..24).map(|block| block * (0..40).sum::<u32>()).collect();
    assert_eq!(device.read(&out), want);
}
