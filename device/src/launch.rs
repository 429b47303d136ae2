//! How the selection kernels are launched: the shape of a launch as data, and the table of their sizes.
//!
//! | entry | threads | blocks of the grid | dynamic shared memory |
//! |---|---|---|---|
//! | `write_heads` | [`WRITE_HEADS_THREADS`] | 1 | none |
//! | `sampling_*` | [`PANEL_THREADS`] | sampled head × panel of [`PANEL`] sampled rows × split | [`STAGES`] tiles of [`TILE`] rows |
//! | `sampling_sm90_*` | [`THREADS`](crate::sampling::hopper::THREADS) | sampled head × panel of 256 sampled rows × split | 4 tiles of 128 rows, the panel, 64 bytes, and 32 a thread |
//! | `sparse_flash_schedule` | [`THREADS`](crate::sparse_flash::hopper::schedule::THREADS) | group of heads | 4.1 KB |
//! | `select_rows` | [`SELECT_ROWS_THREADS`] | head × query tile | 16 bytes, and a bit for each key block |
//! | `reduction_keys_*` | [`PANEL_THREADS`] | sampled head × sequence × key block | the same, and 4 bytes a row of each tile |
//! | `reduction_blocks` | [`REDUCTION_BLOCKS_THREADS`] | sampled head × query tile | 8 bytes, and 4 for each row and split |
//! | `top_k_blocks`, `top_k_keys` | [`TOP_K_THREADS`] | unit: sampled head × segment, or × sequence | a histogram of 16 KB, and 784 bytes |
//! | `choose_dense` | [`CHOOSE_DENSE_THREADS`] | head × sequence | 16 bytes |
//!
//! `reduction_keys_*_d128` and `sampling_sm90_*` ask for more than the 48 KB that a launch has without opting in.

/// Rows that a CTA holds in registers, 4 warps of [`WARP_ROWS`].
pub const PANEL: u32 = 128;

/// Rows of a warp. 32, not 16: each fragment of a tile then feeds two products, or reading shared memory would be as slow as
/// multiplying.
pub const WARP_ROWS: u32 = 32;

/// Threads that work on a panel. ptxas gives them 159 to 161 registers at head_dim 64, which is three blocks a multiprocessor,
/// and 197 to 213 at 128, which is two.
pub const PANEL_THREADS: u32 = PANEL / WARP_ROWS * 32;

/// Rows of a tile that streams past a panel. The products with 64 rows are 64 registers a thread; with 128 rows, as many again
/// would leave one block a multiprocessor.
pub const TILE: u32 = 64;

/// Tiles in shared memory: one in use, two on their way. The panel passes through the same memory, and fits it.
pub const STAGES: u32 = 3;

/// A query block of a long prompt has a thousand key blocks, that of a short one a handful: a thread each, in a few rounds.
pub const REDUCTION_BLOCKS_THREADS: u32 = 128;

/// One block reads all candidates of a unit several times, so it wants as many loads in flight as a block can have.
pub const TOP_K_THREADS: u32 = 1024;

/// A tile has 16 sampled rows at the default row stride: a warp has two, and several blocks fit a multiprocessor.
pub const SELECT_ROWS_THREADS: u32 = 256;

/// A thread for each head of a launch.
pub const WRITE_HEADS_THREADS: u32 = 32;

/// A thread for each query block of 32K tokens.
pub const CHOOSE_DENSE_THREADS: u32 = 256;

/// Blocks, threads and shared memory of one launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaunchShape {
    /// Blocks of the grid.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Dynamic shared memory of a block.
    pub shared_bytes: u32,
}

impl LaunchShape {
    /// `blocks` blocks of `threads` threads, in one dimension.
    pub const fn linear(blocks: u32, threads: u32, shared_bytes: u32) -> Self {
        LaunchShape {
            grid: [blocks, 1, 1],
            block: [threads, 1, 1],
            shared_bytes,
        }
    }
}
