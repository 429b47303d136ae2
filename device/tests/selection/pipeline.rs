//! The selection kernels in order, on the emulator.

use sample_attention_device::geometry::{Candidates, Units};
use sample_attention_device::gpu::emu::{Buffer, Gpu, Kernel, Launch, Mode, tensor_map};
use sample_attention_device::gpu::{Global, Word};
use sample_attention_device::launch::LaunchShape;
use sample_attention_device::params::{ProblemSizes, TensorArg};
use sample_attention_device::reduction::blocks as to_blocks;
use sample_attention_device::reduction::keys as to_keys;
use sample_attention_device::sampling::hopper::{self, HopperParams};
use sample_attention_device::sampling::{self, SamplingParams};
use sample_attention_device::top_k::{self, BlockLists, Masses, blocks, dense, keys};

use crate::case::{Case, Format, Inputs, Place, Sampling};

/// What is selected, and how keys are ranked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Budget {
    Blocks,
    Residual,
    Paper,
}

impl Budget {
    pub const ALL: [Budget; 3] = [Budget::Blocks, Budget::Residual, Budget::Paper];
}

/// All that the kernels wrote, in the kernels' layout.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    pub units: Units,
    /// Bits, so that outcomes compare.
    pub row_lse: Vec<u32>,
    pub stats: Vec<u32>,
    pub sink_stats: Vec<u32>,
    pub mass: Vec<u64>,
    pub outside: Vec<u64>,
    pub covered: Vec<u64>,
    pub kept: Vec<u64>,
    /// By head and query block.
    pub lists: Vec<Vec<Vec<u32>>>,
    /// By head.
    pub stripes: Vec<Vec<u32>>,
    pub dense: Vec<u32>,
}

pub fn sizes(case: &Case) -> ProblemSizes {
    ProblemSizes {
        batch: case.batch as u32,
        q_heads: case.q_heads as u32,
        kv_heads: case.kv_heads as u32,
        q_len: case.q_len as u32,
        k_len: case.k_len as u32,
        head_dim: case.head_dim as u32,
        causal: 1,
    }
}

pub fn units(case: &Case, budget: Budget) -> Units {
    let candidates = match budget {
        Budget::Blocks => Candidates::Blocks,
        Budget::Residual | Budget::Paper => Candidates::Keys,
    };
    Units::new(
        sizes(case),
        candidates,
        case.row_stride as u32,
        case.sinks as u32,
        case.window as u32,
    )
    .with_stride_doubles_from(u32::try_from(case.stride_doubles_from).unwrap_or(u32::MAX))
}

/// Launches a kernel; a fault fails the test with its message.
pub fn launch<P: Sync>(
    gpu: &mut Gpu,
    mode: Mode,
    kernel: Kernel<P>,
    shape: LaunchShape,
    params: &P,
) {
    let launch = Launch::new(shape.grid, shape.block)
        .shared_bytes(shape.shared_bytes)
        .mode(mode);
    gpu.launch(kernel, &launch, params)
        .unwrap_or_else(|fault| panic!("{fault}"));
}

fn tensor(buffer: &Buffer<u16>, place: &Place) -> TensorArg {
    TensorArg {
        address: buffer.address().add(place.offset as u64).cast(),
        stride_batch: place.stride_batch as u64,
        stride_head: place.stride_head as u64,
        stride_token: place.stride_token as u64,
    }
}

/// The whole selection.
pub fn run(case: &Case, inputs: &Inputs, budget: Budget, mode: Mode) -> Outcome {
    run_in_waves(case, inputs, budget, mode, u32::MAX)
}

/// The selection, `wave` units at a time in buffers that every wave finds as the last one left them.
pub fn run_in_waves(
    case: &Case,
    inputs: &Inputs,
    budget: Budget,
    mode: Mode,
    wave: u32,
) -> Outcome {
    let all = units(case, budget);
    let wave = wave.min(all.count);
    let mut pipeline = Pipeline::new(case, inputs, budget, all.slice(0, wave));
    let mut first = 0;
    let mut parts = Vec::new();
    while first < all.count {
        let units = all.slice(first, wave.min(all.count - first));
        pipeline.select(units, mode);
        parts.push(pipeline.read_units(units));
        first += wave;
    }
    pipeline.choose_dense(all, mode);
    pipeline.read(all, parts)
}

struct Pipeline<'a> {
    case: &'a Case,
    budget: Budget,
    gpu: Gpu,
    q: TensorArg,
    k: TensorArg,
    row_lse: Buffer<f32>,
    stats: Buffer<f32>,
    sink_stats: Buffer<f32>,
    mass: Buffer<u64>,
    outside: Buffer<u64>,
    covered: Buffer<u64>,
    kept: Buffer<u64>,
    key_blocks: Buffer<u32>,
    counts: Buffer<u32>,
    stripes: Buffer<u32>,
    stripe_counts: Buffer<u32>,
    dense: Buffer<u32>,
}

/// What a wave leaves in the buffers that the next one overwrites.
struct OfUnits {
    row_lse: Vec<f32>,
    stats: Vec<f32>,
    sink_stats: Vec<f32>,
    mass: Vec<u64>,
    outside: Vec<u64>,
    covered: Vec<u64>,
}

impl<'a> Pipeline<'a> {
    fn new(case: &'a Case, inputs: &Inputs, budget: Budget, wave: Units) -> Self {
        let mut gpu = Gpu::new();
        let q = gpu.upload("q", &inputs.q);
        let k = gpu.upload("k", &inputs.k);
        let is_blocks = budget == Budget::Blocks;
        let (mass, covered) = if is_blocks {
            (to_blocks::mass_len(&wave), to_blocks::covered_len(&wave))
        } else {
            (to_keys::mass_len(&wave), to_keys::covered_len(&wave))
        };
        let stats_of = |len: u64| if is_blocks { len as usize } else { 0 };
        let outside = if budget == Budget::Paper { mass } else { 0 };
        let heads = case.heads();
        Pipeline {
            q: tensor(&q, &inputs.q_place),
            k: tensor(&k, &inputs.k_place),
            row_lse: gpu.alloc("row_lse", sampling::row_lse_len(&wave) as usize),
            stats: gpu.alloc("stats", stats_of(sampling::stats_len(&wave))),
            sink_stats: gpu.alloc("sink_stats", stats_of(sampling::sink_stats_len(&wave))),
            mass: gpu.alloc("mass", mass as usize),
            outside: gpu.alloc("outside", outside as usize),
            covered: gpu.alloc("covered", covered as usize),
            kept: gpu.alloc("kept", top_k::kept_len(&wave) as usize),
            key_blocks: gpu.alloc("key_blocks", BlockLists::key_blocks_len(&wave) as usize),
            counts: gpu.alloc("counts", BlockLists::counts_len(&wave) as usize),
            stripes: gpu.alloc("stripes", keys::stripes_len(&wave) as usize),
            stripe_counts: gpu.alloc("stripe_counts", heads),
            dense: gpu.alloc("dense", heads),
            case,
            budget,
            gpu,
        }
    }

    fn lists(&self) -> BlockLists {
        BlockLists {
            key_blocks: self.key_blocks.address(),
            counts: self.counts.address(),
        }
    }

    fn select(&mut self, units: Units, mode: Mode) {
        let is_blocks = self.budget == Budget::Blocks;
        let scale_log2 = self.case.softmax_scale * std::f32::consts::LOG2_E;
        let sampling_params = SamplingParams {
            units,
            scale_log2,
            q: self.q,
            k: self.k,
            row_lse: self.row_lse.address(),
            stats: or_null(&self.stats),
            sink_stats: or_null(&self.sink_stats),
        };
        self.sample(sampling_params, mode);

        let masses = Masses {
            mass: self.mass.address(),
            outside: or_null(&self.outside),
            covered: self.covered.address(),
            kept: self.kept.address(),
            coverage: self.case.coverage,
        };
        let lists = self.lists();
        if is_blocks {
            let params = to_blocks::ReductionBlocksParams {
                units,
                scale_log2,
                row_lse: self.row_lse.address(),
                stats: self.stats.address(),
                sink_stats: self.sink_stats.address(),
                mass: self.mass.address(),
                covered: self.covered.address(),
            };
            let shape = to_blocks::launch_shape(&units);
            launch(
                &mut self.gpu,
                mode,
                to_blocks::REDUCTION_BLOCKS,
                shape,
                &params,
            );
            let params = blocks::TopKBlocksParams {
                units,
                masses,
                lists,
                stripe_counts: self.stripe_counts.address(),
            };
            let shape = top_k::launch_shape(&units);
            launch(&mut self.gpu, mode, blocks::TOP_K_BLOCKS, shape, &params);
        } else {
            let params = to_keys::ReductionKeysParams {
                units,
                scale_log2,
                q: self.q,
                k: self.k,
                row_lse: self.row_lse.address(),
                mass: self.mass.address(),
                outside: or_null(&self.outside),
                covered: self.covered.address(),
            };
            let kernel = match (self.case.format, self.case.head_dim) {
                (Format::Bf16, 64) => to_keys::BF16_D64,
                (Format::Bf16, _) => to_keys::BF16_D128,
                (Format::F16, 64) => to_keys::F16_D64,
                (Format::F16, _) => to_keys::F16_D128,
            };
            let shape = to_keys::launch_shape(&units);
            launch(&mut self.gpu, mode, kernel, shape, &params);
            let params = keys::TopKKeysParams {
                units,
                masses,
                lists,
                stripes: self.stripes.address(),
                stripe_counts: self.stripe_counts.address(),
            };
            let shape = top_k::launch_shape(&units);
            launch(&mut self.gpu, mode, keys::TOP_K_KEYS, shape, &params);
        }
    }

    fn sample(&mut self, params: SamplingParams, mode: Mode) {
        let units = &params.units;
        match self.case.sampling {
            Sampling::Portable => {
                let kernel = match (self.case.format, self.case.head_dim) {
                    (Format::Bf16, 64) => sampling::BF16_D64,
                    (Format::Bf16, _) => sampling::BF16_D128,
                    (Format::F16, 64) => sampling::F16_D64,
                    (Format::F16, _) => sampling::F16_D128,
                };
                let shape = sampling::launch_shape(units);
                launch(&mut self.gpu, mode, kernel, shape, &params);
            }
            Sampling::Hopper => {
                let kernel = match (self.case.format, self.case.head_dim) {
                    (Format::Bf16, 64) => hopper::BF16_D64,
                    (Format::Bf16, _) => hopper::BF16_D128,
                    (Format::F16, 64) => hopper::F16_D64,
                    (Format::F16, _) => hopper::F16_D128,
                };
                let shape = hopper::launch_shape(units);
                let layout = hopper::k_map_layout(&params.k, &units.sizes);
                let params = HopperParams {
                    k_map: tensor_map(&layout).expect("a valid layout"),
                    sampling: params,
                };
                launch(&mut self.gpu, mode, kernel, shape, &params);
            }
        }
    }

    fn choose_dense(&mut self, units: Units, mode: Mode) {
        let params = dense::ChooseDenseParams {
            units,
            lists: self.lists(),
            stripes: self.stripes.address(),
            stripe_counts: self.stripe_counts.address(),
            dense: self.dense.address(),
        };
        let shape = dense::launch_shape(&units);
        launch(&mut self.gpu, mode, dense::CHOOSE_DENSE, shape, &params);
    }

    /// The part of each buffer that belongs to the units of a launch.
    fn read_units(&self, units: Units) -> OfUnits {
        let share = |all: usize, capacity: u32| all / capacity as usize * units.count as usize;
        let per_unit = sampling::row_lse_len(&units.slice(0, 1));
        let capacity = (self.row_lse.len() as u64 / per_unit) as u32;
        OfUnits {
            row_lse: self.gpu.read(&self.row_lse)[..share(self.row_lse.len(), capacity)].to_vec(),
            stats: self.gpu.read(&self.stats)[..share(self.stats.len(), capacity)].to_vec(),
            sink_stats: self.gpu.read(&self.sink_stats)[..share(self.sink_stats.len(), capacity)]
                .to_vec(),
            mass: self.gpu.read(&self.mass)[..share(self.mass.len(), capacity)].to_vec(),
            outside: self.gpu.read(&self.outside)[..share(self.outside.len(), capacity)].to_vec(),
            covered: self.gpu.read(&self.covered)[..share(self.covered.len(), capacity)].to_vec(),
        }
    }

    fn read(&self, units: Units, parts: Vec<OfUnits>) -> Outcome {
        let (heads, blocks) = (self.case.heads(), self.case.blocks());
        let key_blocks = self.gpu.read(&self.key_blocks);
        let counts = self.gpu.read(&self.counts);
        let list = |head: usize, block: usize| -> Vec<u32> {
            if (block as u32) < units.sizes.first_query_block() {
                // Query blocks without a row have no list: as if it were their window.
                let first = (block + 1).saturating_sub(self.case.window_blocks());
                return (first as u32..=block as u32).collect();
            }
            let row = BlockLists::row(&units, head as u32, block as u32) as usize;
            key_blocks[row * blocks..][..counts[row] as usize].to_vec()
        };
        let stripes = self.gpu.read(&self.stripes);
        let stripe_counts = self.gpu.read(&self.stripe_counts);
        let bits = |floats: &dyn Fn(&OfUnits) -> &Vec<f32>| {
            let all = parts.iter().flat_map(|part| floats(part).iter());
            all.map(|x| x.to_bits()).collect()
        };
        let words = |words: &dyn Fn(&OfUnits) -> &Vec<u64>| {
            parts
                .iter()
                .flat_map(|part| words(part).iter().copied())
                .collect()
        };
        Outcome {
            units,
            row_lse: bits(&|part| &part.row_lse),
            stats: bits(&|part| &part.stats),
            sink_stats: bits(&|part| &part.sink_stats),
            mass: words(&|part| &part.mass),
            outside: words(&|part| &part.outside),
            covered: words(&|part| &part.covered),
            kept: self.gpu.read(&self.kept),
            lists: (0..heads)
                .map(|head| (0..blocks).map(|block| list(head, block)).collect())
                .collect(),
            stripes: (0..heads)
                .map(|head| {
                    stripes[head * self.case.k_len..][..stripe_counts[head] as usize].to_vec()
                })
                .collect(),
            dense: self.gpu.read(&self.dense),
        }
    }
}

fn or_null<T: Word>(buffer: &Buffer<T>) -> Global<T> {
    if buffer.is_empty() {
        Global::NULL
    } else {
        buffer.address()
    }
}
