//! Kernels that never end: each is diagnosed, with the threads and where they are.

use super::*;

/// The text of the livelock that the kernel runs into.
#[track_caller]
fn assert_livelock(threads: u32, words: &[&str], kernel: fn(&Params)) {
    let always = ["kernel `faulty`, CTA (0, 0, 0)", "livelock", "livelock.rs:"];
    let words: Vec<&str> = words.iter().chain(&always).copied().collect();
    assert_fault(threads, Mode::Fast, FaultKind::Livelock, &words, kernel);
}

#[test]
fn a_loop_over_memory_that_never_ends_is_livelock() {
    let words = ["instructions", "thread 0", "threads 0 run, last seen at"];
    assert_livelock(1, &words, |p| while gpu::ld_global(p.x) == 0 {});
}

#[test]
fn a_loop_of_one_warp_names_the_others_that_wait_for_it() {
    let words = [
        "threads 0-31 wait at barrier 0",
        "threads 32-63 run, last seen at",
    ];
    assert_livelock(64, &words, |_| {
        if gpu::tid_x() >= 32 {
            // A tile that 'grew too large' after every repair.
            while gpu::vote_sync_any(FULL_MASK, true) {}
        }
        gpu::bar_sync(0);
    });
}

#[test]
fn barriers_in_an_endless_loop_are_no_progress() {
    assert_livelock(32, &["a loop does not end"], |_| {
        loop {
            gpu::bar_sync(0);
        }
    });
}

#[test]
fn stores_to_the_same_place_are_no_progress() {
    assert_livelock(1, &["a loop does not end"], |p| {
        let mut i = 0u32;
        loop {
            i = i.wrapping_add(1);
            gpu::st_global(p.x, i);
            gpu::atom_global_add_u32(p.x, 1);
        }
    });
}

#[test]
fn phases_of_an_mbarrier_are_no_progress() {
    assert_livelock(1, &["a loop does not end"], |_| {
        let mbarrier = shared::<u64>(0);
        gpu::mbarrier_init(mbarrier, 1);
        let mut parity = 0;
        loop {
            gpu::mbarrier_arrive(mbarrier);
            gpu::mbarrier_wait_parity(mbarrier, parity);
            parity ^= 1;
        }
    });
}

#[test]
fn polling_a_phase_that_nobody_completes_is_livelock() {
    let words = [
        "only polled memory",
        "threads 1-31 wait in",
        "threads 0 run, last seen at",
    ];
    assert_livelock(32, &words, |_| {
        let mbarrier = shared::<u64>(0);
        if gpu::tid_x() == 0 {
            gpu::mbarrier_init(mbarrier, 1);
            while !gpu::mbarrier_test_wait_parity(mbarrier, 0) {}
        }
        gpu::bar_warp_sync(FULL_MASK);
    });
}

#[test]
fn waiting_for_a_phase_that_nobody_completes_is_deadlock() {
    let words = [
        "kernel `faulty`",
        "threads 0-31 wait for parity 0",
        "livelock.rs:",
        "1 of 1 arrivals",
    ];
    assert_fault(32, Mode::Fast, FaultKind::Deadlock, &words, |_| {
        let mbarrier = shared::<u64>(0);
        if gpu::tid_x() == 0 {
            gpu::mbarrier_init(mbarrier, 1);
        }
        gpu::bar_sync(0);
        gpu::mbarrier_wait_parity(mbarrier, 0);
    });
}
