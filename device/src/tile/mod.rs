//! The maths between a kernel and its instructions: tiles in shared memory, fragments in registers,
//! masks, the online softmax.
//!
//! A tile knows which lane holds which element, so kernels speak of scores, rows and keys. A warp
//! owns strips of 16 rows, and four neighbouring lanes (a *quad*) share each row, in the fragments of
//! `mma.sync.m16n8k16` and in those of `wgmma` ([`warpgroup`]) alike.

pub mod exponent;
mod float16;
mod lazy_softmax;
mod mask;
pub mod panel;
mod product;
pub mod scale;
mod softmax;
pub mod sum;
mod swizzled;
pub mod warpgroup;

pub use float16::{Bf16, F16, Float16, not_finite, pack_averages, spread};
pub use lazy_softmax::{LazySoftmax, Rescale};
pub use mask::RowLimits;
pub use product::{Accumulator, Packed, STRIP_ROWS};
pub use softmax::{OnlineSoftmax, finish_sum};
pub use swizzled::{LaneRows, SwizzledTile};

/// All lanes of a warp, as the mask of a `.sync` instruction.
pub const WARP: u32 = u32::MAX;
