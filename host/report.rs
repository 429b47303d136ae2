//! What a run did: per head, what was kept and how much of the attention it covers; per stage, how long it took.

use std::time::Duration;

use crate::problem::Problem;
use crate::selection::HeadSelection;
pub use crate::stage::Stage;

/// Wall-clock time of each stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StageTimes {
    /// Time of [`Stage::Sampling`].
    pub sampling: Duration,
    /// Time of [`Stage::Reduction`].
    pub reduction: Duration,
    /// Time of [`Stage::TopK`], the choice of dense heads included.
    pub top_k: Duration,
    /// Time of [`Stage::SparseFlash`].
    pub sparse_flash: Duration,
}

impl StageTimes {
    /// Time of one stage.
    pub fn get(&self, stage: Stage) -> Duration {
        match stage {
            Stage::Sampling => self.sampling,
            Stage::Reduction => self.reduction,
            Stage::TopK => self.top_k,
            Stage::SparseFlash => self.sparse_flash,
        }
    }

    pub(crate) fn add(&mut self, stage: Stage, time: Duration) {
        *match stage {
            Stage::Sampling => &mut self.sampling,
            Stage::Reduction => &mut self.reduction,
            Stage::TopK => &mut self.top_k,
            Stage::SparseFlash => &mut self.sparse_flash,
        } += time;
    }

    /// Time of sampling, reduction and top-k together.
    pub fn selection(&self) -> Duration {
        self.sampling + self.reduction + self.top_k
    }

    /// Time of all stages.
    pub fn total(&self) -> Duration {
        self.selection() + self.sparse_flash
    }
}

/// Why a head ran dense, or that it did not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum HeadPath {
    /// Attention over the selection.
    Sparse,
    /// The plan is dense.
    Dense,
    /// There are too few keys, or too few queries, for a selection to pay, so nothing was selected.
    BelowBreakEven,
    /// The selection would have cost more than dense.
    Fallback,
}

/// What one head kept.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct HeadReport {
    /// Sequence of the head.
    pub batch: usize,
    /// Query head.
    pub q_head: usize,
    /// How the head ran. When it is not [`HeadPath::Sparse`], the counts below still say what was selected.
    pub path: HeadPath,
    /// Single keys selected.
    pub stripes: usize,
    /// Key blocks listed, over all query blocks, window included.
    pub blocks_kept: usize,
    /// Share of the visible (row, key) pairs that attention ran over: 1 where the head ran dense.
    pub density: f64,
    /// Share of the sampled rows' attention mass that the mask keeps, of the rows whose softmax is finite; `None` where there is
    /// none. The selection was fitted to these rows, so that the others reach less, most of all with
    /// [`Budget::Residual`](crate::Budget::Residual), where few rows decide on single keys:
    /// [`Plan::true_coverage`](crate::Plan::true_coverage) measures all of them.
    pub sampled_coverage: Option<f64>,
    /// Sampled rows whose softmax is not finite: one of their scores is NaN or +∞, or all are −∞. They count as nothing in the
    /// selection, so the other rows keep what they would keep without them. `None` where the backend does not count them.
    pub non_finite_rows: Option<usize>,
    /// The sampled row of which the mask keeps the least. `None` where nothing was sampled, or where single rows were not looked
    /// at: single keys ([`Budget::Residual`](crate::Budget::Residual), [`Budget::Paper`](crate::Budget::Paper)) are ranked by sums
    /// over rows, and GPUs keep no masses of rows.
    pub least_covered_row: Option<RowCoverage>,
    /// Share of the last row's mass that the mask keeps: in a prefill, the row that makes the next token. `None` as above.
    pub last_row_coverage: Option<f64>,
}

/// How much of one row's attention mass the mask keeps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowCoverage {
    /// Index among the queries.
    pub row: usize,
    /// Share of the row's mass, in 0..=1.
    pub coverage: f64,
}

/// What one run did.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Report {
    /// One entry a (sequence, query head), in that order.
    pub heads: Vec<HeadReport>,
    /// Wall-clock time of each stage.
    pub times: StageTimes,
    /// Ranges that the keys of each head were cut into, each attended to by itself: 0 where they were not cut. Keys are cut where there
    /// are few queries and everything is attended to.
    pub key_ranges: usize,
}

/// What a backend knows of one head's selection.
pub(crate) struct SelectedHead<'a> {
    pub(crate) kept: KeptKeys<'a>,
    /// These as in [`HeadReport`].
    pub(crate) sampled_coverage: Option<f64>,
    pub(crate) non_finite_rows: Option<usize>,
    pub(crate) least_covered_row: Option<RowCoverage>,
    pub(crate) last_row_coverage: Option<f64>,
}

/// Which keys a head kept, or how many.
pub(crate) enum KeptKeys<'a> {
    Mask(HeadSelection<'a>),
    /// The lists are gone.
    Counted {
        /// Over all query blocks.
        blocks: usize,
        density: f64,
    },
}

impl HeadReport {
    /// A head that attended to everything because the plan is dense.
    pub(crate) fn of_dense(batch: usize, q_head: usize) -> Self {
        HeadReport {
            batch,
            q_head,
            path: HeadPath::Dense,
            stripes: 0,
            blocks_kept: 0,
            density: 1.0,
            sampled_coverage: None,
            non_finite_rows: None,
            least_covered_row: None,
            last_row_coverage: None,
        }
    }
}

impl Report {
    /// The report of a run whose heads went `path`, unless they fell back; `selected` gives what was selected for a head, `None`
    /// where the plan runs dense.
    pub(crate) fn new<'a>(
        problem: &Problem,
        path: HeadPath,
        times: StageTimes,
        selected: impl Fn(usize) -> Option<SelectedHead<'a>>,
    ) -> Self {
        let heads = (0..problem.batch * problem.q_heads)
            .map(|head| {
                let mut report = HeadReport {
                    path,
                    ..HeadReport::of_dense(head / problem.q_heads, head % problem.q_heads)
                };
                if let Some(selected) = selected(head) {
                    match selected.kept {
                        KeptKeys::Mask(mask) => {
                            if mask.is_dense() {
                                report.path = HeadPath::Fallback;
                            }
                            report.stripes = mask.stripes().len();
                            report.blocks_kept = mask.blocks_kept();
                            report.density = mask.density();
                        }
                        KeptKeys::Counted { blocks, density } => {
                            report.blocks_kept = blocks;
                            report.density = density;
                        }
                    }
                    report.sampled_coverage = selected.sampled_coverage;
                    report.non_finite_rows = selected.non_finite_rows;
                    report.least_covered_row = selected.least_covered_row;
                    report.last_row_coverage = selected.last_row_coverage;
                }
                report
            })
            .collect();
        Report {
            heads,
            times,
            key_ranges: 0,
        }
    }

    /// Mean density over all heads.
    pub fn mean_density(&self) -> f64 {
        self.heads.iter().map(|head| head.density).sum::<f64>() / self.heads.len() as f64
    }
}

/// True coverage of the rows of one head: the share of each row's dense attention mass that its mask keeps, which is
/// the paper's CRA. Rows that see nothing do not count, nor do those whose share is not known.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Coverage {
    /// Sequence of the head.
    pub batch: usize,
    /// Query head.
    pub q_head: usize,
    /// Rows whose share is not known to three digits: their log-sum-exp is not finite, or beyond ±16384, where an f32 does not hold
    /// the digits that the share depends on.
    pub unknown_rows: usize,
    /// Mean over the rows whose share is known; like the others NaN where there is no such row.
    pub mean: f64,
    /// 1st percentile over rows: 99 % of the rows reach at least this.
    pub percentile_1: f64,
    /// The worst row.
    pub min: f64,
}

impl Coverage {
    /// Summary of the rows' coverages, NaN where not known, which are reordered. A head without rows is fully covered.
    pub(crate) fn of_rows(batch: usize, q_head: usize, rows: &mut [f64]) -> Self {
        // NaN of either sign behind all others.
        rows.sort_unstable_by(|a, b| a.is_nan().cmp(&b.is_nan()).then(a.total_cmp(b)));
        let known = rows.partition_point(|share| !share.is_nan());
        let unknown_rows = rows.len() - known;
        let (mean, percentile_1, min) = match &rows[..known] {
            [] if unknown_rows == 0 => (1.0, 1.0, 1.0),
            [] => (f64::NAN, f64::NAN, f64::NAN),
            [min, ..] => (
                rows[..known].iter().sum::<f64>() / known as f64,
                rows[known / 100],
                *min,
            ),
        };
        Coverage {
            batch,
            q_head,
            unknown_rows,
            mean,
            percentile_1,
            min,
        }
    }
}
