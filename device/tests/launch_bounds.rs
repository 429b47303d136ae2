//! The launch bounds written into the PTX are the block sizes that hosts launch with.

use sample_attention_device::launch::{
    CHOOSE_DENSE_THREADS, PANEL_THREADS, REDUCTION_BLOCKS_THREADS, SELECT_ROWS_THREADS,
    TOP_K_THREADS, WRITE_HEADS_THREADS,
};
use sample_attention_device::launch_bounds::{LAUNCH_BOUNDS, Target};
use sample_attention_device::sparse_flash::hopper;
use sample_attention_device::{decode, merge, reduction, sampling, sparse_flash, top_k};

/// Every published kernel, and the threads of its launches.
fn kernels() -> Vec<(&'static str, u32)> {
    vec![
        (sampling::heads::WRITE_HEADS.name(), WRITE_HEADS_THREADS),
        (sampling::BF16_D64.name(), PANEL_THREADS),
        (sampling::BF16_D128.name(), PANEL_THREADS),
        (sampling::F16_D64.name(), PANEL_THREADS),
        (sampling::F16_D128.name(), PANEL_THREADS),
        (sampling::hopper::BF16_D64.name(), sampling::hopper::THREADS),
        (
            sampling::hopper::BF16_D128.name(),
            sampling::hopper::THREADS,
        ),
        (sampling::hopper::F16_D64.name(), sampling::hopper::THREADS),
        (sampling::hopper::F16_D128.name(), sampling::hopper::THREADS),
        (reduction::keys::BF16_D64.name(), PANEL_THREADS),
        (reduction::keys::BF16_D128.name(), PANEL_THREADS),
        (reduction::keys::F16_D64.name(), PANEL_THREADS),
        (reduction::keys::F16_D128.name(), PANEL_THREADS),
        (
            reduction::blocks::REDUCTION_BLOCKS.name(),
            REDUCTION_BLOCKS_THREADS,
        ),
        (top_k::rows::SELECT_ROWS.name(), SELECT_ROWS_THREADS),
        (top_k::keys::TOP_K_KEYS.name(), TOP_K_THREADS),
        (top_k::blocks::TOP_K_BLOCKS.name(), TOP_K_THREADS),
        (top_k::dense::CHOOSE_DENSE.name(), CHOOSE_DENSE_THREADS),
        (
            sparse_flash::portable::BF16_D64.name(),
            sparse_flash::portable::THREADS,
        ),
        (
            sparse_flash::portable::BF16_D128.name(),
            sparse_flash::portable::THREADS,
        ),
        (
            sparse_flash::portable::F16_D64.name(),
            sparse_flash::portable::THREADS,
        ),
        (
            sparse_flash::portable::F16_D128.name(),
            sparse_flash::portable::THREADS,
        ),
        (hopper::BF16_D64.name(), hopper::THREADS),
        (hopper::BF16_D128.name(), hopper::THREADS),
        (hopper::F16_D64.name(), hopper::THREADS),
        (hopper::F16_D128.name(), hopper::THREADS),
        (hopper::schedule::SCHEDULE.name(), hopper::schedule::THREADS),
        (decode::BF16_D64_M16.name(), decode::THREADS),
        (decode::BF16_D64_M64.name(), decode::THREADS),
        (decode::BF16_D128_M16.name(), decode::THREADS),
        (decode::BF16_D128_M64.name(), decode::THREADS),
        (decode::F16_D64_M16.name(), decode::THREADS),
        (decode::F16_D64_M64.name(), decode::THREADS),
        (decode::F16_D128_M16.name(), decode::THREADS),
        (decode::F16_D128_M64.name(), decode::THREADS),
        (decode::combine::COMBINE_BF16.name(), decode::THREADS),
        (decode::combine::COMBINE_F16.name(), decode::THREADS),
        (merge::MERGE_F32.name(), merge::THREADS),
        (merge::MERGE_BF16.name(), merge::THREADS),
        (merge::MERGE_F16.name(), merge::THREADS),
    ]
}

#[test]
fn the_table_has_the_launches_threads() {
    let mut table: Vec<_> = LAUNCH_BOUNDS
        .iter()
        .map(|row| (row.kernel, row.threads))
        .collect();
    let mut kernels = kernels();
    table.sort();
    kernels.sort();
    assert_eq!(table, kernels);
}

#[test]
fn kernels_are_shipped_for_every_target_but_hopper_s_own() {
    for row in LAUNCH_BOUNDS {
        let hopper_only = row.kernel.contains("_sm90_") || row.kernel == "sparse_flash_schedule";
        let targets = if hopper_only {
            &[Target::Sm90a][..]
        } else {
            &Target::ALL[..]
        };
        assert_eq!(row.targets, targets, "{}", row.kernel);
    }
}

#[test]
fn attention_has_the_blocks_on_a_multiprocessor_that_it_is_made_for() {
    for row in LAUNCH_BOUNDS {
        if row.kernel.starts_with("sparse_flash") && row.targets == Target::ALL {
            assert_eq!(
                row.min_blocks_per_sm,
                sparse_flash::portable::MIN_BLOCKS_PER_SM,
                "{}",
                row.kernel
            );
        }
    }
}
