//! Attention of every layer by the library, dense or by one policy, with what each head kept.

use std::time::Duration;

use sample_attention::{
    Coverage, HeadPath, HeadPlan, HeadPolicy, Inputs, Outputs, Plan, Policy, Problem, Progress,
    Report, TensorViewMut,
};

use super::model::Attention;

/// Whether a sparse pass measures how much of its rows' mass the heads kept.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum RowCoverage {
    /// The true coverage of every row, for half the time of dense attention.
    Measured,
    Skipped,
}

/// How the heads of all layers are treated.
#[derive(Clone, Copy)]
pub enum By<'a> {
    Dense,
    /// All alike.
    Policy(Policy),
    /// By layer and head.
    Profile(&'a [Vec<HeadPolicy>]),
}

impl By<'_> {
    /// A word for progress and tables.
    pub fn name(&self) -> &'static str {
        match self {
            By::Dense => "dense",
            By::Policy(policy) => policy.budget.name(),
            By::Profile(_) => "profile",
        }
    }

    /// What selecting costs one layer of `len` positions, mean over heads, dense attention being 1.
    fn sampling_cost(&self, layer: usize, problem: &Problem) -> f64 {
        match self {
            By::Dense => 0.0,
            By::Policy(policy) => HeadPolicy::Selected(*policy).sampling_cost(problem),
            By::Profile(heads) => {
                let costs = heads[layer].iter().map(|head| head.sampling_cost(problem));
                costs.sum::<f64>() / heads[layer].len() as f64
            }
        }
    }
}

/// What one head kept.
#[derive(Clone)]
pub struct Head {
    pub layer: usize,
    pub kind: &'static str,
    pub path: HeadPath,
    /// Share of the causal area that attention ran over.
    pub density: f64,
    pub row_coverage: Option<Coverage>,
}

/// Attention through [`Plan`]: all of a model's layers go through one of these.
pub struct Planned<'a> {
    by: By<'a>,
    row_coverage: RowCoverage,
    watch: &'a dyn Fn(usize) -> Box<dyn Progress + 'a>,
    workspace: Vec<u8>,
    /// Heads of all layers, in order.
    pub heads: Vec<Head>,
    /// Time of sampling, reduction and top-k over all layers.
    pub selection_time: Duration,
    /// Time of all stages over all layers.
    pub attention_time: Duration,
    /// Sum over the layers that were attended of what selecting costs.
    sampling_costs: f64,
    layers: usize,
}

impl<'a> Planned<'a> {
    /// `watch` makes the progress of one layer.
    pub fn new(
        by: By<'a>,
        row_coverage: RowCoverage,
        watch: &'a dyn Fn(usize) -> Box<dyn Progress + 'a>,
    ) -> Self {
        Planned {
            by,
            row_coverage,
            watch,
            workspace: Vec::new(),
            heads: Vec::new(),
            selection_time: Duration::ZERO,
            attention_time: Duration::ZERO,
            sampling_costs: 0.0,
            layers: 0,
        }
    }

    /// Density and cost of selecting, mean over the heads of all layers so far.
    pub fn cost(&self) -> f64 {
        let densities = self.heads.iter().map(|head| head.density).sum::<f64>();
        densities / self.heads.len() as f64 + self.sampling_costs / self.layers as f64
    }

    fn run(
        &mut self,
        layer: usize,
        problem: Problem,
        inputs: &Inputs<'_>,
        outputs: Outputs<'_>,
    ) -> sample_attention::Result<Report> {
        let plan = match self.by {
            By::Dense => Plan::dense(problem)?,
            By::Policy(policy) => Plan::new(problem, policy)?,
            By::Profile(heads) => {
                let plan = HeadPlan::new(problem, &heads[layer])?;
                self.workspace.resize(plan.workspace_bytes(), 0);
                let report = plan.run(inputs, outputs, &mut self.workspace);
                drop((self.watch)(layer));
                return report;
            }
        };
        self.workspace.resize(plan.workspace_bytes(), 0);
        let watch = (self.watch)(layer);
        let mut stages = plan.stages_watched(inputs, &mut self.workspace, &*watch)?;
        stages.run(outputs)
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
        let mut lse = vec![0.0; problem.lse_len()];
        let outputs = Outputs::new(o).with_lse(&mut lse);
        let report = self.run(layer, problem, inputs, outputs).map_err(named)?;
        self.selection_time += report.times.selection();
        self.attention_time += report.times.total();
        self.layers += 1;
        self.sampling_costs += self.by.sampling_cost(layer, &problem);
        let is_dense = matches!(self.by, By::Dense);
        let coverages = match self.row_coverage {
            RowCoverage::Measured if !is_dense => {
                let plan = Plan::dense(problem).map_err(named)?;
                self.workspace.resize(plan.workspace_bytes(), 0);
                plan.true_coverage(inputs, &lse, &mut self.workspace)
                    .map_err(named)?
            }
            RowCoverage::Measured | RowCoverage::Skipped => Vec::new(),
        };
        let mut coverages = coverages.into_iter();
        let kind = |head: usize| match self.by {
            By::Profile(heads) => heads[layer][head].kind(),
            by => by.name(),
        };
        self.heads.extend(report.heads.into_iter().map(|head| Head {
            layer,
            kind: kind(head.q_head),
            path: head.path,
            density: head.density,
            row_coverage: coverages.next(),
        }));
        Ok(())
    }
}
