//! Two kernels that execute every intrinsic once: for ptxas, which checks each instruction's form,
//! and for the emulator, which checks that they agree on what is legal.
//!
//! One CTA of 128 threads (a warpgroup). They compute nothing of interest; `out` takes what
//! intrinsics return, so that no compiler drops them.

use super::*;

/// Shared memory of both kernels: operands, a staging area, and mbarriers in the last 64 bytes.
pub const SHARED_BYTES: u32 = 2 * OPERAND_BYTES + STAGING_BYTES + 64;
/// A tile of 128 × 128 16-bit elements: the largest operand of a product.
const OPERAND_BYTES: u32 = 128 * 128 * 2;
const STAGING_BYTES: u32 = 4096;

/// What both kernels work on.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Params {
    /// 4096 bytes of zeros, 16 bytes aligned, for loads, stores and atomics.
    pub words: Global<u32>,
    /// One word a thread.
    pub out: Global<u32>,
    /// Maps of 2, 3 and 4 dimensions over 64 × 8 boxes of `u16` with a 128-byte swizzle, over
    /// 1024 bytes that are zero.
    pub maps: [TensorMap; 3],
}

crate::entry! {
    /// Everything that sm_80 has.
    SMOKE_SM80, smoke_sm80 = sm_80, Params
}

crate::entry! {
    sm_90a maps:
    /// What sm_90a adds.
    SMOKE_SM90A, smoke_sm90a = sm_90a, Params
}

/// Collects results, so that they are used.
struct Sum(u32);

impl Sum {
    #[inline(always)]
    fn add(&mut self, value: impl Word) {
        self.0 = self.0.wrapping_add(value.to_bits64() as u32);
    }

    #[inline(always)]
    fn all<const N: usize>(&mut self, values: [impl Word; N]) {
        let _ = values.map(|value| self.add(value));
    }
}

#[inline(always)]
fn staging() -> Shared<u32> {
    dynamic_shared().byte_add(2 * OPERAND_BYTES).cast()
}

#[inline(always)]
fn mbarrier(index: u32) -> Shared<u64> {
    dynamic_shared()
        .byte_add(2 * OPERAND_BYTES + STAGING_BYTES)
        .cast()
        .add(index)
}

fn indices(sum: &mut Sum) {
    sum.all([tid_x(), tid_y(), tid_z(), ntid_x(), ntid_y(), ntid_z()]);
    sum.all([ctaid_x(), ctaid_y(), ctaid_z(), nctaid_x(), nctaid_y()]);
    sum.all([nctaid_z(), laneid(), dynamic_smem_size()]);
}

fn warp_exchange(sum: &mut Sum) {
    let lane = laneid();
    bar_warp_sync(FULL_MASK);
    sum.add(shfl_sync_idx(FULL_MASK, lane, 3));
    sum.add(shfl_sync_bfly(FULL_MASK, lane as f32, 1));
    sum.add(shfl_sync_up(FULL_MASK, lane, 1));
    sum.add(shfl_sync_down(FULL_MASK, lane, 1));
    sum.add(u32::from(vote_sync_any(FULL_MASK, lane == 3)));
    sum.add(u32::from(vote_sync_all(FULL_MASK, lane < 32)));
    sum.add(vote_sync_ballot(FULL_MASK, lane & 1 == 1));
    sum.add(match_any_sync(FULL_MASK, lane & 3));
    sum.add(redux_sync_add_u32(FULL_MASK, lane));
    sum.add(redux_sync_min_u32(FULL_MASK, lane));
    sum.add(redux_sync_max_u32(FULL_MASK, lane));
    sum.add(redux_sync_and_b32(FULL_MASK, lane));
    sum.add(redux_sync_or_b32(FULL_MASK, lane));
    sum.add(redux_sync_xor_b32(FULL_MASK, lane));
}

fn barriers(sum: &mut Sum) {
    bar_sync(0);
    bar_sync_count(1, 128);
    if tid_x() < 64 {
        bar_arrive(2, 128);
    } else {
        bar_sync_count(2, 128);
    }
    sum.add(bar_red_popc(0, tid_x() < 5));
    sum.add(u32::from(bar_red_and(0, tid_x() < 5)));
    sum.add(u32::from(bar_red_or(0, tid_x() < 5)));
    sum.add(u32::from(bar_red_or_count(1, 128, tid_x() < 5)));
}

fn global_memory(p: &Params, sum: &mut Sum) {
    let words = p.words;
    let mine = words.byte_add(u64::from(tid_x()) * 16);
    st_global(mine.cast::<u8>(), 1u8);
    st_global(mine.cast::<u16>(), 2u16);
    st_global(mine, 3u32);
    st_global(mine.cast::<u64>(), 4u64);
    st_global_v2(mine.cast::<f32>(), [1.0f32, 2.0]);
    st_global_v4(mine, [1, 2, 3, 4]);
    sum.add(ld_global(mine.cast::<u8>()));
    sum.add(ld_global(mine.cast::<u16>()));
    sum.add(ld_global(mine.cast::<u64>()));
    sum.all(ld_global_v2(mine.cast::<u64>()));
    sum.all(ld_global_v4(mine.cast::<f32>()));
    sum.add(ld_global_nc(words));
    sum.all(ld_global_nc_v4(words));
    fence_acq_rel_gpu();
    st_release_gpu_global_u32(mine, 7);
    sum.add(ld_acquire_gpu_global_u32(mine));
    bar_sync(0);
    sum.add(atom_global_add_u32(words, 1));
    sum.add(atom_global_add_u64(words.cast(), 1));
    sum.add(atom_global_add_f32(words.add(2).cast(), 1.0));
    sum.add(atom_global_min_u32(words, 9));
    sum.add(atom_global_max_u32(words, 9));
    sum.add(atom_global_min_s32(words.cast(), -9));
    sum.add(atom_global_max_s32(words.cast(), -9));
    sum.add(atom_global_min_u64(words.cast(), 9));
    sum.add(atom_global_max_u64(words.cast(), 9));
    sum.add(atom_global_and_b32(words, 9));
    sum.add(atom_global_or_b32(words, 9));
    sum.add(atom_global_exch_b32(words, 9));
    sum.add(atom_global_exch_b64(words.cast(), 9));
    sum.add(atom_global_cas_b32(words, 9, 8));
    sum.add(atom_global_cas_b64(words.cast(), 8, 9));
}

fn shared_memory(sum: &mut Sum) {
    let words = staging();
    let mine = words.byte_add(tid_x() * 16);
    st_shared(mine.cast::<u8>(), 1u8);
    st_shared(mine.cast::<u16>(), 2u16);
    st_shared(mine, 3u32);
    st_shared_v2(mine.cast::<f32>(), [1.0f32, 2.0]);
    st_shared_v4(mine, [1, 2, 3, 4]);
    sum.add(ld_shared(mine));
    sum.all(ld_shared_v2(mine.cast::<u64>()));
    sum.all(ld_shared_v4(mine.cast::<f32>()));
    fence_acq_rel_cta();
    bar_sync(0);
    sum.add(atom_shared_add_u32(words, 1));
    sum.add(atom_shared_add_u64(words.cast(), 1));
    sum.add(atom_shared_add_f32(words.add(2).cast(), 1.0));
    sum.add(atom_shared_min_u32(words, 9));
    sum.add(atom_shared_max_u32(words, 9));
    sum.add(atom_shared_min_s32(words.cast(), -9));
    sum.add(atom_shared_max_s32(words.cast(), -9));
    sum.add(atom_shared_min_u64(words.cast(), 9));
    sum.add(atom_shared_max_u64(words.cast(), 9));
    sum.add(atom_shared_and_b32(words, 9));
    sum.add(atom_shared_or_b32(words, 9));
    sum.add(atom_shared_exch_b32(words, 9));
    sum.add(atom_shared_exch_b64(words.cast(), 9));
    sum.add(atom_shared_cas_b32(words, 9, 8));
    sum.add(atom_shared_cas_b64(words.cast(), 8, 9));
    bar_sync(0);
}

fn arithmetic(sum: &mut Sum) {
    let x = laneid() as f32;
    sum.all([
        ex2_approx_ftz_f32(x),
        lg2_approx_ftz_f32(x),
        rcp_approx_ftz_f32(x),
    ]);
    sum.all([max_f32(x, 1.0), min_f32(x, 1.0), fma_rn_f32(x, x, x)]);
    sum.all([cvt_rn_bf16x2_f32(x, 1.0), cvt_rn_f16x2_f32(x, 1.0)]);
    sum.all([cvt_rn_bf16_f32(x), cvt_rn_f16_f32(x)]);
    let bits = sum.0 as u16;
    sum.all([cvt_f32_bf16(bits), cvt_f32_f16(bits)]);
}

fn copies_and_matrices(p: &Params, sum: &mut Sum) {
    let mine = staging().byte_add(tid_x() * 16);
    let from = p.words.byte_add(u64::from(tid_x()) * 16);
    cp_async_cg_16(mine, from);
    cp_async_commit_group();
    cp_async_wait_group::<0>();
    cp_async_cg_16_zfill(mine, from, 8);
    cp_async_wait_all();
    cp_async_ca_4(mine, from);
    cp_async_wait_all();
    bar_sync(0);
    let row = staging().byte_add(tid_x() % 32 * 16);
    sum.all(ldmatrix_x1(row));
    sum.all(ldmatrix_x1_trans(row));
    sum.all(ldmatrix_x2_trans(row));
    sum.all(ldmatrix_x4_trans(row));
    let (a, b) = (ldmatrix_x4(row), ldmatrix_x2(row));
    let c = mma_m16n8k16_f32_bf16(a, b, [0.0; 4]);
    sum.all(mma_m16n8k16_f32_f16(a, b, c));
    bar_sync(0);
}

/// The kernel for sm_80.
pub fn sm_80(p: &Params) {
    if nctaid_x() == u32::MAX {
        trap();
    }
    let mut sum = Sum(0);
    indices(&mut sum);
    warp_exchange(&mut sum);
    barriers(&mut sum);
    global_memory(p, &mut sum);
    shared_memory(&mut sum);
    arithmetic(&mut sum);
    copies_and_matrices(p, &mut sum);
    if tid_x() == 0 {
        mbarrier_init(mbarrier(0), 128);
    }
    bar_sync(0);
    cp_async_mbarrier_arrive_noinc(mbarrier(0));
    while !mbarrier_test_wait_parity(mbarrier(0), 0) {}
    mbarrier_arrive(mbarrier(0));
    while !mbarrier_test_wait_parity(mbarrier(0), 1) {}
    bar_sync(0);
    if tid_x() == 0 {
        mbarrier_inval(mbarrier(0));
    }
    st_global(p.out.add(tid_x().into()), sum.0);
}

fn bulk_loads(p: &Params, maps: &[TensorMap; 3]) {
    let to = dynamic_shared();
    prefetch_tensormap(&maps[0]);
    mbarrier_arrive_expect_tx(mbarrier(0), 3 * 1024);
    mbarrier_expect_tx(mbarrier(0), 16);
    cp_async_bulk_shared_global(staging(), p.words, 16, mbarrier(0));
    cp_async_bulk_tensor_2d_shared_global(to, &maps[0], [0; 2], mbarrier(0));
    let to = to.byte_add(1024);
    cp_async_bulk_tensor_3d_shared_global(to, &maps[1], [0; 3], mbarrier(0));
    let to = to.byte_add(1024);
    cp_async_bulk_tensor_4d_shared_global(to, &maps[2], [0; 4], mbarrier(0));
}

fn bulk_stores(p: &Params, maps: &[TensorMap; 3]) {
    let from = dynamic_shared();
    cp_async_bulk_global_shared(p.words, staging(), 16);
    cp_async_bulk_tensor_2d_global_shared(&maps[0], [0; 2], from);
    cp_async_bulk_tensor_3d_global_shared(&maps[1], [0; 3], from);
    cp_async_bulk_tensor_4d_global_shared(&maps[2], [0; 4], from);
    cp_async_bulk_commit_group();
    cp_async_bulk_wait_group_read::<0>();
    cp_async_bulk_wait_group::<0>();
}

/// All products of one width and format, each waited for.
macro_rules! products {
    ($name:ident, $ss4:ident, $ss4_zero:ident, $rs4:ident, $rs4_zero:ident,
        $ss8:ident, $ss8_zero:ident, $rs8:ident, $rs8_zero:ident) => {
        #[inline(always)]
        fn $name(sum: &mut Sum) {
            let a = KMajor::<64>::descriptor(dynamic_shared());
            let at = dynamic_shared().byte_add(OPERAND_BYTES);
            let (k_major, mn_major) = (
                KMajor::<128>::descriptor(at),
                MnMajor::<128>::descriptor(at),
            );
            let mut d = $ss4_zero::<KMajor<64>, KMajor<128>>(a, k_major);
            wgmma_wait_group::<0, _>(&mut d);
            $ss4::<KMajor<64>, MnMajor<128>>(&mut d, a, mn_major);
            wgmma_wait_group::<0, _>(&mut d);
            $rs4::<MnMajor<128>>(&mut d, &[[sum.0; 4]; 4], mn_major);
            wgmma_wait_group::<0, _>(&mut d);
            $rs8::<MnMajor<128>>(&mut d, &[[sum.0; 4]; 8], mn_major);
            wgmma_wait_group::<0, _>(&mut d);
            $ss8::<KMajor<64>, KMajor<128>>(&mut d, a, k_major);
            wgmma_wait_group::<0, _>(&mut d);
            sum.all([d[0], d[d.len() - 1]]);
            let mut d = $ss8_zero::<KMajor<64>, KMajor<128>>(a, k_major);
            wgmma_wait_group::<0, _>(&mut d);
            sum.all([d[0], d[d.len() - 1]]);
            let mut d = $rs4_zero::<KMajor<128>>(&[[sum.0; 4]; 4], k_major);
            wgmma_wait_group::<0, _>(&mut d);
            sum.all([d[0], d[d.len() - 1]]);
            let mut d = $rs8_zero::<KMajor<128>>(&[[sum.0; 4]; 8], k_major);
            wgmma_wait_group::<0, _>(&mut d);
            wgmma_wait_group::<0, _>(&mut ());
            sum.all([d[0], d[d.len() - 1]]);
        }
    };
}

products!(
    products_n64_bf16,
    wgmma_m64n64k16x4_f32_bf16_ss,
    wgmma_m64n64k16x4_f32_bf16_ss_zero,
    wgmma_m64n64k16x4_f32_bf16_rs,
    wgmma_m64n64k16x4_f32_bf16_rs_zero,
    wgmma_m64n64k16x8_f32_bf16_ss,
    wgmma_m64n64k16x8_f32_bf16_ss_zero,
    wgmma_m64n64k16x8_f32_bf16_rs,
    wgmma_m64n64k16x8_f32_bf16_rs_zero
);
products!(
    products_n64_f16,
    wgmma_m64n64k16x4_f32_f16_ss,
    wgmma_m64n64k16x4_f32_f16_ss_zero,
    wgmma_m64n64k16x4_f32_f16_rs,
    wgmma_m64n64k16x4_f32_f16_rs_zero,
    wgmma_m64n64k16x8_f32_f16_ss,
    wgmma_m64n64k16x8_f32_f16_ss_zero,
    wgmma_m64n64k16x8_f32_f16_rs,
    wgmma_m64n64k16x8_f32_f16_rs_zero
);
products!(
    products_n128_bf16,
    wgmma_m64n128k16x4_f32_bf16_ss,
    wgmma_m64n128k16x4_f32_bf16_ss_zero,
    wgmma_m64n128k16x4_f32_bf16_rs,
    wgmma_m64n128k16x4_f32_bf16_rs_zero,
    wgmma_m64n128k16x8_f32_bf16_ss,
    wgmma_m64n128k16x8_f32_bf16_ss_zero,
    wgmma_m64n128k16x8_f32_bf16_rs,
    wgmma_m64n128k16x8_f32_bf16_rs_zero
);
products!(
    products_n128_f16,
    wgmma_m64n128k16x4_f32_f16_ss,
    wgmma_m64n128k16x4_f32_f16_ss_zero,
    wgmma_m64n128k16x4_f32_f16_rs,
    wgmma_m64n128k16x4_f32_f16_rs_zero,
    wgmma_m64n128k16x8_f32_f16_ss,
    wgmma_m64n128k16x8_f32_f16_ss_zero,
    wgmma_m64n128k16x8_f32_f16_rs,
    wgmma_m64n128k16x8_f32_f16_rs_zero
);

/// The kernel for sm_90a.
pub fn sm_90a(p: &Params, in_place: &Params) {
    let mut sum = Sum(u32::from(elect_sync(FULL_MASK)));
    if tid_x() == 0 {
        mbarrier_init(mbarrier(0), 3);
        fence_mbarrier_init();
    }
    bar_sync(0);
    setmaxnreg_dec::<160>();
    if tid_x() == 0 {
        mbarrier_arrive_count(mbarrier(0), 2);
        bulk_loads(p, &in_place.maps);
    }
    mbarrier_wait_parity(mbarrier(0), 0);
    bar_sync(0);
    let row = staging().byte_add(tid_x() / 32 * 512 + tid_x() % 32 * 16);
    stmatrix_x1(row, [1]);
    stmatrix_x2(row, [1; 2]);
    stmatrix_x4(row, [1; 4]);
    stmatrix_x1_trans(row, [1]);
    stmatrix_x2_trans(row, [1; 2]);
    stmatrix_x4_trans(row, [1; 4]);
    fence_proxy_async_shared_cta();
    bar_sync(0);
    if tid_x() == 0 {
        bulk_stores(p, &in_place.maps);
    }
    products_n64_bf16(&mut sum);
    products_n64_f16(&mut sum);
    products_n128_bf16(&mut sum);
    products_n128_f16(&mut sum);
    setmaxnreg_inc::<168>();
    st_global(p.out.add(tid_x().into()), sum.0);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(kernel: Kernel<Params>, mode: emu::Mode) -> Result<(), emu::Fault> {
        let mut device = emu::Gpu::new();
        let words = device.upload("words", &[0u32; 1024]);
        let tensor = device.upload("tensor", &[0u16; 512]);
        let out = device.alloc::<u32>("out", 128);
        let map = |rank: u32| {
            let layout = TensorMapLayout {
                base: tensor.address().address(),
                element_bytes: 2,
                rank,
                dims: [64, 8, 1, 1, 1],
                strides_bytes: [128, 1024, 1024, 1024],
                box_dims: [64, 8, 1, 1, 1],
                swizzle: Swizzle::Bytes128,
            };
            emu::tensor_map(&layout).expect("a valid layout")
        };
        let params = Params {
            words: words.address(),
            out: out.address(),
            maps: [map(2), map(3), map(4)],
        };
        let shape = emu::Launch::new([1, 1, 1], [128, 1, 1])
            .shared_bytes(SHARED_BYTES)
            .mode(mode);
        device.launch(kernel, &shape, &params)
    }

    #[test]
    fn every_intrinsic_is_legal_in_both_modes() {
        for kernel in [SMOKE_SM80, SMOKE_SM90A] {
            for mode in [emu::Mode::Fast, emu::Mode::Checked { seed: 1 }] {
                run(kernel, mode).unwrap_or_else(|fault| panic!("{fault}"));
            }
        }
    }
}
