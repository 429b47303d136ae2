//! Races in shared memory.

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
    let words =
        ["`st.shared.b32` writes it here; thread 1 (warp 0, lane 1) read it in `ld.shared.b32` at"];
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
