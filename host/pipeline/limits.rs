//! How far the kernels go, and from where on selecting pays.

use sample_attention_device::params::ProblemSizes;

use crate::error::{Error, Result};
use crate::geometry::BLOCK;
use crate::policy::Policy;
use crate::problem::Problem;

/// Keys of a sequence, at most: the attention kernels have a bit of shared memory for each key block, 16 KiB of them here, which is
/// what Hopper's has left beside its tiles.
pub const MAX_KEYS: usize = 1 << 24;

/// Sequences times query heads, at most: they are dimensions of a grid. Fewer where sequences are so long that their blocks, over all
/// heads, would be more than 2^31.
pub const MAX_HEADS: usize = 65_535;

/// Keys below which a GPU attends to everything, unless [`Fallback::Never`](crate::Fallback::Never) says otherwise: the least length that was measured at which
/// an input that can be made sparse is faster so (H200, 32 query heads: 1.3 times). [`BREAK_EVEN_TOKENS`](crate::BREAK_EVEN_TOKENS) is the
/// CPU's.
pub const GPU_BREAK_EVEN_TOKENS: usize = 4096;

/// Whether selecting may pay.
pub(super) fn selects(problem: &Problem, _: &Policy) -> bool {
    problem.k_len >= GPU_BREAK_EVEN_TOKENS
}

/// The sizes of a valid problem, if the kernels take them.
pub(super) fn sizes(problem: &Problem) -> Result<ProblemSizes> {
    for (what, is_asked) in [
        ("window_left", problem.window_left.is_some()),
        ("softcap", problem.softcap.is_some()),
    ] {
        if is_asked {
            return Err(Error::KernelModel { what });
        }
    }
    let heads = problem.heads();
    // Query blocks of all heads are one dimension of a grid, and so are their key blocks.
    let blocks = problem.q_len.div_ceil(BLOCK) + problem.k_len.div_ceil(BLOCK) + 1;
    let max = MAX_HEADS.min(i32::MAX as usize / blocks);
    if heads > max {
        return Err(Error::KernelHeads { heads, max });
    }
    if problem.k_len > MAX_KEYS {
        return Err(Error::TooLong {
            name: "k_len",
            len: problem.k_len,
            max: MAX_KEYS,
        });
    }
    Ok(ProblemSizes {
        batch: problem.batch as u32,
        q_heads: problem.q_heads as u32,
        kv_heads: problem.kv_heads as u32,
        q_len: problem.q_len as u32,
        k_len: problem.k_len as u32,
        head_dim: problem.head_dim as u32,
        causal: u32::from(problem.causal),
    })
}
