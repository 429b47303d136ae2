//! Attention of every layer by the library, dense or by one policy, with what each head kept.

use std::time::Duration;

use sample_attention::{
    Coverage, HeadPath, Inputs, Outputs, Plan, Policy, Problem, Progress, TensorViewMut,
};

use super::model::Attention;

/// Whether a sparse pass measures how much of its rows' mass the heads kept.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum RowCoverage {
    /// The true coverage of every row, for half the time of dense attention.
    Measured,
    Skipped,
}

/// What one head kept.
#[derive(Clone)]
pub struct Head {
    pub layer: usize,
    pub path: HeadPath,
    /// Share of the causal area that attention ran over.
    pub density: f64,
    pub row_coverage: Option<Coverage>,
}

/// Attention through [`Plan`]: all of a model's layers go through one of these.
pub struct Planned<'a> {
    /// `None`: dense.
    policy: Option<Policy>,
    row_coverage: RowCoverage,
    watch: &'a dyn Fn(usize) -> Box<dyn Progress + 'a>,
    workspace: Vec<u8>,
    /// Heads of all layers, in order.
    pub heads: Vec<Head>,
    /// Time of sampling, reduction and top-k over all layers.
    pub selection_time: Duration,
    /// Time of all stages over all layers.
    pub attention_time: Duration,
}

impl<'a> Planned<'a> {
    /// `watch` makes the progress of one layer.
    pub fn new(
        policy: Option<Policy>,
        row_coverage: RowCoverage,
        watch: &'a dyn Fn(usize) -> Box<dyn Progress + 'a>,
    ) -> Self {
        Planned {
            policy,
            row_coverage,
            watch,
            workspace: Vec::new(),
            heads: Vec::new(),
            selection_time: Duration::ZERO,
            attention_time: Duration::ZERO,
        }
    }
}

impl Attention for Planned<'_> {
    fn attend(
        &mut self,
        layer: usize,
        problem: Problem,
        inputs: &Inputs<'_>,
        o: TensorViewMut<'_>,
    ) -> Result<(), String> {
        let named = |error: sample_attention::Error| format!("layer {layer}: {error}");
        let plan = match self.policy {
            Some(policy) => Plan::new(problem, policy),
            None => Plan::dense(problem),
        }
        .map_err(named)?;
        self.workspace.resize(plan.workspace_bytes(), 0);
        let mut lse = vec![0.0; problem.lse_len()];
        let watch = (self.watch)(layer);
        let report = plan
            .stages_watched(inputs, &mut self.workspace, &*watch)
            .and_then(|mut stages| stages.run(Outputs::new(o).with_lse(&mut lse)))
            .map_err(named)?;
        self.selection_time += report.times.selection();
        self.attention_time += report.times.total();
        let measured = self.policy.is_some() && self.row_coverage == RowCoverage::Measured;
        let mut coverages = match measured {
            true => plan
                .true_coverage(inputs, &lse, &mut self.workspace)
                .map_err(named)?,
            false => Vec::new(),
        }
        .into_iter();
        self.heads.extend(report.heads.into_iter().map(|head| Head {
            layer,
            path: head.path,
            density: head.density,
            row_coverage: coverages.next(),
        }));
        Ok(())
    }
}
