//! Squeezed Attention: a fixed context whose keys are clustered once and looked up by every query.
//!
//! For prompts of which a large part is fixed over many requests (a document, a code base). An [`Index`] clusters the keys of the fixed
//! context, per layer and key/value head. A query compares itself with the clusters, and attends exactly to the keys of those that matter to it,
//! to a few positions that are always kept, and to the tokens that stand after the fixed context. After Hooper et al. 2024,
//! "Squeezed Attention: Accelerating Long Context Length LLM Inference" (arXiv 2411.09688), whose own rule is
//! [`Centroids::published`]. By default two things differ: a cluster's weight is divided by everything that the query sees, not by the
//! clusters alone, and it is estimated to second order, with the variance of the cluster's keys besides their mean.
//!
//! 1. [`Index::build`]: spherical k-means, one or two levels; keys and values permuted so that clusters are contiguous runs.
//! 2. [`Squeeze::observe`]: thresholds for a wanted share or coverage, from the queries of the last positions of the fixed context.
//! 3. [`Squeeze::attend`]: look-up and attention, for one token of each sequence, or for blocks of a user's input.
//!
//! It runs on the CPU. There are no GPU kernels for it yet.
//!
//! # Conventions
//! Those of the crate: [batch, heads, length, head_dim]; query head `h` reads key/value head `h / (q_heads / kv_heads)`, and the
//! query heads of a group share one list of clusters. Keys carry their rotary embedding already. Log-sum-exp is natural.

mod attention;
mod check;
mod cluster;
mod division;
mod error;
#[cfg(feature = "index-files")]
mod files;
mod index;
mod kernels;
mod kmeans;
mod level;
mod lookup;
mod merge;
mod observed;
mod options;
mod report;
mod rows;
mod rule;
mod workspace;

pub use attention::Squeeze;
pub use error::{Error, Result};
pub use index::Index;
pub use observed::Observed;
pub use options::{IndexOptions, Variance};
pub use report::{HeadReport, Report};
pub use rule::{Centroids, Denominator, Keep, Score};
pub use workspace::Workspace;
