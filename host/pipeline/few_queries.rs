//! Dense attention of few queries: keys are split over blocks of threads, and the splits merged.

use sample_attention_device::decode::{Splits, WIDE_ROWS};
use sample_attention_device::params::ProblemSizes;
use sample_attention_device::sparse_flash::SparseFlashParams;

/// Rows of a key/value head, its query heads' together, up to which its keys are split: those of one row tile, so that every key is
/// still read once.
const MAX_ROWS: u32 = WIDE_ROWS;

/// Multiprocessors that the splits fill, whichever GPU runs them: workspace and bits follow from the plan alone.
const MULTIPROCESSORS: u32 = 132;

/// How the keys of a dense plan are split; `None` where it has too many queries for that.
pub(super) fn splits(sizes: &ProblemSizes) -> Option<Splits> {
    let group = u64::from(sizes.q_heads / sizes.kv_heads);
    let rows = u64::from(sizes.q_len) * group;
    (rows <= u64::from(MAX_ROWS)).then(|| Splits::even(&nowhere(sizes), MULTIPROCESSORS))
}

/// Elements of the splits' weighted sums of values, and of their statistics.
pub(super) fn partial_lens(sizes: &ProblemSizes, splits: &Splits) -> (u64, u64) {
    let attention = nowhere(sizes);
    (
        splits.partial_o_len(&attention),
        splits.partial_sums_len(&attention),
    )
}

fn nowhere(sizes: &ProblemSizes) -> SparseFlashParams {
    let heads = (sizes.q_heads, sizes.kv_heads);
    SparseFlashParams::at_nowhere(sizes.sequences(), heads, sizes.head_dim)
}
