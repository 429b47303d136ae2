//! A problem and a policy, validated once, for the CPU: its threads, its instruction set and its workspace.

use super::break_even;
use super::planned::Planned;
use super::simd::InstructionSet;
use super::stages::Stages;
use crate::error::Result;
use crate::plan::{Path, path};
use crate::policy::Policy;
use crate::problem::Problem;
use crate::progress::Progress;
use crate::report::{Coverage, HeadPath, Report};
use crate::selection::Selection;
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
pub struct Plan(Planned);

impl Plan {
    /// A plan that selects what to attend to by `policy`, on as many threads as the current rayon pool has.
    ///
    /// # Errors
    /// Any field of the problem or the policy out of range, [`Error::SparseNeedsCausal`](crate::Error::SparseNeedsCausal), and
    /// [`Error::SelectionTooLarge`](crate::Error::SelectionTooLarge) or [`Error::WorkspaceTooLarge`](crate::Error::WorkspaceTooLarge) for sizes that no machine has the memory for.
    pub fn new(problem: Problem, policy: Policy) -> Result<Self> {
        let path = path(&problem, &policy, break_even::selects)?;
        Planned::new(problem, Some(policy), path, rayon::current_num_threads()).map(Plan)
    }

    /// A plan that selects by `policy` where that is defined and pays, and attends to everything elsewhere: in problems that
    /// are not causal and, with [`Fallback::Auto`](crate::Fallback::Auto), in those that are too short.
    ///
    /// # Errors
    /// As [`Plan::new`], but for [`Error::SparseNeedsCausal`](crate::Error::SparseNeedsCausal).
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
    /// Any field of the problem out of range, and [`Error::WorkspaceTooLarge`](crate::Error::WorkspaceTooLarge).
    pub fn dense(problem: Problem) -> Result<Self> {
        problem.validate()?;
        Planned::new(problem, None, Path::Dense, rayon::current_num_threads()).map(Plan)
    }

    /// The same plan on `threads` tasks of the rayon pool at a time, at most [`MAX_THREADS`](crate::MAX_THREADS): the workspace grows with it. The
    /// result's bits do not depend on it.
    ///
    /// # Errors
    /// [`Error::NoThreads`](crate::Error::NoThreads) and [`Error::WorkspaceTooLarge`](crate::Error::WorkspaceTooLarge).
    pub fn with_threads(self, threads: usize) -> Result<Self> {
        self.0.with_threads(threads).map(Plan)
    }

    /// The same plan on another instruction set than the machine's widest: for the same bits on different machines.
    ///
    /// # Errors
    /// [`Error::NoSuchInstructionSet`](crate::Error::NoSuchInstructionSet).
    pub fn with_instruction_set(self, instruction_set: InstructionSet) -> Result<Self> {
        self.0.with_instruction_set(instruction_set).map(Plan)
    }

    /// What is computed.
    pub fn problem(&self) -> &Problem {
        &self.0.problem
    }

    /// How the selection is made; `None` for a dense plan.
    pub fn policy(&self) -> Option<&Policy> {
        self.0.policy.as_ref()
    }

    /// What runs do: [`HeadPath::Sparse`] where they select, else why they do not.
    pub fn path(&self) -> HeadPath {
        self.0.head_path()
    }

    /// Bytes that every run works in, beyond inputs and outputs. It grows with the number of threads, and never shrinks when there
    /// are more keys or more queries: with the same policy, a buffer for the longest context serves the shorter ones too.
    pub fn workspace_bytes(&self) -> usize {
        self.0.workspace_bytes
    }

    /// Selects and attends.
    ///
    /// # Errors
    /// Tensors that do not fit the problem, and [`Error::WorkspaceTooSmall`](crate::Error::WorkspaceTooSmall); nothing has been written then.
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
        Stages::new(&self.0, inputs, workspace, &())
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
        Stages::new(&self.0, inputs, workspace, progress)
    }

    /// Attends to a selection that the caller made.
    ///
    /// # Errors
    /// As [`Plan::run`], and [`Error::SelectionShape`](crate::Error::SelectionShape).
    pub fn attend(
        &self,
        inputs: &Inputs<'_>,
        selection: &Selection,
        outputs: Outputs<'_>,
        workspace: &mut [u8],
    ) -> Result<()> {
        selection.check(self.problem())?;
        super::attend(&self.0, inputs, selection, outputs, workspace)
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
        super::true_coverage(&self.0, inputs, lse, workspace)
    }
}
