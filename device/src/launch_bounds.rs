//! The one table of launch bounds: how many threads each kernel runs with, and where it is shipped.
//!
//! rustc has no attribute for launch bounds, so `cargo xtask ptx build` writes them into the PTX from
//! this table (`.maxntid`, `.minnctapersm`). Launches take their block sizes from `launch.rs` and from the
//! kernels' own constants; the test `launch_bounds` compares them with the rows. The file
//! uses nothing but `core`, because `xtask` includes it by path: the chores keep working while the rest of this
//! crate does not compile.

/// An architecture that has a PTX file of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Ampere and everything after it: `mma.sync`, `ldmatrix`, `cp.async`.
    Sm80,
    /// Hopper alone: `wgmma`, bulk copies, `setmaxnreg`. PTX for `sm_90a` runs on no other architecture.
    Sm90a,
}

impl Target {
    /// Every target, in the order in which they are built.
    pub const ALL: [Self; 2] = [Self::Sm80, Self::Sm90a];

    /// The name that rustc's `target-cpu`, `ptxas -arch` and `--cfg arch="…"` all use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sm80 => "sm_80",
            Self::Sm90a => "sm_90a",
        }
    }
}

/// What is promised about every launch of one kernel.
#[derive(Clone, Copy, Debug)]
pub struct LaunchBounds {
    /// The entry's name in the PTX, which is the function's name.
    pub kernel: &'static str,
    /// The PTX files that hold it.
    pub targets: &'static [Target],
    /// Threads of a CTA, all in x. A launch may have fewer, never more.
    pub threads: u32,
    /// CTAs that must fit on one multiprocessor together; with `threads` this caps the registers.
    pub min_blocks_per_sm: u32,
    /// Local memory and stack frames are errors in a hot kernel. Spills are errors in all of them.
    pub hot: bool,
}

const fn portable(kernel: &'static str, threads: u32, min_blocks_per_sm: u32) -> LaunchBounds {
    LaunchBounds {
        kernel,
        targets: &Target::ALL,
        threads,
        min_blocks_per_sm,
        hot: true,
    }
}

const fn hopper(kernel: &'static str, threads: u32) -> LaunchBounds {
    LaunchBounds {
        targets: &[Target::Sm90a],
        ..portable(kernel, threads, 1)
    }
}

/// Every kernel, a row each.
pub const LAUNCH_BOUNDS: &[LaunchBounds] = &[
    LaunchBounds {
        hot: false,
        ..portable("write_heads", 32, 1)
    },
    // Two CTAs of four warps leave 255 registers a thread, which is no cap; the second CTA hides the latency of the first.
    portable("sampling_bf16_d64", 128, 2),
    portable("sampling_bf16_d128", 128, 2),
    portable("sampling_f16_d64", 128, 2),
    portable("sampling_f16_d128", 128, 2),
    // 640 threads leave 96 registers each (65,536 / 640, rounded down to 8); `setmaxnreg` then moves them from the producer's
    // warpgroup to the four consumers.
    hopper("sampling_sm90_bf16_d64", 640),
    hopper("sampling_sm90_bf16_d128", 640),
    hopper("sampling_sm90_f16_d64", 640),
    hopper("sampling_sm90_f16_d128", 640),
    portable("reduction_keys_bf16_d64", 128, 2),
    portable("reduction_keys_bf16_d128", 128, 2),
    portable("reduction_keys_f16_d64", 128, 2),
    portable("reduction_keys_f16_d128", 128, 2),
    portable("reduction_blocks", 128, 2),
    // Four blocks of 256 threads leave 64 registers each.
    portable("select_rows", 256, 4),
    // 1024 threads leave 64 registers each.
    portable("top_k_keys", 1024, 1),
    portable("top_k_blocks", 1024, 1),
    portable("choose_dense", 256, 1),
    portable("sparse_flash_bf16_d64", 128, 2),
    portable("sparse_flash_bf16_d128", 128, 2),
    portable("sparse_flash_f16_d64", 128, 2),
    portable("sparse_flash_f16_d128", 128, 2),
    // Two blocks of a multiprocessor have enough bytes in flight between them to keep the memory busy.
    portable("decode_bf16_d64_m16", 128, 2),
    portable("decode_bf16_d64_m64", 128, 2),
    portable("decode_bf16_d128_m16", 128, 2),
    portable("decode_bf16_d128_m64", 128, 2),
    portable("decode_f16_d64_m16", 128, 2),
    portable("decode_f16_d64_m64", 128, 2),
    portable("decode_f16_d128_m16", 128, 2),
    portable("decode_f16_d128_m64", 128, 2),
    portable("decode_combine_bf16", 128, 4),
    portable("decode_combine_f16", 128, 4),
    portable("merge_f32", 128, 4),
    portable("merge_bf16", 128, 4),
    portable("merge_f16", 128, 4),
    // 384 threads leave 168 registers each (65,536 / 384, rounded down to 8); `setmaxnreg` then moves them to the consumers.
    hopper("sparse_flash_sm90_bf16_d64", 384),
    hopper("sparse_flash_sm90_bf16_d128", 384),
    hopper("sparse_flash_sm90_f16_d64", 384),
    hopper("sparse_flash_sm90_f16_d128", 384),
    hopper("sparse_flash_schedule", 1024),
];

/// The row of `kernel`, for constants: `const THREADS: u32 = launch_bounds("top_k").threads;`.
///
/// # Panics
/// Where the table has no such row; in a constant that is a compile error.
pub const fn launch_bounds(kernel: &str) -> &'static LaunchBounds {
    match find(LAUNCH_BOUNDS, kernel) {
        Some(row) => row,
        None => panic!("the launch bounds table has no row for this kernel"),
    }
}

const fn find(table: &'static [LaunchBounds], kernel: &str) -> Option<&'static LaunchBounds> {
    let mut at = 0;
    while at < table.len() {
        if same(table[at].kernel, kernel) {
            return Some(&table[at]);
        }
        at += 1;
    }
    None
}

/// `==` of strings, which is not `const`.
const fn same(left: &str, right: &str) -> bool {
    let (left, right) = (left.as_bytes(), right.as_bytes());
    if left.len() != right.len() {
        return false;
    }
    let mut at = 0;
    while at < left.len() {
        if left[at] != right[at] {
            return false;
        }
        at += 1;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn row(kernel: &'static str) -> LaunchBounds {
        LaunchBounds {
            kernel,
            targets: &Target::ALL,
            threads: 32,
            min_blocks_per_sm: 1,
            hot: true,
        }
    }

    const TABLE: &[LaunchBounds] = &[row("top_k"), row("top_m"), row("top")];

    #[test]
    fn a_row_is_found_by_its_whole_name() {
        for row in TABLE {
            assert_eq!(find(TABLE, row.kernel).map(|r| r.kernel), Some(row.kernel));
        }
        for absent in ["", "t", "top_", "top_kk", "Top"] {
            assert!(find(TABLE, absent).is_none(), "{absent}");
        }
    }

    #[test]
    fn no_kernel_has_two_rows() {
        for (at, row) in LAUNCH_BOUNDS.iter().enumerate() {
            let twin = LAUNCH_BOUNDS[..at].iter().find(|r| r.kernel == row.kernel);
            assert!(twin.is_none(), "{}", row.kernel);
        }
    }
}
