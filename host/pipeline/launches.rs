//! The launches of a plan, with the kernels of a device.

use sample_attention_device::abi::{KvTensor, LseTensor, SparseMask};
use sample_attention_device::geometry::Units;
use sample_attention_device::gpu::{Global, TensorMap};
use sample_attention_device::reduction::{blocks as to_blocks, keys as to_keys};
use sample_attention_device::sampling::{self, SamplingParams};
use sample_attention_device::sparse_flash::hopper::schedule::{
    self, Groups, Schedule, ScheduleParams,
};
use sample_attention_device::sparse_flash::hopper::{self, HopperParams};
use sample_attention_device::sparse_flash::{SparseFlashParams, portable};
use sample_attention_device::top_k::{self, BlockLists, Masses, blocks, dense, keys};

use super::kernels::Call;
use super::plan::{Arguments, GpuPlan, Work};
use super::{Device, Launch, Target};
use crate::policy::{Budget, Fallback, Policy};
use crate::problem::Dtype;
use crate::report::Stage;

/// What a device adds to a plan.
struct Machine {
    /// On Hopper.
    hopper: Option<Hopper>,
}

struct Hopper {
    multiprocessors: u32,
    q_map: TensorMap,
    k_map: TensorMap,
    v_map: TensorMap,
}

impl GpuPlan {
    /// Issues all launches of a run.
    ///
    /// # Errors
    /// The device's; what it was given before is still to run.
    pub fn run<D: Device>(&self, device: &mut D, arguments: &Arguments) -> Result<(), D::Error> {
        let machine = self.machine(device, arguments)?;
        self.each_launch(&machine, arguments, |launch| device.launch(&launch))
    }

    /// All launches of a run, in order: what [`GpuPlan::run`] would issue.
    ///
    /// # Errors
    /// The device's, where it encodes tensor maps.
    pub fn launches<D: Device>(
        &self,
        device: &mut D,
        arguments: &Arguments,
    ) -> Result<Vec<Launch>, D::Error> {
        let machine = self.machine(device, arguments)?;
        let mut launches = Vec::new();
        self.each_launch(&machine, arguments, |launch| {
            launches.push(launch);
            Ok(())
        })?;
        Ok(launches)
    }

    fn machine<D: Device>(
        &self,
        device: &mut D,
        arguments: &Arguments,
    ) -> Result<Machine, D::Error> {
        let sizes = self.sizes();
        let hopper = match device.target() {
            Target::Sm80 => None,
            Target::Sm90a => {
                let mut map = |tensor, heads, tokens| {
                    let extents = [sizes.batch, heads, tokens];
                    device.tensor_map(&hopper::map_layout(tensor, sizes.head_dim, extents))
                };
                Some(Hopper {
                    q_map: map(&arguments.q, sizes.q_heads, sizes.q_len)?,
                    k_map: map(&arguments.k, sizes.kv_heads, sizes.k_len)?,
                    v_map: map(&arguments.v, sizes.kv_heads, sizes.k_len)?,
                    multiprocessors: device.multiprocessors(),
                })
            }
        };
        Ok(Machine { hopper })
    }

    fn each_launch<E>(
        &self,
        machine: &Machine,
        arguments: &Arguments,
        mut issue: impl FnMut(Launch) -> Result<(), E>,
    ) -> Result<(), E> {
        if let Work::Select {
            units,
            wave,
            policy,
        } = self.work()
        {
            let mut first = 0;
            while first < units.count {
                let units = units.slice(first, (*wave).min(units.count - first));
                for launch in self.select(machine, units, policy, arguments) {
                    issue(launch)?;
                }
                first += units.count;
            }
            if policy.fallback == Fallback::Auto {
                issue(self.choose_dense(*units, arguments))?;
            }
        }
        let attention = self.attention(arguments);
        match &machine.hopper {
            Some(hopper) => {
                let schedule = self.schedule(&attention, arguments.workspace);
                issue(Self::schedule_launch(attention, schedule))?;
                issue(self.hopper_launch(hopper, attention, schedule))
            }
            None => issue(Launch {
                stage: Stage::SparseFlash,
                shape: portable::launch_shape(&attention),
                call: Call::SparseFlash(self.kernels().sparse_flash, attention),
            }),
        }
    }

    /// Sampling, reduction and top-k of some units.
    fn select(
        &self,
        machine: &Machine,
        units: Units,
        policy: &Policy,
        arguments: &Arguments,
    ) -> [Launch; 3] {
        let Arguments {
            q, k, workspace, ..
        } = *arguments;
        let regions = self.workspace();
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
        let sampling = match &machine.hopper {
            Some(hopper) => Launch {
                stage: Stage::Sampling,
                shape: sampling::hopper::launch_shape(&units),
                call: Call::SamplingHopper(
                    self.kernels().hopper_sampling,
                    sampling::hopper::HopperParams {
                        k_map: hopper.k_map,
                        sampling: params,
                    },
                ),
            },
            None => Launch {
                stage: Stage::Sampling,
                shape: sampling::launch_shape(&units),
                call: Call::Sampling(self.kernels().sampling, params),
            },
        };
        let (reduction_shape, reduction, top_k) = match policy.budget {
            Budget::Rows | Budget::Blocks => {
                let reduction = to_blocks::ReductionBlocksParams {
                    units,
                    scale_log2,
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
                    Call::ReductionKeys(self.kernels().reduction_keys, reduction),
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
            stripes: self.workspace().stripes.at(workspace),
            stripe_counts: self.workspace().stripe_counts.at(workspace),
            dense: self.workspace().dense.at(workspace),
        };
        Launch {
            stage: Stage::TopK,
            shape: dense::launch_shape(&units),
            call: Call::ChooseDense(dense::CHOOSE_DENSE, params),
        }
    }

    /// What the attention kernels of every target take.
    fn attention(&self, arguments: &Arguments) -> SparseFlashParams {
        let Arguments {
            q, k, v, o, lse, ..
        } = *arguments;
        let workspace = arguments.workspace;
        let regions = self.workspace();
        let sizes = self.sizes();
        let sequences = sizes.sequences();
        let key_indices = regions.stripes.at(workspace);
        SparseFlashParams {
            sequences,
            q_heads: sizes.q_heads,
            kv_heads: sizes.kv_heads,
            head_dim: sizes.head_dim,
            scale_log2: self.scale_log2(),
            output_f32: u32::from(arguments.o_dtype == Dtype::F32),
            q,
            k: KvTensor::strided(k),
            v: KvTensor::strided(v),
            o,
            lse: LseTensor {
                address: lse,
                stride_batch: u64::from(sizes.q_heads) * u64::from(sizes.q_len),
                stride_head: u64::from(sizes.q_len),
            },
            mask: SparseMask {
                kv_num_blocks: regions.list_counts.at(workspace),
                kv_indices: regions.lists.at(workspace),
                num_keys: if key_indices.is_null() {
                    Global::NULL
                } else {
                    regions.stripe_counts.at(workspace)
                },
                key_indices,
                dense: regions.dense.at(workspace),
                block_capacity: sizes.key_blocks(),
                key_capacity: sizes.k_len,
                keys_per_tile: 0,
                sinks: match self.work() {
                    Work::Dense => 0,
                    Work::Given { sinks } => *sinks,
                    Work::Select { units, .. } => units.sinks,
                },
                first_tile: 0,
                tiles: sequences.query_tiles(),
            },
        }
    }

    fn schedule(&self, attention: &SparseFlashParams, workspace: Global<u8>) -> Schedule {
        Schedule {
            taken: self.workspace().taken.at(workspace),
            order: self.workspace().order.at(workspace),
            groups: Groups::new(attention),
        }
    }

    fn schedule_launch(attention: SparseFlashParams, schedule: Schedule) -> Launch {
        let params = ScheduleParams {
            attention,
            schedule,
        };
        Launch {
            stage: Stage::SparseFlash,
            shape: schedule::launch_shape(&attention, &schedule),
            call: Call::SparseFlashSchedule(schedule::SCHEDULE, params),
        }
    }

    fn hopper_launch(
        &self,
        machine: &Hopper,
        attention: SparseFlashParams,
        schedule: Schedule,
    ) -> Launch {
        let Hopper {
            multiprocessors,
            q_map,
            k_map,
            v_map,
        } = *machine;
        let params = HopperParams {
            q_map,
            k_map,
            v_map,
            attention,
            schedule,
            slack_log2: self.rescale().slack_log2(),
        };
        Launch {
            stage: Stage::SparseFlash,
            shape: hopper::launch_shape(&attention, multiprocessors),
            call: Call::SparseFlashHopper(self.kernels().hopper_sparse_flash, params),
        }
    }

    fn lists(&self, workspace: Global<u8>) -> BlockLists {
        BlockLists {
            key_blocks: self.workspace().lists.at(workspace),
            counts: self.workspace().list_counts.at(workspace),
        }
    }
}
