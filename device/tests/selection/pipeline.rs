//! The selection kernels in order, on the emulator.

use sample_attention_device::abi::slice::SPLIT_BLOCKS;
use sample_attention_device::abi::{
    HeadKind, HeadPolicies, HeadPolicy, KvTensor, Sequences, SparseMask, TileSlice,
};
use sample_attention_device::gpu::emu::{Buffer, Gpu, Kernel, Launch, Mode, tensor_map};
use sample_attention_device::gpu::{Global, Word};
use sample_attention_device::launch::LaunchShape;
use sample_attention_device::params::{SEGMENT_BLOCKS, TensorArg};
use sample_attention_device::reduction::blocks as to_blocks;
use sample_attention_device::reduction::keys::{self as to_keys, WholeHeads};
use sample_attention_device::reduction::statistics::Statistics;
use sample_attention_device::sampling::hopper::{self, HopperParams};
use sample_attention_device::sampling::{self, SamplingParams};
use sample_attention_device::top_k::{Masses, SelectionOutput, blocks, dense, keys, rows};

use crate::case::{Case, Format, Inputs, Place, Sampling};

/// What is selected, and how keys are ranked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Budget {
    Rows,
    Blocks,
    Residual,
    Paper,
}

impl Budget {
    pub const ALL: [Budget; 4] = [
        Budget::Rows,
        Budget::Blocks,
        Budget::Residual,
        Budget::Paper,
    ];

    pub fn kind(self) -> HeadKind {
        match self {
            Budget::Rows => HeadKind::Rows,
            Budget::Blocks => HeadKind::Blocks,
            Budget::Residual => HeadKind::Residual,
            Budget::Paper => HeadKind::Paper,
        }
    }

    pub fn is_of_blocks(self) -> bool {
        matches!(self, Budget::Rows | Budget::Blocks)
    }
}

/// How much is launched at a time.
#[derive(Clone, Copy, Debug)]
pub struct Slicing {
    /// Query tiles, of budgets of blocks.
    pub tiles: u32,
    /// Heads.
    pub heads: u32,
    /// Sequences, of budgets of keys.
    pub sequences: u32,
    /// Key blocks of a split.
    pub split_blocks: u32,
}

impl Slicing {
    pub const WHOLE: Self = Slicing {
        tiles: u32::MAX,
        heads: u32::MAX,
        sequences: u32::MAX,
        split_blocks: SPLIT_BLOCKS,
    };
}

/// Sizes of what an [`Outcome`] holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub q_heads: usize,
    /// Query tiles of all sequences, and of one.
    pub tiles: usize,
    pub of_sequence: usize,
    /// Tiles of rows that see no key.
    pub masked: usize,
    /// The first query block that holds a row.
    pub first_block: usize,
    pub row_capacity: usize,
    pub block_capacity: usize,
    pub splits: usize,
    pub split_blocks: usize,
}

impl Shape {
    /// The query tile of a query block.
    pub fn tile(&self, batch: usize, query_block: usize) -> usize {
        batch * self.of_sequence + self.masked + query_block - self.first_block
    }

    /// The place of a query tile, of a head counted through the batch.
    pub fn tile_row(&self, head: usize, query_block: usize) -> usize {
        let (batch, q_head) = (head / self.q_heads, head % self.q_heads);
        q_head * self.tiles + self.tile(batch, query_block)
    }
}

/// All that the kernels wrote, as for one slice that holds everything.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    pub shape: Shape,
    /// Bits, so that outcomes compare.
    pub row_lse: Vec<u32>,
    pub stats: Vec<u32>,
    pub bases: Vec<u32>,
    pub sink_stats: Vec<u32>,
    /// \[row, key block\], of [`Budget::Rows`].
    pub row_mass: Vec<u32>,
    /// \[tile place, key block\] or \[head, key\].
    pub mass: Vec<u64>,
    pub outside: Vec<u64>,
    /// \[tile place\] or \[head, key block\].
    pub covered: Vec<u64>,
    /// \[tile place\].
    pub kept: Vec<u64>,
    /// By tile place.
    pub lists: Vec<Vec<u32>>,
    /// By head.
    pub stripes: Vec<Vec<u32>>,
    pub dense: Vec<u32>,
}

pub fn policy(case: &Case, budget: Budget) -> HeadPolicy {
    HeadPolicy {
        kind: budget.kind(),
        coverage: case.coverage,
        window_blocks: case.window_blocks() as u32,
        row_stride: case.row_stride as u32,
        tail: case.tail as u32,
        tail_stride: case.tail_stride as u32,
        row_offset: 0,
        offset_step: 0,
        stride_doubles_from: u32::try_from(case.stride_doubles_from).unwrap_or(u32::MAX),
    }
}

pub fn sequences(case: &Case) -> Sequences {
    Sequences::uniform(
        case.batch as u32,
        case.q_len as u32,
        case.k_len as u32,
        true,
    )
}

/// All query tiles of all heads.
pub fn whole(case: &Case, budget: Budget, split_blocks: u32) -> TileSlice {
    let policy = policy(case, budget);
    let sequences = sequences(case);
    let q_heads = case.q_heads as u32;
    TileSlice {
        sequences,
        heads: HeadPolicies::alike(policy, q_heads),
        q_heads,
        kv_heads: case.kv_heads as u32,
        sinks: case.sinks as u32,
        first_slot: 0,
        slots: q_heads,
        first_tile: 0,
        tiles: sequences.query_tiles(),
        row_capacity: policy.rows_of_block(),
        block_capacity: sequences.max_key_blocks(),
        split_blocks: if budget.is_of_blocks() {
            split_blocks
        } else {
            u32::MAX
        },
    }
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
    run_in_slices(case, inputs, budget, mode, Slicing::WHOLE)
}

/// The selection, some at a time in buffers that every launch finds as the last one left them.
pub fn run_in_slices(
    case: &Case,
    inputs: &Inputs,
    budget: Budget,
    mode: Mode,
    slicing: Slicing,
) -> Outcome {
    let all = whole(case, budget, slicing.split_blocks);
    let tiles = if budget.is_of_blocks() {
        slicing.tiles.min(all.tiles)
    } else {
        all.tiles
    };
    let heads = slicing.heads.min(all.slots);
    let sequences = slicing.sequences.min(case.batch as u32);
    let most = TileSlice {
        slots: heads,
        tiles,
        ..all
    };
    let mut pipeline = Pipeline::new(case, inputs, budget, all, most, sequences);
    let mut first_slot = 0;
    while first_slot < all.slots {
        let slots = heads.min(all.slots - first_slot);
        let mut first_tile = 0;
        while first_tile < all.tiles {
            let slice = TileSlice {
                first_slot,
                slots,
                first_tile,
                tiles: tiles.min(all.tiles - first_tile),
                ..all
            };
            pipeline.select(&slice, sequences, mode);
            first_tile += tiles;
        }
        first_slot += heads;
    }
    if budget != Budget::Rows {
        pipeline.choose_dense(mode);
    }
    pipeline.finish()
}

struct Pipeline<'a> {
    case: &'a Case,
    budget: Budget,
    all: TileSlice,
    gpu: Gpu,
    q: TensorArg,
    k: TensorArg,
    row_lse: Buffer<f32>,
    stats: Buffer<f32>,
    bases: Buffer<f32>,
    sink_stats: Buffer<f32>,
    mass: Buffer<u64>,
    outside: Buffer<u64>,
    covered: Buffer<u64>,
    output: Output,
    outcome: Outcome,
}

/// Where a selection goes.
pub struct Output {
    pub kept: Buffer<u64>,
    listed: Buffer<u32>,
    finite_rows: Buffer<u32>,
    pub kv_num_blocks: Buffer<u32>,
    pub kv_indices: Buffer<u32>,
    pub num_keys: Buffer<u32>,
    pub key_indices: Buffer<u32>,
    pub dense: Buffer<u32>,
    params: SelectionOutput,
}

impl Output {
    pub fn new(gpu: &mut Gpu, slice: &TileSlice, key_capacity: u32) -> Self {
        let lists = (slice.q_heads * slice.tiles) as usize;
        let heads = (slice.q_heads * slice.sequences.count) as usize;
        let kept = gpu.alloc("kept", lists);
        let listed = gpu.alloc("listed", lists);
        let finite_rows = gpu.alloc("finite_rows", lists);
        let kv_num_blocks = gpu.alloc("kv_num_blocks", lists);
        let kv_indices = gpu.alloc("kv_indices", lists * slice.block_capacity as usize);
        let num_keys = gpu.alloc("num_keys", if key_capacity > 0 { heads } else { 0 });
        let key_indices = gpu.alloc("key_indices", heads * key_capacity as usize);
        let dense = gpu.alloc("dense", heads);
        let params = SelectionOutput {
            mask: SparseMask {
                kv_num_blocks: kv_num_blocks.address(),
                kv_indices: kv_indices.address(),
                num_keys: or_null(&num_keys),
                key_indices: or_null(&key_indices),
                dense: dense.address(),
                block_capacity: slice.block_capacity,
                key_capacity,
                keys_per_tile: 0,
                sinks: slice.sinks,
                first_tile: 0,
                tiles: slice.tiles,
            },
            kept: kept.address(),
            listed: listed.address(),
            all_tiles: slice.tiles,
        };
        Output {
            kept,
            listed,
            finite_rows,
            kv_num_blocks,
            kv_indices,
            num_keys,
            key_indices,
            dense,
            params,
        }
    }

    pub fn params(&self) -> SelectionOutput {
        self.params
    }

    /// The lists, by tile place.
    pub fn lists(&self, gpu: &Gpu) -> Vec<Vec<u32>> {
        let counts = gpu.read(&self.kv_num_blocks);
        assert_eq!(counts, gpu.read(&self.listed));
        let capacity = self.params.mask.block_capacity as usize;
        let indices = gpu.read(&self.kv_indices);
        let lists = counts.iter().zip(indices.chunks(capacity));
        lists
            .map(|(&count, list)| list[..count as usize].to_vec())
            .collect()
    }

    /// The lists of single keys, by sequence and head.
    pub fn keys(&self, gpu: &Gpu, heads: usize) -> Vec<Vec<u32>> {
        let capacity = self.params.mask.key_capacity as usize;
        if capacity == 0 {
            return vec![Vec::new(); heads];
        }
        let keys = gpu.read(&self.key_indices);
        let counts = gpu.read(&self.num_keys);
        let lists = counts.iter().zip(keys.chunks(capacity));
        lists
            .map(|(&count, list)| list[..count as usize].to_vec())
            .collect()
    }
}

impl<'a> Pipeline<'a> {
    fn new(
        case: &'a Case,
        inputs: &Inputs,
        budget: Budget,
        all: TileSlice,
        slice: TileSlice,
        sequence_count: u32,
    ) -> Self {
        let mut gpu = Gpu::new();
        let q = gpu.upload("q", &inputs.q);
        let k = gpu.upload("k", &inputs.k);
        let of_blocks = budget.is_of_blocks();
        let units = |slice, sequence_count| WholeHeads {
            slice,
            first_sequence: 0,
            sequence_count,
        };
        let masses = |slice: TileSlice, sequence_count| match budget {
            Budget::Rows => (0, 0),
            Budget::Blocks => (to_blocks::mass_len(&slice), to_blocks::covered_len(&slice)),
            Budget::Residual | Budget::Paper => {
                let units = units(slice, sequence_count);
                (to_keys::mass_len(&units), to_keys::covered_len(&units))
            }
        };
        let (mass, covered) = masses(slice, sequence_count);
        let (all_mass, all_covered) = masses(all, case.batch as u32);
        let (is_paper, is_rows) = (budget == Budget::Paper, budget == Budget::Rows);
        let of = |len: u64, is_there: bool| if is_there { len as usize } else { 0 };
        let sequence = all.sequences.get(0);
        let shape = Shape {
            q_heads: case.q_heads,
            tiles: all.tiles as usize,
            of_sequence: sequence.query_tiles() as usize,
            masked: sequence.fully_masked_rows().div_ceil(128) as usize,
            first_block: sequence.first_query_block() as usize,
            row_capacity: all.row_capacity as usize,
            block_capacity: all.block_capacity as usize,
            splits: all.splits() as usize,
            split_blocks: all.split_blocks as usize,
        };
        let outcome = Outcome {
            shape,
            row_lse: vec![0; sampling::row_lse_len(&all) as usize],
            stats: vec![0; of(sampling::stats_len(&all), of_blocks)],
            bases: vec![0; of(sampling::bases_len(&all), of_blocks)],
            sink_stats: vec![0; of(sampling::sink_stats_len(&all), of_blocks)],
            row_mass: vec![0; of(sampling::stats_len(&all), is_rows)],
            mass: vec![0; all_mass as usize],
            outside: vec![0; of(all_mass, is_paper)],
            covered: vec![0; all_covered as usize],
            kept: Vec::new(),
            lists: Vec::new(),
            stripes: Vec::new(),
            dense: Vec::new(),
        };
        let key_capacity = if of_blocks { 0 } else { case.k_len as u32 };
        Pipeline {
            q: tensor(&q, &inputs.q_place),
            k: tensor(&k, &inputs.k_place),
            row_lse: gpu.alloc("row_lse", sampling::row_lse_len(&slice) as usize),
            stats: gpu.alloc("stats", of(sampling::stats_len(&slice), of_blocks)),
            bases: gpu.alloc("bases", of(sampling::bases_len(&slice), of_blocks)),
            sink_stats: gpu.alloc("sinks", of(sampling::sink_stats_len(&slice), of_blocks)),
            mass: gpu.alloc("mass", mass as usize),
            outside: gpu.alloc("outside", of(mass, is_paper)),
            covered: gpu.alloc("covered", covered as usize),
            output: Output::new(&mut gpu, &all, key_capacity),
            all,
            case,
            budget,
            gpu,
            outcome,
        }
    }

    fn select(&mut self, slice: &TileSlice, sequence_count: u32, mode: Mode) {
        let params = SamplingParams {
            slice: *slice,
            scale_log2: self.scale_log2(),
            q: self.q,
            k: KvTensor::strided(self.k),
            row_lse: if self.budget == Budget::Blocks || self.budget == Budget::Rows {
                Global::NULL
            } else {
                self.row_lse.address()
            },
            stats: or_null(&self.stats),
            bases: or_null(&self.bases),
            sink_stats: or_null(&self.sink_stats),
        };
        self.sample(params, mode);
        self.keep_statistics(slice);
        match self.budget {
            Budget::Rows => self.select_rows(slice, mode),
            Budget::Blocks => self.select_blocks(slice, mode),
            Budget::Residual | Budget::Paper => {
                let mut first_sequence = 0;
                while first_sequence < self.case.batch as u32 {
                    let count = sequence_count.min(self.case.batch as u32 - first_sequence);
                    self.select_keys(slice, first_sequence, count, mode);
                    first_sequence += count;
                }
            }
        }
    }

    fn scale_log2(&self) -> f32 {
        self.case.softmax_scale * std::f32::consts::LOG2_E
    }

    fn statistics(&self) -> Statistics {
        Statistics {
            scale_log2: self.scale_log2(),
            stats: self.stats.address(),
            bases: self.bases.address(),
            sink_stats: self.sink_stats.address(),
        }
    }

    fn masses(&self) -> Masses {
        Masses {
            mass: self.mass.address(),
            outside: or_null(&self.outside),
            covered: self.covered.address(),
        }
    }

    fn select_rows(&mut self, slice: &TileSlice, mode: Mode) {
        let params = rows::SelectRowsParams {
            slice: *slice,
            statistics: self.statistics(),
            row_lse: self.row_lse.address(),
            finite_rows: self.output.finite_rows.address(),
            output: self.output.params(),
        };
        let shape = rows::launch_shape(slice);
        launch(&mut self.gpu, mode, rows::SELECT_ROWS, shape, &params);
        let masses: Vec<u32> = self
            .gpu
            .read(&self.stats)
            .iter()
            .map(|x| x.to_bits())
            .collect();
        let of_tile = slice.row_capacity * slice.block_capacity;
        copy_tiles(
            &self.all,
            slice,
            of_tile,
            &masses,
            &mut self.outcome.row_mass,
        );
        let lse: Vec<u32> = self
            .gpu
            .read(&self.row_lse)
            .iter()
            .map(|x| x.to_bits())
            .collect();
        copy_tiles(
            &self.all,
            slice,
            2 * slice.row_capacity,
            &lse,
            &mut self.outcome.row_lse,
        );
    }

    fn select_blocks(&mut self, slice: &TileSlice, mode: Mode) {
        let params = to_blocks::ReductionBlocksParams {
            slice: *slice,
            statistics: self.statistics(),
            row_lse: Global::NULL,
            mass: self.mass.address(),
            covered: self.covered.address(),
        };
        let shape = to_blocks::launch_shape(slice);
        launch(
            &mut self.gpu,
            mode,
            to_blocks::REDUCTION_BLOCKS,
            shape,
            &params,
        );
        let params = blocks::TopKBlocksParams {
            slice: *slice,
            masses: self.masses(),
            output: self.output.params(),
        };
        let shape = blocks::launch_shape(slice);
        launch(&mut self.gpu, mode, blocks::TOP_K_BLOCKS, shape, &params);
        let mass = self.gpu.read(&self.mass);
        copy_tiles(
            &self.all,
            slice,
            slice.block_capacity,
            &mass,
            &mut self.outcome.mass,
        );
        let covered = self.gpu.read(&self.covered);
        copy_tiles(&self.all, slice, 1, &covered, &mut self.outcome.covered);
    }

    fn select_keys(&mut self, slice: &TileSlice, first_sequence: u32, count: u32, mode: Mode) {
        let units = WholeHeads {
            slice: *slice,
            first_sequence,
            sequence_count: count,
        };
        let params = to_keys::ReductionKeysParams {
            units,
            scale_log2: self.scale_log2(),
            q: self.q,
            k: KvTensor::strided(self.k),
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
        let shape = to_keys::launch_shape(&units, self.case.head_dim as u32);
        launch(&mut self.gpu, mode, kernel, shape, &params);
        let params = keys::TopKKeysParams {
            units,
            masses: self.masses(),
            output: self.output.params(),
        };
        let shape = keys::launch_shape(&units);
        launch(&mut self.gpu, mode, keys::TOP_K_KEYS, shape, &params);
        let (mass, outside) = (self.gpu.read(&self.mass), self.gpu.read(&self.outside));
        let covered = self.gpu.read(&self.covered);
        for unit in 0..units.units() {
            let (slot, sequence) = (unit % slice.slots, unit / slice.slots);
            let head = (first_sequence + sequence) * slice.q_heads + slice.first_slot + slot;
            let copy = |from: &[u64], to: &mut [u64], len: u32| {
                if !to.is_empty() {
                    let [from_at, to_at] = [unit, head].map(|at| (at * len) as usize);
                    to[to_at..to_at + len as usize]
                        .copy_from_slice(&from[from_at..from_at + len as usize]);
                }
            };
            copy(&mass, &mut self.outcome.mass, units.key_capacity());
            copy(&outside, &mut self.outcome.outside, units.key_capacity());
            copy(&covered, &mut self.outcome.covered, slice.block_capacity);
        }
    }

    fn sample(&mut self, params: SamplingParams, mode: Mode) {
        let head_dim = self.case.head_dim as u32;
        match self.case.sampling {
            Sampling::Portable => {
                let kernel = match (self.case.format, self.case.head_dim) {
                    (Format::Bf16, 64) => sampling::BF16_D64,
                    (Format::Bf16, _) => sampling::BF16_D128,
                    (Format::F16, 64) => sampling::F16_D64,
                    (Format::F16, _) => sampling::F16_D128,
                };
                let shape = sampling::launch_shape(&params.slice, head_dim);
                launch(&mut self.gpu, mode, kernel, shape, &params);
            }
            Sampling::Hopper => {
                let kernel = match (self.case.format, self.case.head_dim) {
                    (Format::Bf16, 64) => hopper::BF16_D64,
                    (Format::Bf16, _) => hopper::BF16_D128,
                    (Format::F16, 64) => hopper::F16_D64,
                    (Format::F16, _) => hopper::F16_D128,
                };
                let shape = hopper::launch_shape(&params.slice, head_dim);
                let case = self.case;
                let extents = [case.batch, case.kv_heads, case.k_len].map(|size| size as u32);
                let layout = hopper::k_map_layout(&params.k, head_dim, extents);
                let params = HopperParams {
                    k_map: tensor_map(&layout).expect("a valid layout"),
                    sampling: params,
                };
                launch(&mut self.gpu, mode, kernel, shape, &params);
            }
        }
    }

    /// Copies what sampling wrote, before a selection by rows puts masses in its place.
    fn keep_statistics(&mut self, slice: &TileSlice) {
        let bits = |buffer: &Buffer<f32>| -> Vec<u32> {
            self.gpu.read(buffer).iter().map(|x| x.to_bits()).collect()
        };
        let rows = slice.row_capacity;
        let outcome = &mut self.outcome;
        if self.budget.is_of_blocks() {
            let of_tile = rows * slice.block_capacity;
            copy_tiles(
                &self.all,
                slice,
                of_tile,
                &bits(&self.stats),
                &mut outcome.stats,
            );
            let of_tile = rows * slice.splits();
            copy_tiles(
                &self.all,
                slice,
                of_tile,
                &bits(&self.bases),
                &mut outcome.bases,
            );
            copy_tiles(
                &self.all,
                slice,
                rows,
                &bits(&self.sink_stats),
                &mut outcome.sink_stats,
            );
        } else {
            copy_tiles(
                &self.all,
                slice,
                2 * rows,
                &bits(&self.row_lse),
                &mut outcome.row_lse,
            );
        }
    }

    fn choose_dense(&mut self, mode: Mode) {
        let params = dense::ChooseDenseParams {
            sequences: self.all.sequences,
            heads: self.all.heads,
            q_heads: self.all.q_heads,
            mask: self.output.params().mask,
        };
        let shape = dense::launch_shape(&self.all.sequences, self.all.q_heads);
        launch(&mut self.gpu, mode, dense::CHOOSE_DENSE, shape, &params);
    }

    fn finish(self) -> Outcome {
        let heads = self.case.heads();
        Outcome {
            kept: self.gpu.read(&self.output.kept),
            lists: self.output.lists(&self.gpu),
            stripes: self.output.keys(&self.gpu, heads),
            dense: if self.budget == Budget::Rows {
                vec![0; heads]
            } else {
                self.gpu.read(&self.output.dense)
            },
            ..self.outcome
        }
    }
}

/// Copies what a slice's buffer holds to where the buffer of all has it: `of_tile` elements a tile.
fn copy_tiles<T: Copy>(all: &TileSlice, slice: &TileSlice, of_tile: u32, from: &[T], to: &mut [T]) {
    for slot in slice.first_slot..slice.first_slot + slice.slots {
        let [from_at, to_at] =
            [slice, all].map(|slices| (slices.tile_row(slot, slice.first_tile) * of_tile) as usize);
        let len = (slice.tiles * of_tile) as usize;
        to[to_at..to_at + len].copy_from_slice(&from[from_at..from_at + len]);
    }
}

pub fn or_null<T: Word>(buffer: &Buffer<T>) -> Global<T> {
    if buffer.is_empty() {
        Global::NULL
    } else {
        buffer.address()
    }
}

/// What spends its mass by itself: some query blocks of a head, which is counted through the batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    pub head: usize,
    pub query_blocks: std::ops::Range<usize>,
}

/// The units of a case: query blocks by rows, segments by blocks, whole heads by keys.
pub fn units(case: &Case, budget: Budget) -> Vec<Unit> {
    let live = case.k_len.saturating_sub(case.q_len) / 128..case.blocks();
    let len = match budget {
        Budget::Rows => 1,
        Budget::Blocks => SEGMENT_BLOCKS as usize,
        Budget::Residual | Budget::Paper => usize::MAX,
    };
    let mut units = Vec::new();
    for head in 0..case.heads() {
        let mut first = live.start;
        while first < live.end {
            let end = (first / len)
                .saturating_add(1)
                .saturating_mul(len)
                .min(live.end);
            units.push(Unit {
                head,
                query_blocks: first..end,
            });
            first = end;
        }
    }
    units
}
