//! The maths between a kernel and its instructions: tiles in shared memory, fragments in registers,
//! masks, the online softmax.
//!
//! A tile knows which lane holds which element, so kernels speak of scores, rows and keys. All of it
//! is written for `mma.sync.m16n8k16`: a warp owns strips of 16 rows, and four neighbouring lanes
//! (a *quad*) share each row.

mod float16;
mod mask;
pub mod panel;
mod product;
mod softmax;
pub mod sum;
mod swizzled;

pub use float16::{Bf16, F16, Float16};
pub use mask::RowLimits;
pub use product::{Accumulator, Packed, STRIP_ROWS};
pub use softmax::OnlineSoftmax;
pub use swizzled::{LaneRows, SwizzledTile};

/// All lanes of a warp, as the mask of a `.sync` instruction.
pub const WARP: u32 = u32::MAX;
