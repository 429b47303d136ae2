//! Copies in flight.

use super::*;

#[test]
fn a_cp_async_lands_late() {
    let (result, y) = run(1, Mode::Fast, |p| {
        gpu::cp_async_cg_16(shared(0), p.x);
        gpu::cp_async_commit_group();
        gpu::st_global(p.y, gpu::ld_shared(shared(0)));
        gpu::cp_async_wait_group::<1>();
        gpu::st_global(p.y.add(1), gpu::ld_shared(shared(0)));
        gpu::cp_async_wait_group::<0>();
        gpu::st_global(p.y.add(2), gpu::ld_shared(shared(0)));
    });
    result.expect("no fault");
    assert_eq!(y[..3], [u32::MAX, u32::MAX, 0]);
}

#[test]
fn reading_before_the_wait_is_a_race() {
    let words = [
        "data race on byte 0 of shared memory: `ld.shared.b32` reads it here; an asynchronous copy of thread 0 \
         (warp 0, lane 0), still in flight as far as this thread knows, wrote it in `cp.async.cg.shared.global`",
        "(replay with Mode::Checked { seed: 7 })",
    ];
    assert_fault(1, CHECKED, FaultKind::Race, &words, |p| {
        gpu::cp_async_cg_16(shared(0), p.x);
        gpu::ld_shared(shared::<u32>(0));
    });
}

#[test]
fn another_thread_needs_a_barrier_after_the_wait() {
    assert_fault(
        32,
        CHECKED,
        FaultKind::Race,
        &["asynchronous copy of thread 0"],
        |p| {
            if gpu::tid_x() == 0 {
                gpu::cp_async_cg_16(shared(0), p.x);
                gpu::cp_async_wait_all();
            }
            gpu::shfl_sync_idx(FULL_MASK, 0u32, 0);
            gpu::ld_shared(shared::<u32>(0));
        },
    );
}

#[test]
fn zfill_reads_no_more_than_it_is_told() {
    let (result, y) = run(1, CHECKED, |p| {
        gpu::cp_async_cg_16_zfill(shared(0), Global::<u32>::NULL, 0);
        gpu::cp_async_cg_16_zfill(shared(16), p.y.add(60), 8);
        gpu::cp_async_wait_all();
        gpu::st_global_v4(p.y, gpu::ld_shared_v4(shared(0)));
        gpu::st_global_v4(p.y.add(4), gpu::ld_shared_v4(shared(16)));
    });
    result.expect("no fault");
    assert_eq!(y[..8], [0, 0, 0, 0, u32::MAX, u32::MAX, 0, 0]);
}

#[test]
fn exiting_with_a_copy_in_flight_is_diagnosed() {
    let words = ["exited the kernel without waiting for a `cp.async` that it issued here"];
    assert_fault(1, Mode::Fast, FaultKind::AsyncCopy, &words, |p| {
        gpu::cp_async_cg_16(shared(0), p.x);
    });
}

#[test]
fn exiting_with_a_bulk_store_in_flight_is_diagnosed() {
    let words = ["exited the kernel without waiting for a bulk store"];
    assert_fault(1, Mode::Fast, FaultKind::AsyncCopy, &words, |p| {
        gpu::cp_async_bulk_global_shared(p.y, shared(0), 16);
        gpu::cp_async_bulk_commit_group();
    });
}

#[test]
fn a_bulk_load_that_nobody_waits_for_is_diagnosed() {
    let words = ["nobody waited for a bulk copy that was issued here"];
    assert_fault(1, Mode::Fast, FaultKind::AsyncCopy, &words, |p| {
        gpu::mbarrier_init(shared(0), 1);
        gpu::mbarrier_arrive_expect_tx(shared(0), 16);
        gpu::cp_async_bulk_shared_global(shared(16), p.x, 16, shared(0));
    });
}

#[test]
fn a_bulk_copy_of_odd_size_is_diagnosed() {
    let words = ["of 8 bytes; it moves a positive multiple of 16"];
    assert_fault(1, Mode::Fast, FaultKind::AsyncCopy, &words, |p| {
        gpu::cp_async_bulk_global_shared(p.y, shared(0), 8);
    });
}

#[test]
fn what_is_no_tensor_map_is_not_taken_for_one() {
    let words = ["the parameter is no tensor map"];
    assert_fault(1, Mode::Fast, FaultKind::AsyncCopy, &words, |_| {
        let map = TensorMap::from_words([0; 16]);
        gpu::cp_async_bulk_tensor_2d_global_shared(&map, [0, 0], shared::<u8>(0));
    });
}
