//! A problem and a policy as launches.

use sample_attention_device::geometry::{Candidates, Units};
use sample_attention_device::gpu::Global;
use sample_attention_device::params::{ProblemSizes, TensorArg};

use super::kernels::Kernels;
use super::workspace::{Contents, Workspace};
use crate::break_even::BreakEven;
use crate::error::{Error, Result};
use crate::geometry::BLOCK;
use crate::plan::{Path, Plan};
use crate::policy::{Budget, Fallback, Policy};
use crate::problem::{Dtype, Problem};

/// Keys of a sequence, at most: the attention kernels have a bit of shared memory for each key block, 16 KiB of them here, which is
/// what Hopper's has left beside its tiles.
pub const MAX_KEYS: usize = 1 << 24;

/// Sequences times query heads, at most: they are dimensions of a grid. Fewer where sequences are so long that their blocks, over all
/// heads, would be more than 2^31.
pub const MAX_HEADS: usize = 65_535;

/// Keys below which a GPU attends to everything, unless [`Fallback::Never`] says otherwise: the least length that was measured at which
/// an input that can be made sparse is faster so (H200, 32 query heads: 1.3 times). [`BREAK_EVEN_TOKENS`](crate::BREAK_EVEN_TOKENS) is the
/// CPU's.
pub const GPU_BREAK_EVEN_TOKENS: usize = 4096;

/// Bytes of the buffers that hold one wave of the selection: what Q alone takes at 128K tokens and 32 heads, where a wave is then some
/// 170 segments, enough blocks of threads for any GPU.
pub const WAVE_BYTES: u64 = 1 << 30;

/// How attention will be computed by the GPU kernels: the same plan as [`Plan`], as launches.
///
/// ```
/// use sample_attention::pipeline::GpuPlan;
/// use sample_attention::{Budget, Dtype, Policy, Problem};
/// let problem = Problem::causal(32_768, 128, Dtype::Bf16).with_heads(32, 8);
/// let plan = GpuPlan::new(problem, Policy::of(Budget::Blocks))?;
/// println!("{} MiB of workspace, {} waves", plan.workspace().bytes >> 20, plan.waves());
/// # assert_eq!(plan.waves(), 1);
/// # Ok::<(), sample_attention::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct GpuPlan {
    plan: Plan,
    sizes: ProblemSizes,
    kernels: Kernels,
    work: Work,
    rescale: Rescale,
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
    Rarely,
}

impl Rescale {
    /// By how much, in the log2 domain, a maximum may grow before what was added up is rescaled.
    pub(super) fn slack_log2(self) -> f32 {
        match self {
            Rescale::Always => 0.0,
            Rescale::Rarely => 8.0,
        }
    }
}

/// What decides which keys are attended to.
#[derive(Clone, Copy, Debug)]
pub(super) enum Work {
    Dense,
    /// The caller's lists, in the workspace.
    Given {
        sinks: u32,
    },
    /// The policy, `wave` units at a time.
    Select {
        units: Units,
        wave: u32,
        policy: Policy,
    },
}

/// Where a run's tensors lie on the device: shapes and element types are the problem's.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Arguments {
    /// Queries [batch, q_heads, q_len, head_dim].
    pub q: TensorArg,
    /// Keys [batch, kv_heads, k_len, head_dim].
    pub k: TensorArg,
    /// Values [batch, kv_heads, k_len, head_dim].
    pub v: TensorArg,
    /// Output [batch, q_heads, q_len, head_dim].
    pub o: TensorArg,
    /// Element type of the output: the inputs', or f32.
    pub o_dtype: Dtype,
    /// Natural log-sum-exp [batch, q_heads, q_len].
    pub lse: Global<f32>,
    /// [`Workspace::bytes`] bytes at a multiple of 256, with any contents.
    pub workspace: Global<u8>,
}

impl GpuPlan {
    /// A plan that selects what to attend to by `policy`.
    ///
    /// # Errors
    /// Those of [`Plan::new`], and [`Error::KernelDtype`], [`Error::KernelHeadDim`], [`Error::KernelHeads`] and
    /// [`Error::TooLong`] where the kernels do not go as far as the CPU backend.
    pub fn new(problem: Problem, policy: Policy) -> Result<Self> {
        let break_even = BreakEven {
            tokens: GPU_BREAK_EVEN_TOKENS,
            counts_queries: false,
        };
        let plan = Plan::selecting(problem, policy, break_even)?;
        let sizes = sizes(&problem)?;
        if plan.path() != Path::Select {
            return GpuPlan::with_work(plan, Work::Dense);
        }
        let candidates = match policy.budget {
            Budget::Rows => return Err(Error::KernelBudget),
            Budget::Blocks => Candidates::Blocks,
            Budget::Residual | Budget::Paper => Candidates::Keys,
        };
        // A stride beyond all positions samples the last row alone, whatever it is.
        let row_stride = policy.row_stride.min(problem.k_len + 1) as u32;
        let sinks = policy.sinks.min(problem.k_len) as u32;
        let window = policy.window_tokens(problem.k_len) as u32;
        // No position is beyond the largest u32.
        let doubles_from = u32::try_from(policy.stride_doubles_from).unwrap_or(u32::MAX);
        let units = Units::new(sizes, candidates, row_stride, sinks, window)
            .with_stride_doubles_from(doubles_from);
        let work = Work::Select {
            units,
            wave: units_in(WAVE_BYTES, &units, policy.budget),
            policy,
        };
        GpuPlan::with_work(plan, work)
    }

    /// A plan that selects by `policy` where that is defined and pays, as [`Plan::auto`].
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

    /// A plan that attends to everything.
    ///
    /// # Errors
    /// As [`GpuPlan::new`].
    pub fn dense(problem: Problem) -> Result<Self> {
        GpuPlan::with_work(Plan::dense(problem)?, Work::Dense)
    }

    /// A plan that attends to [`Lists`](super::Lists) which the caller puts into the workspace, and to the first `sinks` keys.
    ///
    /// # Errors
    /// As [`GpuPlan::new`].
    pub fn given(problem: Problem, sinks: usize) -> Result<Self> {
        let sinks = sinks.min(problem.k_len) as u32;
        GpuPlan::with_work(Plan::dense(problem)?, Work::Given { sinks })
    }

    fn with_work(plan: Plan, work: Work) -> Result<Self> {
        let sizes = sizes(plan.problem())?;
        let contents = match &work {
            Work::Dense => Contents::Nothing,
            Work::Given { .. } => Contents::Lists,
            Work::Select {
                units,
                wave,
                policy,
            } => Contents::Selection {
                wave: &units.slice(0, *wave),
                budget: policy.budget,
                chooses_dense: policy.fallback == Fallback::Auto,
            },
        };
        Ok(GpuPlan {
            kernels: Kernels::of(plan.problem())?,
            workspace: Workspace::new(&sizes, contents),
            plan,
            sizes,
            work,
            rescale: Rescale::default(),
        })
    }

    /// The same plan with at most `bytes` bytes of buffers for one wave, or one unit's if that is more. The result does not
    /// depend on it.
    pub fn with_wave_bytes(mut self, bytes: u64) -> Self {
        if let Work::Select {
            units,
            wave,
            policy,
        } = &mut self.work
        {
            *wave = units_in(bytes, units, policy.budget);
            let contents = Contents::Selection {
                wave: &units.slice(0, *wave),
                budget: policy.budget,
                chooses_dense: policy.fallback == Fallback::Auto,
            };
            self.workspace = Workspace::new(&self.sizes, contents);
        }
        self
    }

    /// The same plan with another rule for the online softmax. Portable kernels rescale always.
    pub fn with_rescale(self, rescale: Rescale) -> Self {
        GpuPlan { rescale, ..self }
    }

    /// What is computed.
    pub fn problem(&self) -> &Problem {
        self.plan.problem()
    }

    /// What the CPU backend would do.
    pub(crate) fn plan(&self) -> &Plan {
        &self.plan
    }

    pub(super) fn work(&self) -> &Work {
        &self.work
    }

    pub(super) fn kernels(&self) -> &Kernels {
        &self.kernels
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
            Work::Dense | Work::Select { .. } => None,
        }
    }

    /// How the selection is cut up; `None` where nothing is selected.
    pub fn units(&self) -> Option<&Units> {
        match &self.work {
            Work::Select { units, .. } => Some(units),
            Work::Dense | Work::Given { .. } => None,
        }
    }

    /// What lies where in the workspace.
    pub fn workspace(&self) -> &Workspace {
        &self.workspace
    }

    /// Bytes that every run works in, beyond inputs and outputs.
    pub fn workspace_bytes(&self) -> u64 {
        self.workspace.bytes
    }

    /// Waves of the selection; 0 where nothing is selected.
    pub fn waves(&self) -> u32 {
        match &self.work {
            Work::Select { units, wave, .. } => units.count.div_ceil(*wave),
            Work::Dense | Work::Given { .. } => 0,
        }
    }

    pub(super) fn scale_log2(&self) -> f32 {
        self.problem().softmax_scale * std::f32::consts::LOG2_E
    }
}

/// Units of a wave whose buffers fit into `bytes`; at least one, at most all. Waves are about equal: a few units take as long as the
/// longest of them.
fn units_in(bytes: u64, units: &Units, budget: Budget) -> u32 {
    let fitting = bytes / Workspace::unit_bytes(units, budget);
    let fitting = fitting.clamp(1, u64::from(units.count)) as u32;
    units.count.div_ceil(units.count.div_ceil(fitting))
}

/// The sizes of a valid problem, if the kernels take them.
pub(super) fn sizes(problem: &Problem) -> Result<ProblemSizes> {
    let heads = problem.heads();
    // Query blocks of all heads are one dimension of a grid, and so are their key blocks.
    let blocks = problem.q_len.div_ceil(BLOCK) + problem.k_len.div_ceil(BLOCK) + 1;
    let max = MAX_HEADS.min(i32::MAX as usize / blocks);
    if heads > max {
        return Err(Error::KernelHeads { heads, max });
    }
    if problem.k_len > MAX_KEYS {
        return Err(Error::TooLong {
            name: "k_len",
            len: problem.k_len,
            max: MAX_KEYS,
        });
    }
    Ok(ProblemSizes {
        batch: problem.batch as u32,
        q_heads: problem.q_heads as u32,
        kv_heads: problem.kv_heads as u32,
        q_len: problem.q_len as u32,
        k_len: problem.k_len as u32,
        head_dim: problem.head_dim as u32,
        causal: u32::from(problem.causal),
    })
}
