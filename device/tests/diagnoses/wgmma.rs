//! Products in flight.

use super::*;

fn product() -> [f32; 32] {
    let zeros = [0u32; 4];
    let mut at = gpu::tid_x() * 16;
    while at < 16384 {
        gpu::st_shared_v4(shared(at), zeros);
        at += 128 * 16;
    }
    gpu::fence_proxy_async_shared_cta();
    gpu::bar_sync(0);
    let (a, b) = (shared::<u16>(0), shared::<u16>(8192));
    gpu::wgmma_m64n64k16x4_f32_bf16_ss_zero::<KMajor<64>, KMajor<64>>(
        KMajor::<64>::descriptor(a),
        KMajor::<64>::descriptor(b),
    )
}

#[test]
fn accumulators_are_nan_until_the_wait() {
    let (result, y) = run(128, CHECKED, |p| {
        let mut d = product();
        let early = d;
        gpu::wgmma_wait_group::<1, _>(&mut d);
        let still = d;
        gpu::wgmma_wait_group::<0, _>(&mut d);
        if gpu::tid_x() == 77 {
            let nan = |d: [f32; 32]| u32::from(d.iter().all(|d| d.is_nan()));
            gpu::st_global_v4(p.y, [nan(early), nan(still), nan(d), d[31].to_bits()]);
        }
    });
    result.expect("no fault");
    assert_eq!(y[..4], [1, 1, 0, 0]);
}

#[test]
fn exiting_before_the_wait_is_diagnosed() {
    let words = ["exited the kernel without waiting for `wgmma_m64n64k16x4_f32_bf16_ss_zero`"];
    assert_fault(128, Mode::Fast, FaultKind::Wgmma, &words, |_| {
        product();
    });
}

#[test]
fn overwriting_an_operand_in_flight_is_a_race() {
    let words = ["`st.shared.b32` writes it here; a wgmma of warpgroup 0, still in flight"];
    assert_fault(128, CHECKED, FaultKind::Race, &words, |_| {
        let mut d = product();
        gpu::st_shared(shared(gpu::tid_x() * 4), 1u32);
        gpu::wgmma_wait_group::<0, _>(&mut d);
    });
}

#[test]
fn a_missing_proxy_fence_is_diagnosed() {
    let words = ["`st.shared.v4.b32`", "the writer needs `fence.proxy.async`"];
    assert_fault(128, CHECKED, FaultKind::Race, &words, |_| {
        let mut at = gpu::tid_x() * 16;
        while at < 16384 {
            gpu::st_shared_v4(shared(at), [0u32; 4]);
            at += 128 * 16;
        }
        gpu::bar_sync(0);
        let tile = KMajor::<64>::descriptor(shared::<u16>(0));
        let mut d = gpu::wgmma_m64n64k16x4_f32_bf16_ss_zero::<KMajor<64>, KMajor<64>>(tile, tile);
        gpu::wgmma_wait_group::<0, _>(&mut d);
    });
}

#[test]
fn a_tile_off_its_swizzle_pattern_is_diagnosed() {
    let words = [
        "the descriptor of A",
        "which is not in the first row of a 1024-byte swizzle pattern",
    ];
    assert_fault(128, Mode::Fast, FaultKind::Wgmma, &words, |_| {
        let (a, b) = (shared::<u16>(256), shared::<u16>(8192));
        gpu::wgmma_m64n64k16x4_f32_bf16_ss_zero::<KMajor<64>, KMajor<64>>(
            KMajor::<64>::descriptor(a),
            KMajor::<64>::descriptor(b),
        );
    });
}

#[test]
fn warps_with_other_descriptors_are_divergence() {
    let words = ["thread 32 of the group has other matrix descriptors than thread 0"];
    assert_fault(128, Mode::Fast, FaultKind::Divergence, &words, |_| {
        let a = shared::<u16>(gpu::tid_x() / 32 * 1024);
        gpu::wgmma_m64n64k16x4_f32_bf16_ss_zero::<KMajor<64>, KMajor<64>>(
            KMajor::<64>::descriptor(a),
            KMajor::<64>::descriptor(shared::<u16>(8192)),
        );
    });
}

#[test]
fn half_a_warpgroup_is_too_few() {
    let words = ["needs a warpgroup", "This CTA has 64 threads"];
    assert_fault(64, Mode::Fast, FaultKind::Divergence, &words, |_| {
        gpu::wgmma_wait_group::<0, _>(&mut ());
    });
}

#[test]
fn a_register_count_that_is_no_multiple_of_eight_is_diagnosed() {
    let words = ["`setmaxnreg.dec` to 42 registers; it takes a multiple of 8 from 24 to 256"];
    assert_fault(128, Mode::Fast, FaultKind::Registers, &words, |_| {
        gpu::setmaxnreg_dec::<42>();
    });
}
