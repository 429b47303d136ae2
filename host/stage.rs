//! The stages, and what each of them finds.

/// A stage of the pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Stage {
    /// Softmax normalisers of the sampled rows.
    Sampling,
    /// Sampled mass of each candidate.
    Reduction,
    /// The smallest set of candidates that reaches the coverage.
    TopK,
    /// Attention over what was selected, or over everything.
    SparseFlash,
}

impl Stage {
    /// All stages, in the order in which they run.
    pub const ALL: [Stage; 4] = [
        Stage::Sampling,
        Stage::Reduction,
        Stage::TopK,
        Stage::SparseFlash,
    ];

    /// The stage's name in reports and benchmarks.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Sampling => "sampling",
            Stage::Reduction => "reduction",
            Stage::TopK => "top_k",
            Stage::SparseFlash => "sparse_flash",
        }
    }
}

/// A row that sampling read.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct SampledRow {
    /// Sequence of the row.
    pub batch: usize,
    /// Query head of the row.
    pub q_head: usize,
    /// Index among the queries.
    pub row: usize,
    /// Natural log of the softmax normaliser over all keys that the row sees.
    pub lse: f64,
}

/// The sampled mass of one unit: of one segment of 64 query blocks for [`Budget::Blocks`](crate::Budget::Blocks), else of one head.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct UnitMass<'a> {
    /// Sequence of the unit.
    pub batch: usize,
    /// Query head of the unit.
    pub q_head: usize,
    /// First query block of the unit.
    pub first_query_block: usize,
    /// Sampled rows whose softmax is finite; each has a mass of [`MASS_ONE`](crate::cpu::MASS_ONE).
    pub rows: usize,
    /// Mass that window and sinks cover.
    pub covered: u64,
    /// Mass that the selected candidates have to reach.
    pub need: u64,
    /// Candidates by which `mass` is indexed: rows of this many key blocks, or 1 row of keys padded to whole blocks.
    pub candidates_per_row: usize,
    /// Mass of each candidate, by which it is ranked.
    pub mass: &'a [u64],
}
