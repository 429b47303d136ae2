//! Collectives of a warp.

use super::*;

#[test]
#[expect(clippy::if_same_then_else, reason = "two call sites are the point")]
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
    let words = ["`mma.sync.m16n8k16.bf16` needs lanes 0-31 of warp 0, but lanes 0-2 have exited"];
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
