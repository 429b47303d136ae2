//! A problem and a policy as launches.

use sample_attention_device::geometry::{Candidates, Units};
use sample_attention_device::gpu::Global;
use sample_attention_device::params::{ProblemSizes, TensorArg};
use sample_attention_device::reduction::{blocks as to_blocks, keys as to_keys};
use sample_attention_device::sampling::{self, SamplingParams};
use sample_attention_device::sparse_flash::{SparseFlashParams, portable};
use sample_attention_device::top_k::{self, BlockLists, Masses, blocks, dense, keys};

use super::kernels::{Call, Kernels};
use super::workspace::{Contents, Workspace};
use super::{Device, Launch};
use crate::error::{Error, Result};
use crate::plan::{Path, Plan};
use crate::policy::{Budget, Fallback, Policy};
use crate::problem::{Dtype, Problem};
use crate::report::Stage;

/// Keys of a sequence, at most: the attention kernel has a bit of shared memory for each key block, 64 KiB of them here.
pub const MAX_KEYS: usize = 1 << 26;

/// Sequences times query heads, at most: they are dimensions of a grid.
pub const MAX_HEADS: usize = 65_535;

/// Bytes of the buffers that hold one wave of the selection: a sixteenth of the memory of a small data-centre GPU, and at
/// 128K keys still a wave of 120 segments, enough blocks of threads for any GPU.
pub const WAVE_BYTES: u64 = 512 << 20;

/// How attention will be computed by the GPU kernels: the same plan as [`Plan`], as launches.
///
/// ```
/// use sample_attention::pipeline::GpuPlan;
/// use sample_attention::{Dtype, Policy, Problem};
/// let problem = Problem { q_heads: 32, kv_heads: 8, ..Problem::causal(32_768, 128, Dtype::Bf16) };
/// let plan = GpuPlan::new(problem, Policy::default())?;
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
    workspace: Workspace,
}

/// What decides which keys are attended to.
#[derive(Clone, Copy, Debug)]
enum Work {
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
        let plan = Plan::new(problem, policy)?;
        let sizes = sizes(&problem)?;
        if plan.path() != Path::Select {
            return GpuPlan::with_work(plan, Work::Dense);
        }
        let candidates = match policy.budget {
            Budget::Blocks => Candidates::Blocks,
            Budget::Residual | Budget::Paper => Candidates::Keys,
        };
        // A stride beyond all positions samples the last row alone, whatever it is.
        let row_stride = policy.row_stride.min(problem.k_len + 1) as u32;
        let sinks = policy.sinks.min(problem.k_len) as u32;
        let window = policy.window_tokens(problem.k_len) as u32;
        let units = Units::new(sizes, candidates, row_stride, sinks, window);
        let work = Work::Select {
            units,
            wave: units_in(WAVE_BYTES, &units, policy.budget),
            policy,
        };
        GpuPlan::with_work(plan, work)
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

    /// What is computed.
    pub fn problem(&self) -> &Problem {
        self.plan.problem()
    }

    /// What the CPU backend would do.
    pub(crate) fn plan(&self) -> &Plan {
        &self.plan
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

    /// Issues all launches of a run.
    ///
    /// # Errors
    /// The device's; what it was given before is still to run.
    pub fn run<D: Device>(&self, device: &mut D, arguments: &Arguments) -> Result<(), D::Error> {
        self.launches(arguments)
            .iter()
            .try_for_each(|launch| device.launch(launch))
    }

    /// All launches of a run, in order.
    pub fn launches(&self, arguments: &Arguments) -> Vec<Launch> {
        let mut launches = Vec::new();
        if let Work::Select {
            units,
            wave,
            policy,
        } = &self.work
        {
            let mut first = 0;
            while first < units.count {
                let units = units.slice(first, (*wave).min(units.count - first));
                launches.extend(self.select(units, policy, arguments));
                first += units.count;
            }
            if policy.fallback == Fallback::Auto {
                launches.push(self.choose_dense(*units, arguments));
            }
        }
        launches.push(self.sparse_flash(arguments));
        launches
    }

    /// Sampling, reduction and top-k of some units.
    fn select(&self, units: Units, policy: &Policy, arguments: &Arguments) -> [Launch; 3] {
        let Arguments {
            q, k, workspace, ..
        } = *arguments;
        let regions = &self.workspace;
        let scale_log2 = self.scale_log2();
        let (row_lse, mass) = (regions.row_lse.at(workspace), regions.mass.at(workspace));
        let (stats, sink_stats) = (
            regions.stats.at(workspace),
            regions.sink_stats.at(workspace),
        );
        let covered = regions.covered.at(workspace);
        let masses = Masses {
            mass,
            outside: regions.outside.at(workspace),
            covered,
            kept: regions.kept.at(workspace),
            coverage: policy.coverage,
        };
        let lists = self.lists(workspace);
        let stripe_counts = regions.stripe_counts.at(workspace);

        let params = SamplingParams {
            units,
            scale_log2,
            q,
            k,
            row_lse,
            stats,
            sink_stats,
        };
        let sampling = Launch {
            stage: Stage::Sampling,
            shape: sampling::launch_shape(&units),
            call: Call::Sampling(self.kernels.sampling, params),
        };
        let (reduction_shape, reduction, top_k) = match policy.budget {
            Budget::Blocks => {
                let reduction = to_blocks::ReductionBlocksParams {
                    units,
                    row_lse,
                    stats,
                    sink_stats,
                    mass,
                    covered,
                };
                let top_k = blocks::TopKBlocksParams {
                    units,
                    masses,
                    lists,
                    stripe_counts,
                };
                (
                    to_blocks::launch_shape(&units),
                    Call::ReductionBlocks(to_blocks::REDUCTION_BLOCKS, reduction),
                    Call::TopKBlocks(blocks::TOP_K_BLOCKS, top_k),
                )
            }
            Budget::Residual | Budget::Paper => {
                let reduction = to_keys::ReductionKeysParams {
                    units,
                    scale_log2,
                    q,
                    k,
                    row_lse,
                    mass,
                    outside: masses.outside,
                    covered,
                };
                let top_k = keys::TopKKeysParams {
                    units,
                    masses,
                    lists,
                    stripes: regions.stripes.at(workspace),
                    stripe_counts,
                };
                (
                    to_keys::launch_shape(&units),
                    Call::ReductionKeys(self.kernels.reduction_keys, reduction),
                    Call::TopKKeys(keys::TOP_K_KEYS, top_k),
                )
            }
        };
        let reduction = Launch {
            stage: Stage::Reduction,
            shape: reduction_shape,
            call: reduction,
        };
        let top_k = Launch {
            stage: Stage::TopK,
            shape: top_k::launch_shape(&units),
            call: top_k,
        };
        [sampling, reduction, top_k]
    }

    fn choose_dense(&self, units: Units, arguments: &Arguments) -> Launch {
        let workspace = arguments.workspace;
        let params = dense::ChooseDenseParams {
            units,
            lists: self.lists(workspace),
            stripes: self.workspace.stripes.at(workspace),
            stripe_counts: self.workspace.stripe_counts.at(workspace),
            dense: self.workspace.dense.at(workspace),
        };
        Launch {
            stage: Stage::TopK,
            shape: dense::launch_shape(&units),
            call: Call::ChooseDense(dense::CHOOSE_DENSE, params),
        }
    }

    fn sparse_flash(&self, arguments: &Arguments) -> Launch {
        let Arguments {
            q, k, v, o, lse, ..
        } = *arguments;
        let workspace = arguments.workspace;
        let regions = &self.workspace;
        let stripes = regions.stripes.at(workspace);
        let params = SparseFlashParams {
            sizes: self.sizes,
            scale_log2: self.scale_log2(),
            sinks: match &self.work {
                Work::Dense => 0,
                Work::Given { sinks } => *sinks,
                Work::Select { units, .. } => units.sinks,
            },
            output_f32: u32::from(arguments.o_dtype == Dtype::F32),
            q,
            k,
            v,
            o,
            lse,
            lists: regions.lists.at(workspace),
            list_count: regions.list_counts.at(workspace),
            list_capacity: self.sizes.key_blocks(),
            stripe_capacity: self.sizes.k_len,
            stripes,
            stripe_count: if stripes.is_null() {
                Global::NULL
            } else {
                regions.stripe_counts.at(workspace)
            },
            dense: regions.dense.at(workspace),
        };
        Launch {
            stage: Stage::SparseFlash,
            shape: portable::launch_shape(&params),
            call: Call::SparseFlash(self.kernels.sparse_flash, params),
        }
    }

    fn lists(&self, workspace: Global<u8>) -> BlockLists {
        BlockLists {
            key_blocks: self.workspace.lists.at(workspace),
            counts: self.workspace.list_counts.at(workspace),
        }
    }

    fn scale_log2(&self) -> f32 {
        self.problem().softmax_scale * std::f32::consts::LOG2_E
    }
}

/// Units whose buffers fit into `bytes`; at least one, at most all.
fn units_in(bytes: u64, units: &Units, budget: Budget) -> u32 {
    let fitting = bytes / Workspace::unit_bytes(units, budget);
    fitting.clamp(1, u64::from(units.count)) as u32
}

/// The sizes of a valid problem, if the kernels take them.
fn sizes(problem: &Problem) -> Result<ProblemSizes> {
    let heads = problem.batch * problem.q_heads;
    if heads > MAX_HEADS {
        return Err(Error::KernelHeads {
            heads,
            max: MAX_HEADS,
        });
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
