//! Named barriers, deadlock, polling.

use super::*;

#[test]
fn a_deadlock_says_who_waits_where_and_who_is_missing() {
    let words = [
        "deadlock: every thread that has not exited waits",
        "threads 0-31 wait at barrier 3, at device/tests/diagnoses/barriers.rs:",
        "threads 32-63 wait at barrier 4, at",
        "threads 64-95 exited",
        "barrier 3 (first reached at device/tests/diagnoses/barriers.rs:",
        "expects 3 warps and has 1: warps 1-2 have not arrived",
        "expects 2 warps and has 1: warps 0, 2 have not arrived",
    ];
    assert_fault(96, Mode::Fast, FaultKind::Deadlock, &words, |_| {
        match gpu::tid_x() / 32 {
            0 => gpu::bar_sync(3),
            1 => gpu::bar_sync_count(4, 64),
            _ => {}
        }
    });
}

#[test]
fn different_thread_counts_are_diagnosed() {
    let words = ["barrier 1: this warp expects 96 threads, but warp 0 arrived for 64 threads at"];
    assert_fault(96, Mode::Fast, FaultKind::Barrier, &words, |_| {
        if gpu::tid_x() < 32 {
            gpu::bar_sync_count(1, 64);
        } else {
            gpu::bar_sync_count(1, 96);
        }
    });
}

#[test]
fn arriving_twice_is_diagnosed() {
    let words = ["barrier 1: warp 0 arrives a second time before the barrier completed"];
    assert_fault(64, Mode::Fast, FaultKind::Barrier, &words, |_| {
        if gpu::tid_x() < 32 {
            gpu::bar_arrive(1, 64);
            gpu::bar_arrive(1, 64);
        }
    });
}

#[test]
fn a_barrier_that_does_not_exist_is_diagnosed() {
    let words = ["`bar.sync` on barrier 16", "barriers are 0 to 15"];
    assert_fault(32, Mode::Fast, FaultKind::Barrier, &words, |_| {
        gpu::bar_sync(16)
    });
}

#[test]
fn polling_for_what_never_comes_is_livelock() {
    let words = ["livelock", "only polled memory"];
    assert_fault(1, Mode::Fast, FaultKind::Livelock, &words, |p| {
        while gpu::ld_acquire_gpu_global_u32(p.x) == 0 {}
    });
}

#[test]
fn a_flag_that_a_later_thread_sets_is_seen() {
    let (result, _) = run(64, CHECKED, |p| {
        if gpu::tid_x() == 63 {
            gpu::st_release_gpu_global_u32(p.x, 1);
        }
        while gpu::ld_acquire_gpu_global_u32(p.x) == 0 {}
    });
    result.expect("no fault");
}
