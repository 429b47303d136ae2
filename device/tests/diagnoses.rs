//! Each mistake that the emulator promises to find, in a kernel small enough to see it.

use sample_attention_device::gpu::emu::{Fault, FaultKind, Gpu, Kernel, Launch, Mode};
use sample_attention_device::gpu::{self, FULL_MASK, Global, KMajor, Shared, TensorMap, Walk};

const CHECKED: Mode = Mode::Checked { seed: 7 };
const SHARED_BYTES: u32 = 32 * 1024;

/// `x` is the buffer "x" of four zero words, `y` the buffer "y" of 64 words that nobody wrote.
#[derive(Clone, Copy)]
struct Params {
    x: Global<u32>,
    y: Global<u32>,
}

fn run(threads: u32, mode: Mode, kernel: fn(&Params)) -> (Result<(), Fault>, Vec<u32>) {
    let mut device = Gpu::new();
    let x = device.upload("x", &[0u32; 4]);
    let y = device.alloc::<u32>("y", 64);
    let params = Params {
        x: x.address(),
        y: y.address(),
    };
    let shape = Launch::new([1, 1, 1], [threads, 1, 1])
        .shared_bytes(SHARED_BYTES)
        .mode(mode);
    let result = device.launch(Kernel::new("faulty", kernel), &shape, &params);
    (result, device.read(&y))
}

/// The fault of the kernel; its text has all of `words`.
#[track_caller]
fn assert_fault(
    threads: u32,
    mode: Mode,
    kind: FaultKind,
    words: &[&str],
    kernel: fn(&Params),
) -> String {
    let fault = run(threads, mode, kernel).0.expect_err("a fault");
    let text = fault.to_string();
    assert_eq!(fault.kind(), kind, "{text}");
    for word in words {
        assert!(text.contains(word), "{word:?} is missing in:\n{text}");
    }
    text
}

fn shared<T>(byte: u32) -> Shared<T> {
    gpu::dynamic_shared().byte_add(byte).cast()
}

mod memory {
    use super::*;

    #[test]
    fn a_global_overrun_names_buffer_thread_and_line() {
        let words = [
            "kernel `faulty`, block (0, 0, 0), thread 4 (warp 0, lane 4), at device/tests/diagnoses.rs:",
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
            let halves = gpu::ld_shared(super::shared::<u16>(4));
            gpu::st_global(p.y, u32::from(global.is_nan()));
            gpu::st_global(p.y.add(1), u32::from(shared.is_nan()));
            let nan = gpu::cvt_f32_bf16(halves).is_nan() && gpu::cvt_f32_f16(halves).is_nan();
            gpu::st_global(p.y.add(2), u32::from(nan));
        });
        result.expect("no fault");
        assert_eq!(y[..3], [1, 1, 1]);
    }
}

mod warps {
    use super::*;

    #[test]
    fn an_aligned_instruction_on_both_sides_of_a_branch_is_divergence() {
        let words = [
            "divergence in warp 0",
            "`bar.sync`",
            "lanes 0-15 wait in `bar.sync` at",
            "at one call site",
        ];
        assert_fault(32, Mode::Fast, FaultKind::Divergence, &words, |_| {
            if gpu::laneid() < 16 {
                gpu::bar_sync(0);
            } else {
                gpu::bar_sync(0);
            }
        });
    }

    #[test]
    fn different_instructions_for_one_mask_are_divergence() {
        let words = ["this lane is at `vote.sync.any`, but lanes 0-7 wait in `shfl.sync.idx.b32`"];
        assert_fault(32, Mode::Fast, FaultKind::Divergence, &words, |_| {
            if gpu::laneid() < 8 {
                gpu::shfl_sync_idx(FULL_MASK, 0u32, 0);
            } else {
                gpu::vote_sync_any(FULL_MASK, true);
            }
        });
    }

    #[test]
    fn an_exited_lane_is_missed_by_a_collective() {
        let words =
            ["`mma.sync.m16n8k16.bf16` needs lanes 0-31 of warp 0, but lanes 0-2 have exited"];
        assert_fault(32, Mode::Fast, FaultKind::Divergence, &words, |_| {
            if gpu::laneid() >= 3 {
                gpu::mma_m16n8k16_f32_bf16([0; 4], [0; 2], [0.0; 4]);
            }
        });
    }

    #[test]
    fn a_lane_that_exits_while_others_wait_for_it_is_divergence() {
        let words = [
            "this lane exited the kernel, but lanes 0-30 of warp 0 wait for it in `redux.sync.add.u32`",
        ];
        assert_fault(32, Mode::Fast, FaultKind::Divergence, &words, |_| {
            if gpu::laneid() < 31 {
                gpu::redux_sync_add_u32(FULL_MASK, 1);
            }
        });
    }

    #[test]
    fn a_shuffle_from_outside_the_mask_is_diagnosed() {
        let words = ["lane 0 reads lane 9, which is not in the mask (lanes 0-7)"];
        assert_fault(32, Mode::Fast, FaultKind::Divergence, &words, |_| {
            if gpu::laneid() < 8 {
                gpu::shfl_sync_idx(0xff, 0u32, 9);
            }
        });
    }

    #[test]
    fn halves_of_a_warp_may_work_apart() {
        let (result, y) = run(32, CHECKED, |p| {
            let lane = gpu::laneid();
            let sum = if lane < 16 {
                gpu::redux_sync_add_u32(0xffff, lane)
            } else {
                gpu::redux_sync_max_u32(0xffff_0000, lane)
            };
            gpu::st_global(p.y.add(lane.into()), sum);
        });
        result.expect("no fault");
        assert_eq!(y[..16], [120; 16]);
        assert_eq!(y[16..32], [31; 16]);
    }
}

mod barriers {
    use super::*;

    #[test]
    fn a_deadlock_says_who_waits_where_and_who_is_missing() {
        let words = [
            "deadlock: every thread that has not exited waits",
            "threads 0-31 wait at barrier 3, at device/tests/diagnoses.rs:",
            "threads 32-63 wait at barrier 4, at",
            "threads 64-95 exited",
            "barrier 3 (first reached at device/tests/diagnoses.rs:",
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
        let words =
            ["barrier 1: this warp expects 96 threads, but warp 0 arrived for 64 threads at"];
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
}

mod mbarriers {
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
        let words =
            ["`mbarrier.arrive` on byte 0 of shared memory, where no mbarrier is initialised"];
        assert_fault(1, Mode::Fast, FaultKind::Mbarrier, &words, |_| {
            gpu::mbarrier_arrive(barrier());
        });
    }

    #[test]
    fn one_arrival_too_many_is_diagnosed() {
        let words = [
            "one arrival too many",
            "in phase 0 (parity 0), 0 of 1 arrivals and 64 transaction bytes are missing",
        ];
        assert_fault(1, Mode::Fast, FaultKind::Mbarrier, &words, |_| {
            init(1);
            gpu::mbarrier_arrive_expect_tx(barrier(), 64);
            gpu::mbarrier_arrive(barrier());
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
        let words =
            ["`st.shared.b32` touches the mbarrier at byte 0 of shared memory, initialised at"];
        assert_fault(1, CHECKED, FaultKind::Mbarrier, &words, |_| {
            init(1);
            gpu::st_shared(shared::<u32>(4), 0);
        });
    }
}

mod asynchronous {
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
        let words = ["there is no tensor map at"];
        assert_fault(1, Mode::Fast, FaultKind::AsyncCopy, &words, |p| {
            let map: Global<TensorMap> = p.y.cast();
            gpu::cp_async_bulk_tensor_2d_global_shared(map, [0, 0], shared::<u8>(0));
        });
    }
}

mod wgmma {
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
            let mut d =
                gpu::wgmma_m64n64k16x4_f32_bf16_ss_zero::<KMajor<64>, KMajor<64>>(tile, tile);
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
        let words = ["needs a warpgroup", "This block has 64 threads"];
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
}

mod races {
    use super::*;

    #[test]
    fn a_missing_barrier_between_write_and_read_is_found() {
        let words = [
            "`ld.shared.b32` reads it here; thread 0 (warp 0, lane 0) wrote it in `st.shared.b32` at",
            "a barrier",
        ];
        assert_fault(64, CHECKED, FaultKind::Race, &words, |_| {
            let thread = gpu::tid_x();
            if thread == 0 {
                gpu::st_shared(shared(0), 1u32);
            }
            // Decides the order, but not for memory.
            gpu::shfl_sync_idx(FULL_MASK, 0u32, 0);
            if thread == 1 {
                gpu::ld_shared(shared::<u32>(0));
            }
        });
    }

    #[test]
    fn a_missing_barrier_between_read_and_write_is_found() {
        let words = [
            "`st.shared.b32` writes it here; thread 1 (warp 0, lane 1) read it in `ld.shared.b32` at",
        ];
        assert_fault(64, CHECKED, FaultKind::Race, &words, |_| {
            let thread = gpu::tid_x();
            if thread == 1 {
                gpu::ld_shared(shared::<u32>(0));
            }
            gpu::shfl_sync_idx(FULL_MASK, 0u32, 0);
            if thread == 0 {
                gpu::st_shared(shared(0), 1u32);
            }
        });
    }

    #[test]
    fn one_of_many_readers_is_not_forgotten() {
        let kernel = |_: &Params| {
            let thread = gpu::tid_x();
            if thread == 0 {
                gpu::st_shared(shared(0), 1u32);
            }
            gpu::bar_sync(0);
            gpu::ld_shared(shared::<u32>(0));
            // All but warp 2 tell warp 0 that they have read.
            if thread / 32 != 2 {
                gpu::bar_sync_count(1, 96);
            }
            if thread == 0 {
                gpu::st_shared(shared(0), 2u32);
            }
        };
        let words = ["`st.shared.b32` writes it here; thread", "(warp 2,"];
        for seed in 0..4 {
            assert_fault(128, Mode::Checked { seed }, FaultKind::Race, &words, kernel);
        }
    }

    #[test]
    fn lanes_of_a_warp_need_a_warp_sync_before_ldmatrix() {
        assert_fault(
            32,
            CHECKED,
            FaultKind::Race,
            &["`ldmatrix.x4` reads it here"],
            |_| {
                let lane = gpu::laneid();
                gpu::st_shared_v4(shared((31 - lane) * 16), [lane; 4]);
                gpu::ldmatrix_x4(shared::<u16>(lane * 16));
            },
        );
        let (result, _) = run(32, CHECKED, |_| {
            let lane = gpu::laneid();
            gpu::st_shared_v4(shared((31 - lane) * 16), [lane; 4]);
            gpu::bar_warp_sync(FULL_MASK);
            gpu::ldmatrix_x4(shared::<u16>(lane * 16));
        });
        result.expect("no fault");
    }

    #[test]
    fn neighbouring_halves_of_a_word_do_not_race() {
        let (result, _) = run(64, CHECKED, |_| {
            gpu::st_shared(shared::<u16>(gpu::tid_x() * 2), 1u16);
        });
        result.expect("no fault");
    }

    #[test]
    fn atomics_do_not_race_with_each_other_but_with_plain_accesses() {
        let (result, y) = run(64, CHECKED, |p| {
            if gpu::tid_x() == 0 {
                gpu::st_shared(shared(0), 0u32);
            }
            gpu::bar_sync(0);
            gpu::atom_shared_add_u32(shared(0), 1);
            gpu::bar_sync(0);
            gpu::st_global(p.y.add(gpu::tid_x().into()), gpu::ld_shared(shared(0)));
        });
        result.expect("no fault");
        assert_eq!(y, [64; 64]);
        assert_fault(
            64,
            CHECKED,
            FaultKind::Race,
            &["`atom.shared.add.u32`"],
            |_| {
                gpu::atom_shared_add_u32(shared(0), 1);
                gpu::ld_shared(shared::<u32>(0));
            },
        );
    }

    #[test]
    fn an_arrival_hands_over_what_came_before_it() {
        let kernel = |p: &Params| {
            let thread = gpu::tid_x();
            if thread < 32 {
                gpu::st_shared(shared(thread * 4), thread);
                gpu::bar_arrive(1, 64);
            } else {
                gpu::bar_sync_count(1, 64);
                let x = gpu::ld_shared(shared::<u32>((63 - thread) * 4));
                gpu::st_global(p.y.add(thread.into()), x);
            }
        };
        for seed in 0..4 {
            let (result, y) = run(64, Mode::Checked { seed }, kernel);
            result.expect("no fault");
            assert_eq!(y[32], 31);
        }
        // The other direction is not ordered.
        assert_fault(64, CHECKED, FaultKind::Race, &["st.shared.b32"], |_| {
            let thread = gpu::tid_x();
            if thread < 32 {
                gpu::bar_arrive(1, 64);
                gpu::st_shared(shared(thread * 4), thread);
            } else {
                gpu::bar_sync_count(1, 64);
                gpu::st_shared(shared((63 - thread) * 4), thread);
            }
        });
    }

    #[test]
    fn a_seed_replays_its_fault() {
        let kernel = |_: &Params| {
            let thread = gpu::tid_x();
            gpu::st_shared(shared(0), thread);
        };
        let text = |seed| {
            let mode = Mode::Checked { seed };
            assert_fault(64, mode, FaultKind::Race, &["data race on byte 0"], kernel)
        };
        assert_eq!(text(3), text(3));
        let others = (0..8).filter(|&seed| text(seed) != text(3)).count();
        assert!(others >= 7, "seeds draw different orders");
    }
}

mod launches {
    use super::*;

    #[test]
    fn a_trap_ends_the_launch() {
        assert_fault(
            32,
            Mode::Fast,
            FaultKind::Trap,
            &["trap", "thread 5 "],
            |_| {
                if gpu::tid_x() == 5 {
                    gpu::trap();
                }
            },
        );
    }

    #[test]
    fn a_panic_is_a_fault_with_its_text() {
        let words = ["the kernel panicked: index out of bounds: the len is 31 but the index is 31"];
        assert_fault(32, Mode::Fast, FaultKind::Panic, &words, |_| {
            let index = gpu::laneid() as usize;
            assert!([0; 31][index] < 9);
            gpu::bar_sync(0);
        });
    }

    #[test]
    fn too_many_threads_are_refused() {
        let fault = run(1025, Mode::Fast, |_| {}).0.expect_err("a fault");
        assert_eq!(fault.kind(), FaultKind::Launch);
        assert!(
            fault
                .to_string()
                .contains("has 1025 threads; it may have 1 to 1024")
        );
    }

    #[test]
    fn a_device_works_on_after_a_fault() {
        let mut device = Gpu::new();
        let y = device.alloc::<u32>("y", 64);
        let params = Params {
            x: Global::NULL,
            y: y.address(),
        };
        let shape = Launch::new([1, 1, 1], [64, 1, 1]);
        let faulty = Kernel::new("faulty", |p: &Params| gpu::st_global(p.x, 1));
        let good = Kernel::new("good", |p: &Params| {
            gpu::bar_sync(0);
            gpu::st_global(p.y.add(gpu::tid_x().into()), 5);
        });
        assert!(device.launch(faulty, &shape, &params).is_err());
        device.launch(good, &shape, &params).expect("no fault");
        assert_eq!(device.read(&y), [5; 64]);
    }
}
