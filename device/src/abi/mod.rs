//! What host, emulator and kernels share: the one definition of sequences, tensors, the sparse mask and the policy of a head.
//!
//! Everything here is plain `#[repr(C)]` data, passed by value as part of a kernel's parameter struct. Lengths, block tables,
//! policies and lists are device data behind [`Global`](crate::gpu::Global) addresses: a plan knows bounds alone, so nothing
//! waits for the host, and a captured graph replays with other lengths.
//!
//! | file | holds |
//! |---|---|
//! | [`sequences`] | lengths of a batch, uniform or ragged; query tiles and who owns them |
//! | [`tensors`] | queries and outputs at any strides; keys and values, strided or paged; the log-sum-exp |
//! | [`mask`] | which key blocks and single keys each query tile attends to |
//! | [`mod@slice`] | a launch's share of the query tiles, and where their sampled rows lie |
//! | [`policy`] | how one head is treated, and which of its rows are sampled |

pub mod mask;
pub mod policy;
pub mod sequences;
pub mod slice;
pub mod tensors;

pub use mask::SparseMask;
pub use policy::{HeadEntry, HeadKind, HeadPolicies, HeadPolicy, SampledRows};
pub use sequences::{QueryTile, Sequence, Sequences};
pub use slice::{BlockRun, RowPanel, TileSlice};
pub use tensors::{KvTensor, LseTensor};
