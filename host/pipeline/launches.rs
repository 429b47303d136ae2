//! The launches of a plan, with the kernels of a device.

use sample_attention_device::abi::{HeadKind, HeadPolicies, LseTensor, SparseMask, TileSlice};
use sample_attention_device::decode::{self, DecodeParams, Splits, WIDE_ROWS};
use sample_attention_device::gpu::{Global, TensorMap};
use sample_attention_device::reduction::keys::WholeHeads;
use sample_attention_device::reduction::statistics::Statistics;
use sample_attention_device::reduction::{blocks as to_blocks, keys as to_keys};
use sample_attention_device::sampling::{self, SamplingParams, heads};
use sample_attention_device::sparse_flash::hopper::schedule::{
    self, Groups, ScheduleParams, TileScheduler,
};
use sample_attention_device::sparse_flash::hopper::{self, HopperParams};
use sample_attention_device::sparse_flash::{SparseFlashParams, portable};
use sample_attention_device::tile::warpgroup::kv_map_layout;
use sample_attention_device::top_k::{Masses, SelectionOutput, blocks, dense, keys, rows};

use super::kernels::Call;
use super::plan::{Arguments, GpuPlan};
use super::selecting::Selecting;
use super::slices::{Shape, TileRange};
use super::{Device, Launch, Target};
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
            // The kernels are those of any target.
            Target::Sm90a if self.splits().is_some() => None,
            Target::Sm90a => {
                let q_batch = if self.is_ragged() { 1 } else { sizes.batch };
                let q_extents = [q_batch, sizes.q_heads, arguments.q_tokens];
                let q = hopper::map_layout(&arguments.q, sizes.head_dim, q_extents);
                let mut of_keys = |tensor| {
                    let extents = arguments.kv_extents;
                    device.tensor_map(&kv_map_layout(tensor, sizes.head_dim, extents))
                };
                Some(Hopper {
                    k_map: of_keys(&arguments.k)?,
                    v_map: of_keys(&arguments.v)?,
                    q_map: device.tensor_map(&q)?,
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
        let Some(selecting) = self.selection() else {
            return self.attend(machine, arguments, None, &mut issue);
        };
        let regions = self.workspace();
        let workspace = arguments.workspace;
        let (table, sampled_heads) = (
            regions.heads.at(workspace),
            regions.sampled_heads.at(workspace),
        );
        for params in selecting.heads.writes(table, sampled_heads) {
            issue(Launch {
                stage: Stage::Sampling,
                shape: heads::launch_shape(),
                call: Call::new(heads::WRITE_HEADS, params),
            })?;
        }
        let run = Run {
            plan: self,
            machine,
            arguments,
            selecting,
            heads: selecting.heads.at(table, sampled_heads),
        };
        for range in &selecting.slices {
            run.select_blocks(range, &mut issue)?;
            if !self.has_whole_lists() {
                self.attend(machine, arguments, Some(range), &mut issue)?;
            }
        }
        run.select_keys(&mut issue)?;
        if selecting.chooses_dense {
            issue(run.choose_dense())?;
        }
        if self.has_whole_lists() {
            self.attend(machine, arguments, None, &mut issue)?;
        }
        Ok(())
    }

    /// Attention: of the query tiles of a slice, or of all.
    fn attend<E>(
        &self,
        machine: &Machine,
        arguments: &Arguments,
        range: Option<&TileRange>,
        issue: &mut impl FnMut(Launch) -> Result<(), E>,
    ) -> Result<(), E> {
        let attention = self.attention(arguments, range);
        if let Some(splits) = self.splits() {
            return self.attend_in_splits(attention, splits, arguments.workspace, issue);
        }
        match &machine.hopper {
            Some(hopper) => {
                let schedule = self.schedule(&attention, arguments.workspace);
                issue(Self::schedule_launch(attention, schedule))?;
                issue(self.hopper_launch(hopper, attention, schedule))
            }
            None => issue(Launch {
                stage: Stage::SparseFlash,
                shape: portable::launch_shape(&attention),
                call: Call::new(self.kernels().sparse_flash, attention),
            }),
        }
    }

    /// The lists of a slice's query tiles, or of all.
    fn mask(&self, workspace: Global<u8>, range: Option<&TileRange>) -> SparseMask {
        let regions = self.workspace();
        let sequences = self.sequences();
        let key_indices = regions.stripes.at(workspace);
        let (first_tile, tiles) = range.map_or((0, sequences.query_tiles()), |range| {
            (range.first_tile, range.tiles)
        });
        SparseMask {
            kv_num_blocks: regions.list_counts.at(workspace),
            kv_indices: regions.lists.at(workspace),
            num_keys: regions.stripe_counts.at(workspace),
            key_indices,
            dense: regions.dense.at(workspace),
            block_capacity: match (range, self.selection()) {
                (Some(range), _) => range.block_capacity,
                (None, Some(selecting)) => selecting.list_capacity.unwrap_or(0),
                (None, None) => sequences.max_key_blocks(),
            },
            key_capacity: sequences.max_k,
            keys_per_tile: 0,
            sinks: self.sinks(),
            first_tile,
            tiles,
        }
    }

    /// What the attention kernels of every target take.
    fn attention(&self, arguments: &Arguments, range: Option<&TileRange>) -> SparseFlashParams {
        let Arguments {
            q, k, v, o, lse, ..
        } = *arguments;
        let workspace = arguments.workspace;
        let sizes = self.sizes();
        let sequences = self.sequences_of(&arguments.lengths);
        let lse_tokens = u64::from(arguments.q_tokens);
        SparseFlashParams {
            sequences,
            q_heads: sizes.q_heads,
            kv_heads: sizes.kv_heads,
            head_dim: sizes.head_dim,
            scale_log2: self.scale_log2(),
            output_f32: u32::from(arguments.o_dtype == Dtype::F32),
            q,
            k,
            v,
            o,
            lse: LseTensor {
                address: lse,
                stride_batch: if self.is_ragged() {
                    0
                } else {
                    u64::from(sizes.q_heads) * lse_tokens
                },
                stride_head: lse_tokens,
            },
            mask: self.mask(workspace, range),
        }
    }

    fn schedule(&self, attention: &SparseFlashParams, workspace: Global<u8>) -> TileScheduler {
        TileScheduler {
            taken: self.workspace().taken.at(workspace),
            order: self.workspace().order.at(workspace),
            groups: Groups::new(attention),
        }
    }

    fn schedule_launch(attention: SparseFlashParams, schedule: TileScheduler) -> Launch {
        let params = ScheduleParams {
            attention,
            schedule,
        };
        Launch {
            stage: Stage::SparseFlash,
            shape: schedule::launch_shape(&attention, &schedule),
            call: Call::new(schedule::SCHEDULE, params),
        }
    }

    fn hopper_launch(
        &self,
        machine: &Hopper,
        attention: SparseFlashParams,
        schedule: TileScheduler,
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
            rescale_threshold_log2: self.rescale().rescale_threshold_log2(),
        };
        Launch {
            stage: Stage::SparseFlash,
            shape: hopper::launch_shape(&attention, multiprocessors),
            call: Call::new(self.kernels().hopper_sparse_flash, params),
        }
    }

    /// Attention over splits of the keys, then their merge where there is more than one.
    fn attend_in_splits<E>(
        &self,
        attention: SparseFlashParams,
        splits: Splits,
        workspace: Global<u8>,
        issue: &mut impl FnMut(Launch) -> Result<(), E>,
    ) -> Result<(), E> {
        let params = DecodeParams {
            attention,
            splits,
            partial_o: self.workspace().partial_o.at(workspace),
            partial_sums: self.workspace().partial_sums.at(workspace),
        };
        let kernels = self.kernels();
        let kernel = if splits.tile_rows(&attention) == WIDE_ROWS {
            kernels.decode_wide
        } else {
            kernels.decode_narrow
        };
        issue(Launch {
            stage: Stage::SparseFlash,
            shape: decode::launch_shape(&params),
            call: Call::new(kernel, params),
        })?;
        if splits.count > 1 {
            issue(Launch {
                stage: Stage::SparseFlash,
                shape: decode::combine_shape(&params),
                call: Call::new(kernels.decode_combine, params),
            })?;
        }
        Ok(())
    }
}

/// The selection of one run.
struct Run<'a> {
    plan: &'a GpuPlan,
    machine: &'a Machine,
    arguments: &'a Arguments,
    selecting: &'a Selecting,
    heads: HeadPolicies,
}

impl Run<'_> {
    /// What its launches have in common, at the addresses of the run.
    fn shape(&self) -> Shape<'_> {
        Shape {
            sequences: self.plan.sequences_of(&self.arguments.lengths),
            ..self.plan.shape(self.selecting)
        }
    }

    /// The selection of key blocks in a slice.
    fn select_blocks<E>(
        &self,
        range: &TileRange,
        issue: &mut impl FnMut(Launch) -> Result<(), E>,
    ) -> Result<(), E> {
        let slice = self.shape().of_blocks(self.heads, range);
        let workspace = self.arguments.workspace;
        let regions = self.plan.workspace();
        if slice.slots > 0 {
            issue(self.sampling(slice, false))?;
        }
        let statistics = Statistics {
            scale_log2: self.plan.scale_log2(),
            stats: regions.stats.at(workspace),
            bases: regions.bases.at(workspace),
            sink_stats: regions.sink_stats.at(workspace),
        };
        let row_lse = regions.row_lse.at(workspace);
        let listed = (!self.plan.has_whole_lists()).then_some(range);
        let output = self.output(listed);
        if self.selecting.selects_by_tile() {
            let params = rows::SelectRowsParams {
                slice,
                statistics,
                row_lse,
                finite_rows: regions.finite_rows.at(workspace),
                output,
            };
            issue(Launch {
                stage: Stage::TopK,
                shape: rows::launch_shape(&slice),
                call: Call::new(rows::SELECT_ROWS, params),
            })?;
        }
        if self.selecting.heads.any(|kind| kind == HeadKind::Blocks) {
            let reduction = to_blocks::ReductionBlocksParams {
                slice,
                statistics,
                row_lse,
                mass: regions.mass.at(workspace),
                covered: regions.covered.at(workspace),
            };
            issue(Launch {
                stage: Stage::Reduction,
                shape: to_blocks::launch_shape(&slice),
                call: Call::new(to_blocks::REDUCTION_BLOCKS, reduction),
            })?;
            let top_k = blocks::TopKBlocksParams {
                slice,
                masses: self.masses(),
                output,
            };
            issue(Launch {
                stage: Stage::TopK,
                shape: blocks::launch_shape(&slice),
                call: Call::new(blocks::TOP_K_BLOCKS, top_k),
            })?;
        }
        Ok(())
    }

    /// The selection of single keys: each sampling serves all passes over its heads.
    fn select_keys<E>(&self, issue: &mut impl FnMut(Launch) -> Result<(), E>) -> Result<(), E> {
        let mut sampled = None;
        for pass in &self.selecting.passes {
            let units = self.shape().of_keys(self.heads, pass);
            if sampled.replace(pass.first_slot) != Some(pass.first_slot) {
                issue(self.sampling(units.slice, true))?;
            }
            for launch in self.select_keys_of(units) {
                issue(launch)?;
            }
        }
        Ok(())
    }

    fn select_keys_of(&self, units: WholeHeads) -> [Launch; 2] {
        let Arguments {
            q, k, workspace, ..
        } = *self.arguments;
        let regions = self.plan.workspace();
        let kind = |slot| {
            let head = self.selecting.heads.head_of(slot) as usize;
            self.selecting.heads.policies()[head].kind
        };
        // The mass outside counts apart where some head of the pass ranks keys by their whole mass.
        let slots = units.slice.first_slot..units.slice.first_slot + units.slice.slots;
        let is_paper = slots.clone().any(|slot| kind(slot) == HeadKind::Paper);
        let masses = Masses {
            outside: if is_paper {
                regions.outside.at(workspace)
            } else {
                Global::NULL
            },
            ..self.masses()
        };
        let reduction = to_keys::ReductionKeysParams {
            units,
            scale_log2: self.plan.scale_log2(),
            q,
            k,
            row_lse: regions.row_lse.at(workspace),
            mass: masses.mass,
            outside: masses.outside,
            covered: masses.covered,
        };
        let top_k = keys::TopKKeysParams {
            units,
            masses,
            output: self.output(None),
        };
        [
            Launch {
                stage: Stage::Reduction,
                shape: to_keys::launch_shape(&units, self.plan.sizes().head_dim),
                call: Call::new(self.plan.kernels().reduction_keys, reduction),
            },
            Launch {
                stage: Stage::TopK,
                shape: keys::launch_shape(&units),
                call: Call::new(keys::TOP_K_KEYS, top_k),
            },
        ]
    }

    /// Sampling for a selection of single keys, or of key blocks.
    fn sampling(&self, slice: TileSlice, for_keys: bool) -> Launch {
        let Arguments {
            q, k, workspace, ..
        } = *self.arguments;
        let regions = self.plan.workspace();
        let or_null = |is_there: bool, address: Global<f32>| {
            if is_there { address } else { Global::NULL }
        };
        let params = SamplingParams {
            slice,
            scale_log2: self.plan.scale_log2(),
            q,
            k,
            row_lse: or_null(for_keys, regions.row_lse.at(workspace)),
            stats: or_null(!for_keys, regions.stats.at(workspace)),
            bases: or_null(!for_keys, regions.bases.at(workspace)),
            sink_stats: or_null(!for_keys, regions.sink_stats.at(workspace)),
        };
        let head_dim = self.plan.sizes().head_dim;
        match &self.machine.hopper {
            Some(hopper) => Launch {
                stage: Stage::Sampling,
                shape: sampling::hopper::launch_shape(&slice, head_dim),
                call: Call::new(
                    self.plan.kernels().hopper_sampling,
                    sampling::hopper::HopperParams {
                        k_map: hopper.k_map,
                        sampling: params,
                    },
                ),
            },
            None => Launch {
                stage: Stage::Sampling,
                shape: sampling::launch_shape(&slice, head_dim),
                call: Call::new(self.plan.kernels().sampling, params),
            },
        }
    }

    fn masses(&self) -> Masses {
        let regions = self.plan.workspace();
        let workspace = self.arguments.workspace;
        Masses {
            mass: regions.mass.at(workspace),
            outside: Global::NULL,
            covered: regions.covered.at(workspace),
        }
    }

    fn output(&self, listed: Option<&TileRange>) -> SelectionOutput {
        let regions = self.plan.workspace();
        let workspace = self.arguments.workspace;
        SelectionOutput {
            mask: self.plan.mask(workspace, listed),
            kept: regions.kept.at(workspace),
            listed: regions.listed.at(workspace),
            all_tiles: self.plan.sequences().query_tiles(),
        }
    }

    fn choose_dense(&self) -> Launch {
        let sequences = self.shape().sequences;
        let params = dense::ChooseDenseParams {
            sequences,
            heads: self.heads,
            q_heads: self.plan.sizes().q_heads,
            mask: self.plan.mask(self.arguments.workspace, None),
        };
        Launch {
            stage: Stage::TopK,
            shape: dense::launch_shape(&sequences, params.q_heads),
            call: Call::new(dense::CHOOSE_DENSE, params),
        }
    }
}
