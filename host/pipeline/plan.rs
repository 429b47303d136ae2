//! A problem and a policy as launches.

use sample_attention_device::abi::{self, HeadKind, KvTensor, Sequences};
use sample_attention_device::decode::Splits;
use sample_attention_device::gpu::Global;
use sample_attention_device::params::{ProblemSizes, TensorArg};

use super::few_queries;
use super::heads::Heads;
use super::kernels::Kernels;
use super::limits::{selects, sizes};
use super::selecting::{Limits, Selecting};
use super::slices::Shape;
use super::workspace::Workspace;
use crate::error::{Error, Result};
use crate::geometry::BLOCK;
use crate::head_policy::HeadPolicy;
use crate::plan::{Path, path};
use crate::policy::{Fallback, Policy};
use crate::problem::{Dtype, Problem};
use crate::report::HeadPath;
use crate::selection::SelectionShape;
use crate::varlen::VarlenBounds;

/// How attention will be computed by the GPU kernels, as launches. It needs no GPU and starts no thread.
///
/// ```
/// use sample_attention::pipeline::GpuPlan;
/// use sample_attention::{Dtype, Policy, Problem};
/// let problem = Problem::causal(32_768, 128, Dtype::Bf16).with_heads(32, 8);
/// let plan = GpuPlan::new(problem, Policy::default())?;
/// println!("{} MiB of workspace, {} waves", plan.workspace().bytes >> 20, plan.waves());
/// # assert!(plan.workspace_bytes() < 96 << 20);
/// # Ok::<(), sample_attention::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct GpuPlan {
    problem: Problem,
    path: Path,
    sizes: ProblemSizes,
    kernels: Kernels,
    work: Work,
    fallback: Fallback,
    limits: Limits,
    /// A bound of all queries, where lengths are device data.
    ragged_total_q: Option<u32>,
    rescale: Rescale,
    /// Of the keys, where a dense plan has few queries.
    splits: Option<Splits>,
    workspace: Workspace,
}

/// When the online softmax of the Hopper kernels multiplies what it has added up by the growth of a row's maximum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Rescale {
    /// Whenever a maximum grows, as the textbook says. The largest error of O is about that of a 16-bit reference.
    #[default]
    Always,
    /// When a maximum has grown by more than 8 in the log2 domain: some 2 % faster. Weights then reach 2^8, and where one key has nearly
    /// all the weight, that weight is rounded to 16 bits like any other instead of being exactly 1. The largest error of O is then up to
    /// 2.2 times a 16-bit reference's.
    Threshold,
}

impl Rescale {
    /// By how much, in the log2 domain, a maximum may grow before what was added up is rescaled.
    pub(super) fn rescale_threshold_log2(self) -> f32 {
        match self {
            Rescale::Always => 0.0,
            Rescale::Threshold => 8.0,
        }
    }
}

/// What decides which keys are attended to.
#[derive(Clone, Debug)]
pub(super) enum Work {
    Dense,
    /// The caller's lists, in the workspace.
    Given {
        sinks: u32,
    },
    /// The heads' policies.
    Select(Selecting),
}

/// Where a run's tensors and lengths lie on the device: shapes and element types are the problem's.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Arguments {
    /// Queries [batch, q_heads, q_len, head_dim]; of a packed batch [1, q_heads, total_q, head_dim].
    pub q: TensorArg,
    /// Keys [batch, kv_heads, k_len, head_dim]; of a packed batch [1, kv_heads, total_k, head_dim], or in pages.
    pub k: KvTensor,
    /// Values, as the keys.
    pub v: KvTensor,
    /// Batch, heads and tokens of the keys' and values' tensors: pages, heads and tokens of a page where they are paged.
    pub kv_extents: [u32; 3],
    /// Tokens of the queries' tensor, of one sequence or packed.
    pub q_tokens: u32,
    /// Output, as the queries.
    pub o: TensorArg,
    /// Element type of the output: the inputs', or f32.
    pub o_dtype: Dtype,
    /// Natural log-sum-exp [batch, q_heads, q_len]; of a packed batch [q_heads, total_q].
    pub lse: Global<f32>,
    /// The lengths of a plan of [`GpuPlan::for_bounds`]; null for one of equal lengths.
    pub lengths: Lengths,
    /// [`Workspace::bytes`] bytes at a multiple of 256, with any contents.
    pub workspace: Global<u8>,
}

/// The lengths of the sequences of a packed batch, on the device.
#[derive(Clone, Copy, Debug)]
pub struct Lengths {
    /// \[sequences + 1\]: cumulative queries.
    pub cu_q: Global<u32>,
    /// \[sequences + 1\]: cumulative keys, or with `k_lens_each` one length a sequence.
    pub cu_k: Global<u32>,
    /// Whether the latter.
    pub k_lens_each: bool,
}

impl Lengths {
    /// Of equal lengths, which the plan knows.
    pub const EQUAL: Self = Lengths {
        cu_q: Global::NULL,
        cu_k: Global::NULL,
        k_lens_each: false,
    };
}

impl GpuPlan {
    /// A plan that selects what to attend to by `policy`.
    ///
    /// # Errors
    /// Any field of the problem or the policy out of range, [`Error::SparseNeedsCausal`], and [`Error::KernelDtype`],
    /// [`Error::KernelHeadDim`], [`Error::KernelHeads`] and [`Error::TooLong`] where the kernels do not go as far as the CPU backend.
    pub fn new(problem: Problem, policy: Policy) -> Result<Self> {
        let path = path(&problem, &policy, selects)?;
        if path != Path::Select {
            return GpuPlan::with_work(problem, (path, policy.fallback), |_| Work::Dense);
        }
        // Before anything that is as large as the problem.
        sizes(&problem)?;
        SelectionShape::checked(&problem)?;
        let heads = Heads::alike(&policy, problem.q_heads, problem.k_len);
        GpuPlan::selecting(problem, heads, policy.sinks, policy.fallback)
    }

    /// A plan that treats each query head by a policy of its own, as [`HeadPlan`](crate::HeadPlan). Heads that are dense or local are not
    /// sampled, and take no part of the selection's time or memory.
    ///
    /// # Errors
    /// As [`GpuPlan::new`], [`Error::HeadPolicies`] where there is not one for each head, and [`Error::HeadSinks`] where they differ in
    /// their sinks.
    pub fn per_head(problem: Problem, heads: &[HeadPolicy]) -> Result<Self> {
        problem.validate()?;
        sizes(&problem)?;
        if heads.len() != problem.q_heads {
            return Err(Error::HeadPolicies {
                given: heads.len(),
                q_heads: problem.q_heads,
            });
        }
        let (of_heads, sinks) = Heads::each(heads, problem.k_len)?;
        if of_heads.any(|kind| kind != HeadKind::Dense) && !problem.causal {
            return Err(Error::SparseNeedsCausal);
        }
        if !of_heads.any(|kind| kind != HeadKind::Dense) {
            return GpuPlan::dense(problem);
        }
        SelectionShape::checked(&problem)?;
        let is_auto = |head: &HeadPolicy| match head {
            HeadPolicy::Selected(policy) => policy.fallback == Fallback::Auto,
            HeadPolicy::Dense | HeadPolicy::Local { .. } => true,
        };
        let fallback = if heads.iter().all(is_auto) {
            Fallback::Auto
        } else {
            Fallback::Never
        };
        GpuPlan::selecting(problem, of_heads, sinks, fallback)
    }

    fn selecting(problem: Problem, heads: Heads, sinks: usize, fallback: Fallback) -> Result<Self> {
        let sinks = sinks.min(problem.k_len) as u32;
        GpuPlan::with_work(problem, (Path::Select, fallback), |sizes| {
            let batch = (sizes.sequences(), sizes);
            Work::Select(Selecting::new(
                batch,
                heads,
                sinks,
                fallback,
                Limits::DEFAULT,
            ))
        })
    }

    /// A plan for a packed batch of sequences whose lengths are device data, within these bounds: with a policy, or dense without one.
    /// Windows that are a ratio are that of `max_seqlen_k`.
    ///
    /// # Errors
    /// As [`GpuPlan::new`].
    pub fn for_bounds(bounds: VarlenBounds, policy: Option<Policy>) -> Result<Self> {
        let problem = bounds.padded();
        problem.validate()?;
        let total_q = bounds.total_q;
        if total_q > problem.batch * problem.q_len || u32::try_from(total_q).is_err() {
            return Err(Error::TooLong {
                name: "total_q",
                len: total_q,
                max: (problem.batch * problem.q_len).min(u32::MAX as usize),
            });
        }
        let mut plan = match policy {
            Some(policy) => GpuPlan::new(problem, policy)?,
            None => GpuPlan::dense(problem)?,
        };
        plan.ragged_total_q = Some(total_q as u32);
        // Splits of the bounds would give a sequence other bits than it has in another batch.
        plan.splits = None;
        if let Work::Select(Selecting { heads, sinks, .. }) = &plan.work {
            let batch = (plan.sequences(), &plan.sizes);
            plan.work = Work::Select(Selecting::new(
                batch,
                heads.clone(),
                *sinks,
                plan.fallback,
                Limits::DEFAULT,
            ));
        }
        plan.workspace = plan.lay_out();
        Ok(plan)
    }

    /// A plan that selects by `policy` where that is defined and pays, as [`Plan::auto`](crate::Plan::auto).
    ///
    /// # Errors
    /// As [`GpuPlan::new`], but for [`Error::SparseNeedsCausal`].
    pub fn auto(problem: Problem, policy: Policy) -> Result<Self> {
        if problem.causal {
            return GpuPlan::new(problem, policy);
        }
        policy.validate()?;
        GpuPlan::dense(problem)
    }

    /// A plan that attends to everything. With few queries, at most 64 of all the query heads that read a key/value head, keys are split
    /// over the multiprocessors. How depends on the sizes of the problem, the batch among them, and so do the bits of the result; not on
    /// the GPU.
    ///
    /// # Errors
    /// As [`GpuPlan::new`].
    pub fn dense(problem: Problem) -> Result<Self> {
        problem.validate()?;
        GpuPlan::with_work(problem, (Path::Dense, Fallback::Never), |_| Work::Dense)
    }

    /// A plan that attends to [`Lists`](super::Lists) which the caller puts into the workspace, and to the first `sinks` keys.
    ///
    /// # Errors
    /// As [`GpuPlan::new`].
    pub fn given(problem: Problem, sinks: usize) -> Result<Self> {
        problem.validate()?;
        let sinks = sinks.min(problem.k_len) as u32;
        GpuPlan::with_work(problem, (Path::Dense, Fallback::Never), |_| Work::Given {
            sinks,
        })
    }

    fn with_work(
        problem: Problem,
        (path, fallback): (Path, Fallback),
        work: impl FnOnce(&ProblemSizes) -> Work,
    ) -> Result<Self> {
        let kernels = Kernels::of(&problem)?;
        let sizes = sizes(&problem)?;
        let work = work(&sizes);
        let mut plan = GpuPlan {
            problem,
            path,
            sizes,
            kernels,
            work,
            fallback,
            limits: Limits::DEFAULT,
            ragged_total_q: None,
            rescale: Rescale::default(),
            splits: None,
            workspace: Workspace::dense(),
        };
        if matches!(plan.work, Work::Dense) {
            plan.splits = few_queries::splits(&plan.sizes);
        }
        plan.workspace = plan.lay_out();
        Ok(plan)
    }

    fn lay_out(&self) -> Workspace {
        let sequences = self.sequences();
        match &self.work {
            Work::Dense => match &self.splits {
                Some(splits) => {
                    Workspace::few_queries(few_queries::partial_lens(&self.sizes, splits))
                }
                None => Workspace::dense(),
            },
            Work::Given { .. } => Workspace::given(
                self.sizes.q_heads,
                sequences.query_tiles(),
                sequences.count,
                sequences.max_k,
            ),
            Work::Select(selecting) => Workspace::selecting(&self.shape(selecting), selecting),
        }
    }

    /// The same plan with at most `bytes` bytes of buffers for one wave, or the least that a wave can be if that is more. The result does
    /// not depend on it.
    pub fn with_wave_bytes(self, bytes: u64) -> Self {
        let limits = self.limits;
        self.with_limits(Limits {
            wave_bytes: bytes,
            ..limits
        })
    }

    /// The same plan with the lists of all query tiles in the workspace at once, however large they are: what [`GpuPlan::outcome`] needs to
    /// tell what was selected. Without it that is so up to 136 MiB.
    pub fn with_whole_lists(self) -> Self {
        let limits = self.limits;
        self.with_limits(Limits {
            whole_lists: true,
            ..limits
        })
    }

    fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        let batch = (self.sequences(), &self.sizes);
        if let Work::Select(Selecting { heads, sinks, .. }) = &self.work {
            let selecting = Selecting::new(batch, heads.clone(), *sinks, self.fallback, limits);
            self.work = Work::Select(selecting);
            self.workspace = self.lay_out();
        }
        self
    }

    /// The same plan with another rule for the online softmax. Portable kernels, and those of few queries, rescale always.
    pub fn with_rescale(self, rescale: Rescale) -> Self {
        GpuPlan { rescale, ..self }
    }

    /// What is computed.
    pub fn problem(&self) -> &Problem {
        &self.problem
    }

    /// What runs do: [`HeadPath::Sparse`] where they select, else why they do not.
    pub fn head_path(&self) -> HeadPath {
        self.path.of_heads()
    }

    /// What runs of the plan do.
    pub(super) fn path(&self) -> Path {
        self.path
    }

    /// The batch, as far as the plan knows it: where lengths are device data, at no address that is one.
    pub(super) fn sequences(&self) -> Sequences {
        let sequences = self.sizes.sequences();
        match self.ragged_total_q {
            None => sequences,
            Some(total_q) => Sequences {
                total_q,
                cu_q: Global::from_address(4),
                cu_k: Global::from_address(4),
                ..sequences
            },
        }
    }

    /// The batch of a run.
    pub(super) fn sequences_of(&self, lengths: &Lengths) -> Sequences {
        let sequences = self.sequences();
        if !sequences.is_ragged() {
            return sequences;
        }
        Sequences {
            cu_q: lengths.cu_q,
            cu_k: lengths.cu_k,
            k_lens_each: u32::from(lengths.k_lens_each),
            ..sequences
        }
    }

    /// Queries of all sequences, at most, where lengths are device data.
    pub(super) fn total_q(&self) -> Option<usize> {
        self.ragged_total_q.map(|total_q| total_q as usize)
    }

    /// Whether lengths are device data, which the host does not see.
    pub fn is_ragged(&self) -> bool {
        self.ragged_total_q.is_some()
    }

    /// What the launches of a selection have in common.
    pub(super) fn shape<'a>(&self, selecting: &'a Selecting) -> Shape<'a> {
        Shape {
            sequences: self.sequences(),
            heads: &selecting.heads,
            q_heads: self.sizes.q_heads,
            kv_heads: self.sizes.kv_heads,
            sinks: selecting.sinks,
        }
    }

    pub(super) fn kernels(&self) -> &Kernels {
        &self.kernels
    }

    /// How keys are split, where a dense plan has few queries.
    pub(super) fn splits(&self) -> Option<Splits> {
        self.splits
    }

    pub(super) fn rescale(&self) -> Rescale {
        self.rescale
    }

    pub(crate) fn sizes(&self) -> &ProblemSizes {
        &self.sizes
    }

    /// Sinks of the caller's lists; `None` where the plan takes none.
    pub(crate) fn given_sinks(&self) -> Option<usize> {
        match &self.work {
            Work::Given { sinks } => Some(*sinks as usize),
            Work::Dense | Work::Select(_) => None,
        }
    }

    /// The selection, where there is one.
    pub(super) fn selection(&self) -> Option<&Selecting> {
        match &self.work {
            Work::Select(selecting) => Some(selecting),
            Work::Dense | Work::Given { .. } => None,
        }
    }

    /// First keys that every query keeps.
    pub fn sinks(&self) -> u32 {
        match &self.work {
            Work::Dense => 0,
            Work::Given { sinks } => *sinks,
            Work::Select(selecting) => selecting.sinks,
        }
    }

    /// Sampled rows of each query head, of one sequence; `None` where nothing is selected, and where lengths are device data.
    pub fn sampled_rows(&self) -> Option<Vec<u64>> {
        if self.is_ragged() {
            return None;
        }
        let sequence = self.sequences().get(0);
        let of_head = |policy: abi::HeadPolicy| {
            if !policy.kind.is_sampled() {
                return 0;
            }
            let blocks = sequence.first_query_block()..sequence.end_query_block();
            let rows = blocks.map(|block| {
                let policy = policy.in_segment_of(block);
                let from = block * BLOCK as u32;
                u64::from(
                    policy
                        .sampled_rows(&sequence, from, from + BLOCK as u32)
                        .len(),
                )
            });
            rows.sum()
        };
        let heads = &self.selection()?.heads;
        let count = heads.policies().len() as u32;
        Some(
            (0..count)
                .map(|q_head| of_head(heads.policy(q_head)))
                .collect(),
        )
    }

    /// What lies where in the workspace.
    pub fn workspace(&self) -> &Workspace {
        &self.workspace
    }

    /// Bytes that every run works in, beyond inputs and outputs.
    pub fn workspace_bytes(&self) -> u64 {
        self.workspace.bytes
    }

    /// Waves of the selection, slices of query tiles and passes over heads; 0 where nothing is selected.
    pub fn waves(&self) -> u32 {
        self.selection().map_or(0, |selecting| {
            (selecting.slices.len() + selecting.passes.len()) as u32
        })
    }

    /// Whether the lists of all query tiles are in the workspace at once.
    pub(super) fn has_whole_lists(&self) -> bool {
        self.selection()
            .is_none_or(|selecting| selecting.list_capacity.is_some())
    }

    pub(super) fn scale_log2(&self) -> f32 {
        self.problem().softmax_scale * std::f32::consts::LOG2_E
    }
}
