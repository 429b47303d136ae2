//! The launch bounds written into the PTX are the block sizes that hosts launch with.

use sample_attention_device::launch::{
    CHOOSE_DENSE_THREADS, PANEL_THREADS, REDUCTION_BLOCKS_THREADS, TOP_K_THREADS,
};
use sample_attention_device::launch_bounds::{LAUNCH_BOUNDS, Target};
use sample_attention_device::{reduction, sampling, sparse_flash, top_k};

/// Every published kernel, and the threads of its launches.
fn kernels() -> Vec<(&'static str, u32)> {
    vec![
        (sampling::BF16_D64.name(), PANEL_THREADS),
        (sampling::BF16_D128.name(), PANEL_THREADS),
        (sampling::F16_D64.name(), PANEL_THREADS),
        (sampling::F16_D128.name(), PANEL_THREADS),
        (reduction::keys::BF16_D64.name(), PANEL_THREADS),
        (reduction::keys::BF16_D128.name(), PANEL_THREADS),
        (reduction::keys::F16_D64.name(), PANEL_THREADS),
        (reduction::keys::F16_D128.name(), PANEL_THREADS),
        (
            reduction::blocks::REDUCTION_BLOCKS.name(),
            REDUCTION_BLOCKS_THREADS,
        ),
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
fn portable_kernels_are_shipped_for_every_target() {
    for (kernel, _) in kernels() {
        let row = LAUNCH_BOUNDS.iter().find(|row| row.kernel == kernel);
        assert_eq!(
            row.map(|row| row.targets),
            Some(&Target::ALL[..]),
            "{kernel}"
        );
    }
}

#[test]
fn attention_has_the_blocks_on_a_multiprocessor_that_it_is_made_for() {
    for row in LAUNCH_BOUNDS {
        if row.kernel.starts_with("sparse_flash") {
            assert_eq!(
                row.min_blocks_per_sm,
                sparse_flash::portable::MIN_BLOCKS_PER_SM,
                "{}",
                row.kernel
            );
        }
    }
}
