//! Addresses, and memory that nobody wrote.

use super::*;

#[test]
fn a_global_overrun_names_buffer_thread_and_line() {
    let words = [
        "kernel `faulty`, CTA (0, 0, 0), thread 4 (warp 0, lane 4), at device/tests/diagnoses/memory.rs:",
        "`ld.global.b32` of 4 bytes is out of bounds: it starts at byte 16 of buffer `x` (16 bytes)",
    ];
    assert_fault(32, Mode::Fast, FaultKind::OutOfBounds, &words, |p| {
        gpu::ld_global(p.x.add(gpu::tid_x().into()));
    });
}

#[test]
fn a_global_underrun_is_not_another_buffer() {
    let words = ["starts at 4 bytes before buffer `y` (256 bytes)"];
    assert_fault(1, Mode::Fast, FaultKind::OutOfBounds, &words, |p| {
        gpu::st_global(p.y.byte_add(4u64.wrapping_neg()), 1);
    });
}

#[test]
fn a_null_address_is_named_so() {
    let words = ["null"];
    assert_fault(1, Mode::Fast, FaultKind::OutOfBounds, &words, |_| {
        gpu::ld_global(Global::<u32>::NULL.add(1));
    });
}

#[test]
fn a_misaligned_global_vector_is_diagnosed() {
    let words = [
        "`ld.global.v4.b32` is misaligned: it needs a multiple of 16 bytes",
        "byte 4",
    ];
    assert_fault(1, Mode::Fast, FaultKind::Misaligned, &words, |p| {
        gpu::ld_global_v4(p.y.add(1));
    });
}

#[test]
fn a_shared_overrun_is_diagnosed() {
    let words = [
        "`st.shared.b32` of 4 bytes is out of bounds",
        "byte 32768 of the 32768 bytes",
    ];
    assert_fault(1, Mode::Fast, FaultKind::OutOfBounds, &words, |_| {
        gpu::st_shared(shared::<u32>(SHARED_BYTES), 1);
    });
}

#[test]
fn a_misaligned_shared_access_is_diagnosed() {
    let words = ["`ld.shared.b64` is misaligned", "byte 4 of shared memory"];
    assert_fault(1, Mode::Fast, FaultKind::Misaligned, &words, |_| {
        gpu::ld_shared(shared::<u64>(4));
    });
}

#[test]
fn what_nobody_wrote_reads_as_nan() {
    let (result, y) = run(1, Mode::Fast, |p| {
        let global = gpu::ld_global(p.y.cast::<f32>());
        let shared = gpu::ld_shared(shared::<f32>(0));
        let halves = gpu::ld_shared(crate::shared::<u16>(4));
        gpu::st_global(p.y, u32::from(global.is_nan()));
        gpu::st_global(p.y.add(1), u32::from(shared.is_nan()));
        let nan = gpu::cvt_f32_bf16(halves).is_nan() && gpu::cvt_f32_f16(halves).is_nan();
        gpu::st_global(p.y.add(2), u32::from(nan));
    });
    result.expect("no fault");
    assert_eq!(y[..3], [1, 1, 1]);
}
