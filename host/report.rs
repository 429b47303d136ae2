//! What a run did: per head, what was kept and how much of the attention it covers; per stage, how long it took.

use std::time::Duration;

use crate::problem::Problem;
use crate::selection::HeadSelection;
pub use crate::stage::Stage;

/// Wall-clock time of each stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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
pub enum HeadPath {
    /// Attention over the selection.
    Sparse,
    /// The plan is dense.
    Dense,
    /// The sequence is shorter than the break-even length, so nothing was selected.
    BelowBreakEven,
    /// The selection would have cost more than dense.
    Fallback,
}

/// What one head kept.
#[derive(Clone, Debug, PartialEq)]
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
    /// Share of the sampled rows' attention mass that the mask keeps; `None` where nothing was sampled.
    pub sampled_coverage: Option<f64>,
}

/// What one run did.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// One entry a (sequence, query head), in that order.
    pub heads: Vec<HeadReport>,
    /// Wall-clock time of each stage.
    pub times: StageTimes,
}

/// What a backend knows of one head's selection.
pub(crate) struct SelectedHead<'a> {
    pub(crate) mask: HeadSelection<'a>,
    /// Share of the sampled rows' mass; `None` where no row was sampled.
    pub(crate) sampled_coverage: Option<f64>,
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
                    batch: head / problem.q_heads,
                    q_head: head % problem.q_heads,
                    path,
                    stripes: 0,
                    blocks_kept: 0,
                    density: 1.0,
                    sampled_coverage: None,
                };
                if let Some(SelectedHead {
                    mask,
                    sampled_coverage,
                }) = selected(head)
                {
                    if mask.is_dense() {
                        report.path = HeadPath::Fallback;
                    }
                    report.stripes = mask.stripes().len();
                    report.blocks_kept = mask.blocks_kept();
                    report.density = mask.density();
                    report.sampled_coverage = sampled_coverage;
                }
                report
            })
            .collect();
        Report { heads, times }
    }

    /// Mean density over all heads.
    pub fn mean_density(&self) -> f64 {
        self.heads.iter().map(|head| head.density).sum::<f64>() / self.heads.len() as f64
    }
}

/// True coverage of the rows of one head: the share of each row's dense attention mass that its mask keeps, which is
/// the paper's CRA. Rows that see nothing do not count.
#[derive(Clone, Debug, PartialEq)]
pub struct Coverage {
    /// Sequence of the head.
    pub batch: usize,
    /// Query head.
    pub q_head: usize,
    /// Mean over rows.
    pub mean: f64,
    /// 1st percentile over rows: 99 % of the rows reach at least this.
    pub percentile_1: f64,
    /// The worst row.
    pub min: f64,
}

impl Coverage {
    /// Summary of the rows' coverages, which are reordered. A head without rows is fully covered.
    pub(crate) fn of_rows(batch: usize, q_head: usize, rows: &mut [f64]) -> Self {
        rows.sort_unstable_by(f64::total_cmp);
        let (mean, percentile_1, min) = match &*rows {
            [] => (1.0, 1.0, 1.0),
            [min, ..] => (
                rows.iter().sum::<f64>() / rows.len() as f64,
                rows[rows.len() / 100],
                *min,
            ),
        };
        Coverage {
            batch,
            q_head,
            mean,
            percentile_1,
            min,
        }
    }
}
