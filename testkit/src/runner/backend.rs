//! What a backend must answer to be tested.

use sample_attention::cpu::{SampledRow, UnitMass};
use sample_attention::{
    BREAK_EVEN_TOKENS, Coverage, Inputs, Outputs, Problem, Report, Result, Selection,
};

use super::Attend;

/// An implementation of the pipeline.
pub trait Backend {
    /// Its name in failure messages.
    fn name(&self) -> String;

    /// Whether it has a kernel for the problem; [`check_all`](super::check_all) skips the others.
    fn supports(&self, _problem: &Problem) -> bool {
        true
    }

    /// The length below which it attends to everything, unless told otherwise.
    fn break_even_tokens(&self) -> usize {
        BREAK_EVEN_TOKENS
    }

    /// Whether probabilities stay f32 until the output is rounded. Tensor cores take them in 16 bits; then the
    /// tolerance is that of a 16-bit reference.
    fn keeps_f32(&self) -> bool;

    /// Computes O and LSE, both always wanted, and tells what it found.
    ///
    /// # Errors
    /// Whatever the backend refuses, having written nothing.
    fn run(
        &self,
        problem: &Problem,
        attend: &Attend,
        inputs: &Inputs<'_>,
        outputs: Outputs<'_>,
    ) -> Result<Found>;
}

/// What a backend tells of one run. Empty where it does not know: then it is not checked.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// What its policy selected; `None` where it ran dense outright.
    pub selection: Option<Selection>,
    /// Its report.
    pub report: Option<Report>,
    /// Normalisers of all sampled rows.
    pub sampled: Vec<SampledRow>,
    /// Masses of all units.
    pub units: Vec<UnitFound>,
    /// True coverage of every head.
    pub coverage: Option<Vec<Coverage>>,
}

/// The masses of one unit, which [`UnitMass`] borrows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitFound {
    /// Sequence.
    pub batch: usize,
    /// Query head.
    pub q_head: usize,
    /// First query block.
    pub first_query_block: usize,
    /// Sampled rows.
    pub rows: usize,
    /// Mass that window and sinks cover.
    pub covered: u64,
    /// Mass to reach.
    pub need: u64,
    /// Candidates of one row of `mass`.
    pub candidates_per_row: usize,
    /// Mass of each candidate.
    pub mass: Vec<u64>,
}

impl From<UnitMass<'_>> for UnitFound {
    fn from(unit: UnitMass<'_>) -> Self {
        UnitFound {
            batch: unit.batch,
            q_head: unit.q_head,
            first_query_block: unit.first_query_block,
            rows: unit.rows,
            covered: unit.covered,
            need: unit.need,
            candidates_per_row: unit.candidates_per_row,
            mass: unit.mass.to_vec(),
        }
    }
}
