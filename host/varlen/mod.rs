//! Ragged batches: sequences of any lengths in one call, packed one after the other, keys and values packed too or in pages.

mod bounds;
mod inputs;
mod kv;
mod seqlens;
mod table;

pub use bounds::VarlenBounds;
pub(crate) use inputs::Span;
pub use inputs::VarlenInputs;
pub(crate) use kv::{KvView, RowIndex};
pub use seqlens::{Indices, SeqLens};
pub use table::BlockTable;
