//! mbarriers and their phases.

use super::*;

fn barrier() -> Shared<u64> {
    shared(0)
}

fn init(count: u32) {
    if gpu::tid_x() == 0 {
        gpu::mbarrier_init(barrier(), count);
    }
    gpu::bar_sync(0);
}

#[test]
fn using_one_that_is_not_initialised_is_diagnosed() {
    let words = ["`mbarrier.arrive` on byte 0 of shared memory, where no mbarrier is initialised"];
    assert_fault(1, Mode::Fast, FaultKind::Mbarrier, &words, |_| {
        gpu::mbarrier_arrive(barrier());
    });
}

#[test]
fn one_arrival_too_many_is_diagnosed() {
    let words = [
        "an arrival too many",
        "in phase 0 (parity 0), 0 of 1 arrivals and 64 transaction bytes are missing",
    ];
    assert_fault(1, Mode::Fast, FaultKind::Mbarrier, &words, |_| {
        init(1);
        gpu::mbarrier_arrive_expect_tx(barrier(), 64);
        gpu::mbarrier_arrive(barrier());
    });
}

#[test]
fn arrivals_for_others_are_counted() {
    let words = ["`mbarrier.arrive`: an arrival too many", "1 of 4 arrivals"];
    assert_fault(1, Mode::Fast, FaultKind::Mbarrier, &words, |_| {
        init(4);
        gpu::mbarrier_arrive_count(barrier(), 3);
        gpu::mbarrier_arrive(barrier());
        gpu::mbarrier_wait_parity(barrier(), 0);
        gpu::mbarrier_arrive_count(barrier(), 3);
        gpu::mbarrier_arrive_count(barrier(), 2);
    });
}

#[test]
fn a_parity_that_is_not_flipped_is_diagnosed() {
    let words = [
        "already waited for phase 0, and waits for parity 0 again",
        "flip the parity",
    ];
    assert_fault(1, Mode::Fast, FaultKind::Mbarrier, &words, |_| {
        init(1);
        gpu::mbarrier_arrive(barrier());
        gpu::mbarrier_wait_parity(barrier(), 0);
        gpu::mbarrier_wait_parity(barrier(), 0);
    });
}

#[test]
fn a_barrier_that_runs_ahead_of_a_waiter_is_diagnosed() {
    let words = [
        "last waited for phase 0, but phase 2 has completed meanwhile",
        "the barrier ran ahead",
    ];
    assert_fault(1, Mode::Fast, FaultKind::Mbarrier, &words, |_| {
        init(1);
        gpu::mbarrier_arrive(barrier());
        gpu::mbarrier_wait_parity(barrier(), 0);
        gpu::mbarrier_arrive(barrier());
        gpu::mbarrier_arrive(barrier());
        gpu::mbarrier_wait_parity(barrier(), 1);
    });
}

#[test]
fn a_barrier_that_runs_on_before_a_sleeper_wakes_is_diagnosed() {
    let words = ["this thread waits for phase 0, but the barrier ran on to phase 2"];
    assert_fault(64, Mode::Fast, FaultKind::Mbarrier, &words, |_| {
        init(1);
        if gpu::tid_x() == 0 {
            gpu::mbarrier_wait_parity(barrier(), 0);
        } else if gpu::tid_x() == 32 {
            gpu::mbarrier_arrive(barrier());
            gpu::mbarrier_arrive(barrier());
        }
    });
}

#[test]
fn missing_bytes_show_in_the_deadlock() {
    let words = [
        "thread",
        "wait for parity 0 of the mbarrier at byte 0 of shared memory, at",
        "0 of 1 arrivals and 48 transaction bytes are missing",
    ];
    assert_fault(1, Mode::Fast, FaultKind::Deadlock, &words, |p| {
        init(1);
        gpu::mbarrier_arrive_expect_tx(barrier(), 64);
        gpu::cp_async_bulk_shared_global(shared(1024), p.x, 16, barrier());
        gpu::mbarrier_wait_parity(barrier(), 0);
    });
}

#[test]
fn an_ordinary_store_over_a_live_one_is_diagnosed() {
    let words = ["`st.shared.b32` touches the mbarrier at byte 0 of shared memory, initialised at"];
    assert_fault(1, CHECKED, FaultKind::Mbarrier, &words, |_| {
        init(1);
        gpu::st_shared(shared::<u32>(4), 0);
    });
}
