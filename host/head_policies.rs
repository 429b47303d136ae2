//! A policy for each head: what a model's calibration finds for one layer.

use std::time::Instant;

use crate::cpu::{InstructionSet, Plan};
use crate::error::{Error, Result};
use crate::geometry::BLOCK;
use crate::head_policy::HeadPolicy;
use crate::policy::Policy;
use crate::problem::Problem;
use crate::report::{HeadPath, HeadReport, Report, Stage, StageTimes};
use crate::selection::Selection;
use crate::tensor::{Inputs, Outputs};

/// A plan whose query heads have a policy each, on the CPU: heads that are not sampled cost nothing in sampling.
///
/// Every head's result has the bits that [`Plan`] gives it by the same policy. Heads run one after the other, each on all threads,
/// and the workspace is that of the head which needs most.
///
/// ```
/// use sample_attention::{Dtype, HeadPlan, HeadPolicy, Inputs, Outputs, Policy, Problem};
/// use sample_attention::{TensorView, TensorViewMut, Window};
/// let problem = Problem::causal(300, 64, Dtype::F32).with_heads(2, 1);
/// let local = HeadPolicy::Local { window: Window::Tokens(128), sinks: 16 };
/// let plan = HeadPlan::new(problem, &[local, HeadPolicy::Selected(Policy::default())])?;
/// let q = vec![0.1f32; 2 * 300 * 64];
/// let kv = vec![0.2f32; 300 * 64];
/// let mut o = vec![0f32; q.len()];
/// let mut workspace = vec![0; plan.workspace_bytes()];
/// let kv = TensorView::bhsd(&kv, problem.kv_shape())?;
/// let inputs = Inputs::new(TensorView::bhsd(&q, problem.q_shape())?, kv, kv);
/// let outputs = Outputs::new(TensorViewMut::bhsd(&mut o, problem.q_shape())?);
/// let report = plan.run(&inputs, outputs, &mut workspace)?;
/// assert_eq!(report.heads[0].sampled_coverage, None);
/// # Ok::<(), sample_attention::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct HeadPlan {
    problem: Problem,
    policies: Vec<HeadPolicy>,
    /// One for each policy that any head has, for a problem of one head.
    parts: Vec<Part>,
    /// Part of each query head.
    part_of_head: Vec<usize>,
}

#[derive(Clone, Debug, PartialEq)]
struct Part {
    policy: HeadPolicy,
    plan: Plan,
    /// What a local head attends to.
    local: Option<Selection>,
}

impl Part {
    fn new(problem: Problem, policy: HeadPolicy) -> Result<Self> {
        let (plan, local) = match policy {
            HeadPolicy::Dense => (Plan::dense(problem)?, None),
            HeadPolicy::Selected(policy) => (Plan::new(problem, policy)?, None),
            HeadPolicy::Local { window, sinks } => {
                // Says what is wrong with the window and the problem.
                let policy = Policy::default().with_window(window);
                Plan::new(problem, policy)?;
                let selection = local(&problem, &policy, sinks)?;
                (Plan::dense(problem)?, Some(selection))
            }
        };
        Ok(Part {
            policy,
            plan,
            local,
        })
    }

    /// `selected` is told the head's selection, `None` where there is none because the head is dense.
    fn run(
        &self,
        inputs: &Inputs<'_>,
        outputs: Outputs<'_>,
        workspace: &mut [u8],
        selected: impl FnOnce(Option<&Selection>) -> Result<()>,
    ) -> Result<Report> {
        let Some(selection) = &self.local else {
            let mut stages = self.plan.stages(inputs, workspace)?;
            let report = stages.run(outputs)?;
            selected(stages.selection().as_ref())?;
            return Ok(report);
        };
        let started = Instant::now();
        self.plan.attend(inputs, selection, outputs, workspace)?;
        selected(Some(selection))?;
        let mut times = StageTimes::default();
        times.add(Stage::SparseFlash, started.elapsed());
        let mask = selection.head(0, 0);
        let head = HeadReport {
            path: HeadPath::Sparse,
            blocks_kept: mask.blocks_kept(),
            density: mask.density(),
            ..HeadReport::of_dense(0, 0)
        };
        Ok(Report {
            heads: vec![head],
            times,
            key_ranges: 0,
        })
    }
}

/// Puts one head's selection into that of all.
fn keep(
    all: &mut Selection,
    (batch, q_head): (usize, usize),
    of_head: Option<&Selection>,
) -> Result<()> {
    let Some(of_head) = of_head else {
        return all.set_dense(batch, q_head, true);
    };
    let mask = of_head.head(0, 0);
    for query_block in mask.query_blocks() {
        let blocks: Vec<usize> = mask.blocks(query_block).collect();
        all.set_blocks(batch, q_head, query_block, &blocks)?;
    }
    let own_sinks = all.sinks() as u32..of_head.sinks() as u32;
    let mut keys: Vec<u32> = own_sinks.chain(mask.stripes().iter().copied()).collect();
    keys.sort_unstable();
    keys.dedup();
    all.set_stripes(batch, q_head, &keys)?;
    all.set_dense(batch, q_head, mask.is_dense())
}

/// Window and sinks of one head.
fn local(problem: &Problem, policy: &Policy, sinks: usize) -> Result<Selection> {
    let mut selection = Selection::new(problem)?;
    selection.set_sinks(sinks);
    let window_blocks = (policy.window_tokens(problem.k_len) - 1).div_ceil(BLOCK) + 1;
    for query_block in 0..problem.k_len.div_ceil(BLOCK) {
        let first = (query_block + 1).saturating_sub(window_blocks);
        let window: Vec<usize> = (first..=query_block).collect();
        selection.set_blocks(0, 0, query_block, &window)?;
    }
    Ok(selection)
}

impl HeadPlan {
    /// A plan with `policies[h]` for query head `h` of every sequence.
    ///
    /// # Errors
    /// [`Error::HeadPolicies`], and those of [`Plan::new`] for any of the policies.
    pub fn new(problem: Problem, policies: &[HeadPolicy]) -> Result<Self> {
        problem.validate()?;
        if policies.len() != problem.q_heads {
            return Err(Error::HeadPolicies {
                given: policies.len(),
                q_heads: problem.q_heads,
            });
        }
        let one_head = problem.with_batch(1).with_heads(1, 1);
        let mut parts: Vec<Part> = Vec::new();
        let mut part_of_head = Vec::with_capacity(policies.len());
        for (q_head, &policy) in policies.iter().enumerate() {
            let policy = policy.at_head(q_head);
            let known = parts.iter().position(|part| part.policy == policy);
            let part = match known {
                Some(part) => part,
                None => {
                    parts.push(Part::new(one_head, policy)?);
                    parts.len() - 1
                }
            };
            part_of_head.push(part);
        }
        Ok(HeadPlan {
            problem,
            policies: policies.to_vec(),
            parts,
            part_of_head,
        })
    }

    /// As [`Plan::with_threads`].
    ///
    /// # Errors
    /// As there.
    pub fn with_threads(self, threads: usize) -> Result<Self> {
        self.with_plans(|plan| plan.with_threads(threads))
    }

    /// As [`Plan::with_instruction_set`].
    ///
    /// # Errors
    /// As there.
    pub fn with_instruction_set(self, instruction_set: InstructionSet) -> Result<Self> {
        self.with_plans(|plan| plan.with_instruction_set(instruction_set))
    }

    fn with_plans(mut self, change: impl Fn(Plan) -> Result<Plan>) -> Result<Self> {
        for part in &mut self.parts {
            part.plan = change(part.plan.clone())?;
        }
        Ok(self)
    }

    /// What is computed.
    pub fn problem(&self) -> &Problem {
        &self.problem
    }

    /// The policy of each query head.
    pub fn policies(&self) -> &[HeadPolicy] {
        &self.policies
    }

    /// Bytes that every run works in, beyond inputs and outputs.
    pub fn workspace_bytes(&self) -> usize {
        let bytes = self.parts.iter().map(|part| part.plan.workspace_bytes());
        bytes.max().unwrap_or(0)
    }

    /// Selects and attends, head by head.
    ///
    /// # Errors
    /// As [`Plan::run`]; nothing has been written then.
    pub fn run(
        &self,
        inputs: &Inputs<'_>,
        outputs: Outputs<'_>,
        workspace: &mut [u8],
    ) -> Result<Report> {
        self.run_told(inputs, outputs, workspace, |_, _| Ok(()))
    }

    /// As [`HeadPlan::run`], with what every head kept: heads that ran dense are dense in it.
    ///
    /// A [`Selection`] has the same sinks for all heads. Where these differ, it has those that all heads keep, and the others as stripes
    /// of their heads, which is the same mask.
    ///
    /// # Errors
    /// As [`HeadPlan::run`], and [`Error::SelectionTooLarge`].
    pub fn run_selecting(
        &self,
        inputs: &Inputs<'_>,
        outputs: Outputs<'_>,
        workspace: &mut [u8],
    ) -> Result<(Report, Selection)> {
        let mut selection = Selection::new(&self.problem)?;
        let sinks = self.policies.iter().filter_map(|policy| match policy {
            HeadPolicy::Dense => None,
            HeadPolicy::Local { sinks, .. } => Some(*sinks),
            HeadPolicy::Selected(policy) => Some(policy.sinks),
        });
        selection.set_sinks(sinks.min().unwrap_or(0));
        let report = self.run_told(inputs, outputs, workspace, |head, of_head| {
            keep(&mut selection, head, of_head)
        })?;
        Ok((report, selection))
    }

    /// `selected` is told each head's selection, with the sequence and the query head.
    fn run_told(
        &self,
        inputs: &Inputs<'_>,
        outputs: Outputs<'_>,
        workspace: &mut [u8],
        mut selected: impl FnMut((usize, usize), Option<&Selection>) -> Result<()>,
    ) -> Result<Report> {
        let problem = &self.problem;
        inputs.check(problem)?;
        outputs.check(problem)?;
        let (needed, given) = (self.workspace_bytes(), workspace.len());
        if given < needed {
            return Err(Error::WorkspaceTooSmall { needed, given });
        }
        let Outputs { mut o, mut lse } = outputs;
        let mut report = Report {
            heads: Vec::with_capacity(problem.heads()),
            times: StageTimes::default(),
            key_ranges: 0,
        };
        for head in 0..problem.heads() {
            let (batch, q_head) = (head / problem.q_heads, head % problem.q_heads);
            let kv_head = q_head / problem.group_size();
            let of_head = Inputs {
                q: inputs.q.of_head(batch, q_head),
                k: inputs.k.of_head(batch, kv_head),
                v: inputs.v.of_head(batch, kv_head),
                sink_logits: inputs.sink_logits.map(|all| &all[q_head..=q_head]),
            };
            let rows = head * problem.q_len..(head + 1) * problem.q_len;
            let outputs = Outputs {
                o: o.of_head(batch, q_head),
                lse: lse.as_deref_mut().map(|lse| &mut lse[rows]),
            };
            let part = &self.parts[self.part_of_head[q_head]];
            let of_head = part.run(&of_head, outputs, workspace, |found| {
                selected((batch, q_head), found)
            })?;
            for stage in Stage::ALL {
                report.times.add(stage, of_head.times.get(stage));
            }
            report.key_ranges = report.key_ranges.max(of_head.key_ranges);
            report
                .heads
                .extend(of_head.heads.into_iter().map(|found| HeadReport {
                    batch,
                    q_head,
                    ..found
                }));
        }
        Ok(report)
    }
}
