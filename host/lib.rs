//! SampleAttention: near-lossless sparse attention for long prompts.
#![doc = ""]
pub mod cpu;
mod error;
mod geometry;
mod plan;
mod policy;
mod problem;
mod progress;
mod report;
mod selection;
mod tensor;
pub mod top_k;

pub use cpu::Stages;
pub use error::{Error, Result};
pub use geometry::{BLOCK, SEGMENT_BLOCKS};
pub use plan::Plan;
pub use policy::{BREAK_EVEN_TOKENS, Budget, Fallback, Policy, Window};
pub use problem::{Dtype, MAX_HEAD_DIM, Problem};
pub use progress::Progress;
pub use report::{Coverage, HeadPath, HeadReport, Report, Stage, StageTimes};
pub use selection::{HeadSelection, Selection};
pub use tensor::{Element, Inputs, Outputs, TensorView, TensorViewMut};
