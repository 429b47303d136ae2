//! A problem and a policy, validated once.

use crate::break_even::BreakEven;
use crate::cpu::{self, InstructionSet, Stages, Units};
use crate::error::{Error, Result};
use crate::policy::{BREAK_EVEN_TOKENS, Fallback, Policy};
use crate::problem::Problem;
use crate::progress::Progress;
use crate::report::{Coverage, HeadPath, Report};
use crate::selection::{Selection, SelectionShape};
use crate::tensor::{Inputs, Outputs};

/// How attention will be computed: made once for a problem and a policy, then run on any number of inputs.
///
/// # Running several at a time
/// A run waits for the tasks that it hands to the rayon pool, and a thread of the pool that waits takes other work meanwhile: the
/// next item of a `par_iter` around the run, for one. So hold no lock across a run inside a pool. One workspace for each thread of
/// the pool, each behind a `Mutex`, stands still as soon as a thread that waits in a run takes an item that asks for the workspace
/// it holds itself. Give each item a workspace of its own (`par_iter().for_each_init(|| vec![0; bytes], …)` makes one for each
/// piece of work that rayon splits off), or take workspaces from a pool and put them back after the run, the lock held only while
/// one is taken; or run on one thread ([`Plan::with_threads`]`(1)`), which hands nothing to the pool and waits for nobody.
///
/// # Memory
/// A plan holds no memory to work in: the caller brings [`Plan::workspace_bytes`] bytes to every call, in any alignment and
/// with any contents.
///
/// ```
/// use sample_attention::{Dtype, Inputs, Outputs, Plan, Policy, Problem, TensorView, TensorViewMut};
/// let problem = Problem::causal(300, 64, Dtype::F32).with_heads(4, 2);
/// let plan = Plan::new(problem, Policy::default())?;
/// let q = vec![0.1f32; 4 * 300 * 64];
/// let kv = vec![0.2f32; 2 * 300 * 64];
/// let mut o = vec![0f32; q.len()];
/// let mut workspace = vec![0; plan.workspace_bytes()];
/// let report = plan.run(
///     &Inputs::new(
///         TensorView::bhsd(&q, problem.q_shape())?,
///         TensorView::bhsd(&kv, problem.kv_shape())?,
///         TensorView::bhsd(&kv, problem.kv_shape())?,
///     ),
///     Outputs::new(TensorViewMut::bhsd(&mut o, problem.q_shape())?),
///     &mut workspace,
/// )?;
/// assert_eq!(report.heads.len(), 4);
/// # Ok::<(), sample_attention::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    problem: Problem,
    policy: Option<Policy>,
    path: Path,
    threads: usize,
    instruction_set: InstructionSet,
    units: Option<Units>,
    workspace_bytes: usize,
}

/// The most tasks that a plan runs at a time: more than a machine has hardware threads.
pub const MAX_THREADS: usize = 1024;

/// What a plan's runs do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Path {
    Dense,
    BelowBreakEven,
    Select,
}

impl Path {
    /// What reports call it, for heads that do not fall back.
    pub(crate) fn of_heads(self) -> HeadPath {
        match self {
            Path::Dense => HeadPath::Dense,
            Path::BelowBreakEven => HeadPath::BelowBreakEven,
            Path::Select => HeadPath::Sparse,
        }
    }
}

/// What a plan's runs do, for a backend with this break-even.
///
/// # Errors
/// Any field of the problem or the policy out of range, and [`Error::SparseNeedsCausal`].
pub(crate) fn path(problem: &Problem, policy: &Policy, break_even: BreakEven) -> Result<Path> {
    problem.validate()?;
    policy.validate()?;
    if !problem.causal {
        return Err(Error::SparseNeedsCausal);
    }
    Ok(match policy.fallback {
        Fallback::Auto if !break_even.selects(problem, policy) => Path::BelowBreakEven,
        Fallback::Auto | Fallback::Never => Path::Select,
    })
}

impl Plan {
    /// A plan that selects what to attend to by `policy`, on as many threads as the current rayon pool has.
    ///
    /// # Errors
    /// Any field of the problem or the policy out of range, [`Error::SparseNeedsCausal`], and
    /// [`Error::SelectionTooLarge`] or [`Error::WorkspaceTooLarge`] for sizes that no machine has the memory for.
    pub fn new(problem: Problem, policy: Policy) -> Result<Self> {
        let break_even = BreakEven {
            tokens: BREAK_EVEN_TOKENS,
            counts_queries: true,
        };
        let path = path(&problem, &policy, break_even)?;
        Plan::on_threads(problem, Some(policy), path, rayon::current_num_threads())
    }

    /// A plan that selects by `policy` where that is defined and pays, and attends to everything elsewhere: in problems that
    /// are not causal and, with [`Fallback::Auto`], in those that are too short.
    ///
    /// # Errors
    /// As [`Plan::new`], but for [`Error::SparseNeedsCausal`].
    pub fn auto(problem: Problem, policy: Policy) -> Result<Self> {
        if problem.causal {
            return Plan::new(problem, policy);
        }
        policy.validate()?;
        Plan::dense(problem)
    }

    /// A plan that attends to everything, or to a [`Selection`] that the caller brings to [`Plan::attend`].
    ///
    /// More than 16 queries are worked on in blocks, and have the same bits in any chunk of a prompt that they are part of. Up to 16, as
    /// in decoding, share the keys out over the threads; they have the same bits in any other call of up to 16 queries.
    ///
    /// # Errors
    /// Any field of the problem out of range, and [`Error::WorkspaceTooLarge`].
    pub fn dense(problem: Problem) -> Result<Self> {
        problem.validate()?;
        Plan::on_threads(problem, None, Path::Dense, rayon::current_num_threads())
    }

    /// The same plan on `threads` tasks of the rayon pool at a time, at most [`MAX_THREADS`]: the workspace grows with it. The
    /// result's bits do not depend on it.
    ///
    /// # Errors
    /// [`Error::NoThreads`] and [`Error::WorkspaceTooLarge`].
    pub fn with_threads(self, threads: usize) -> Result<Self> {
        let instruction_set = self.instruction_set;
        let plan = Plan::on_threads(self.problem, self.policy, self.path, threads)?;
        Ok(Plan {
            instruction_set,
            ..plan
        })
    }

    /// The same plan on another instruction set than the machine's widest: for the same bits on different machines.
    ///
    /// # Errors
    /// [`Error::NoSuchInstructionSet`].
    pub fn with_instruction_set(self, instruction_set: InstructionSet) -> Result<Self> {
        if !instruction_set.is_available() {
            return Err(Error::NoSuchInstructionSet {
                instruction_set: instruction_set.name(),
            });
        }
        Ok(Plan {
            instruction_set,
            ..self
        })
    }

    fn on_threads(
        problem: Problem,
        policy: Option<Policy>,
        path: Path,
        threads: usize,
    ) -> Result<Self> {
        if threads == 0 {
            return Err(Error::NoThreads);
        }
        let threads = threads.min(MAX_THREADS);
        let units = match policy {
            Some(policy) if path == Path::Select => {
                SelectionShape::checked(&problem)?;
                Some(Units::new(&problem, &policy, threads))
            }
            _ => None,
        };
        let workspace_bytes = cpu::workspace_bytes(&problem, units.as_ref(), threads).ok_or(
            Error::WorkspaceTooLarge {
                heads: problem.heads(),
                k_len: problem.k_len,
                threads,
            },
        )?;
        Ok(Plan {
            problem,
            policy,
            path,
            threads,
            instruction_set: InstructionSet::widest(),
            units,
            workspace_bytes,
        })
    }

    /// What is computed.
    pub fn problem(&self) -> &Problem {
        &self.problem
    }

    /// How the selection is made; `None` for a dense plan.
    pub fn policy(&self) -> Option<&Policy> {
        self.policy.as_ref()
    }

    /// Bytes that every run works in, beyond inputs and outputs. It grows with the number of threads, and never shrinks when there
    /// are more keys or more queries: with the same policy, a buffer for the longest context serves the shorter ones too.
    pub fn workspace_bytes(&self) -> usize {
        self.workspace_bytes
    }

    /// Selects and attends.
    ///
    /// # Errors
    /// Tensors that do not fit the problem, and [`Error::WorkspaceTooSmall`]; nothing has been written then.
    pub fn run(
        &self,
        inputs: &Inputs<'_>,
        outputs: Outputs<'_>,
        workspace: &mut [u8],
    ) -> Result<Report> {
        self.stages(inputs, workspace)?.run(outputs)
    }

    /// A run to be driven stage by stage.
    ///
    /// # Errors
    /// As [`Plan::run`].
    pub fn stages<'a>(
        &'a self,
        inputs: &Inputs<'a>,
        workspace: &'a mut [u8],
    ) -> Result<Stages<'a>> {
        Stages::new(self, inputs, workspace, &())
    }

    /// As [`Plan::stages`], watched.
    ///
    /// # Errors
    /// As [`Plan::run`].
    pub fn stages_watched<'a>(
        &'a self,
        inputs: &Inputs<'a>,
        workspace: &'a mut [u8],
        progress: &'a dyn Progress,
    ) -> Result<Stages<'a>> {
        Stages::new(self, inputs, workspace, progress)
    }

    /// Attends to a selection that the caller made.
    ///
    /// # Errors
    /// As [`Plan::run`], and [`Error::SelectionShape`].
    pub fn attend(
        &self,
        inputs: &Inputs<'_>,
        selection: &Selection,
        outputs: Outputs<'_>,
        workspace: &mut [u8],
    ) -> Result<()> {
        selection.check(&self.problem)?;
        cpu::attend(self, inputs, selection, outputs, workspace)
    }

    /// How much of each row's dense attention mass a run kept: `lse` is the run's output, and 2^(lse - dense lse) the share.
    /// Computes the dense log-sum-exp of every row, which costs about half of dense attention.
    ///
    /// # Errors
    /// As [`Plan::run`].
    pub fn true_coverage(
        &self,
        inputs: &Inputs<'_>,
        lse: &[f32],
        workspace: &mut [u8],
    ) -> Result<Vec<Coverage>> {
        cpu::true_coverage(self, inputs, lse, workspace)
    }

    pub(crate) fn units(&self) -> Option<&Units> {
        self.units.as_ref()
    }

    /// Tasks at a time, and what each is compiled for.
    pub(crate) fn workers(&self) -> (usize, InstructionSet) {
        (self.threads, self.instruction_set)
    }

    /// How the report calls the path of heads that do not fall back.
    pub(crate) fn head_path(&self) -> HeadPath {
        self.path.of_heads()
    }

    pub(crate) fn fallback(&self) -> Option<Fallback> {
        self.policy.map(|policy| policy.fallback)
    }

    /// Share of the sampled mass to reach; everything for a dense plan.
    pub(crate) fn coverage(&self) -> f32 {
        self.policy.map_or(1.0, |policy| policy.coverage)
    }
}
