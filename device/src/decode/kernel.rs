//! The kernel: one split of the keys, for one row tile of a key/value head.

use super::params::{DecodeParams, THREADS, TILE_KEYS};
use super::poison;
use super::row_tile::RowTile;
use super::stage::{Memory, Source, rows_at_once, stages, thread_chunk, wait};
use super::walk::{TileKeys, Walk};
use crate::abi::Sequence;
use crate::gpu::{self, Global, fragment::MmaM16N8K16};
use crate::sparse_flash::SparseFlashParams;
use crate::sparse_flash::work::Keys;
use crate::tile::{
    Accumulator, Float16, OnlineSoftmax, WARP, exponent, finish_sum, pack_averages, scale,
};

const WARPS: u32 = THREADS / 32;

/// See the module's documentation. `CHUNKS` is head_dim / 8; a warp multiplies 16 rows by 8 · `KEY_TILES` of a tile's keys.
#[inline(always)]
pub(super) fn decode<T: Float16, const CHUNKS: usize, const KEY_TILES: usize>(p: &DecodeParams) {
    let attention = &p.attention;
    let key_warps = TILE_KEYS / (8 * KEY_TILES as u32);
    let row_warps = WARPS / key_warps;
    let tile = RowTile::new(attention, 16 * row_warps);
    if tile.rows == 0 {
        return;
    }
    let memory = Memory::<CHUNKS>::new(16 * row_warps);
    let seen_by_all = tile.sees(0);
    let seen_by_any = tile.sees(tile.rows - 1);
    let walk = Walk::new(attention, &tile, seen_by_any);
    let (first, end) = p.splits.range(gpu::ctaid_x(), walk.tiles);

    let keys = Keys {
        sequence: tile.sequence.index,
        start: tile.sequence.k_start,
        len: tile.sequence.k_len,
    };
    let source = Source::new(
        attention,
        tile.kv_head,
        tile.sequence.batch,
        keys,
        seen_by_any,
    );
    copy_queries::<T, CHUNKS>(attention, memory, &tile, 16 * row_warps);
    let stages = stages(CHUNKS as u32 * 8);
    for stage in 0..stages - 1 {
        if first + stage < end {
            source.copy(memory, stage, &walk, first + stage);
        }
        // A group a tile, even without copies, keeps the count of groups in flight.
        gpu::cp_async_commit_group();
    }

    let warp = gpu::shfl_sync_idx(WARP, gpu::tid_x() / 32, 0);
    let lane = gpu::laneid();
    let first_row = warp % row_warps * 16;
    let first_key = warp / row_warps * (8 * KEY_TILES as u32);
    let rows = [first_row + lane / 4, first_row + lane / 4 + 8];
    let sees = rows.map(|row| tile.sees(row));
    let scale_log2 = scale::magnitude(attention.scale_log2);
    let mut softmax = OnlineSoftmax::<1>::EMPTY;
    let mut output = Accumulator::<1, CHUNKS>::zero();
    let mut stage = 0;
    let mut index = first;
    while index < end {
        wait::<CHUNKS>();
        gpu::bar_sync(0);
        let ahead = index + stages - 1;
        if ahead < end {
            let free = if stage == 0 { stages - 1 } else { stage - 1 };
            source.copy(memory, free, &walk, ahead);
        }
        gpu::cp_async_commit_group();

        // Every row sees all candidates.
        let (start, is_candidates) = match walk.keys_of(index) {
            TileKeys::From(first) => (first, false),
            TileKeys::Candidates(_) => (0, true),
        };
        let is_partial = !is_candidates && start + TILE_KEYS > seen_by_all;
        let q_rows = memory.q().columns_first(first_row, lane);
        let k_rows = memory.k(stage).rows_first(first_key, lane);
        let mut scores = Accumulator::<1, KEY_TILES>::zero();
        scores.add_rows_by_rows::<T, CHUNKS>(q_rows, k_rows);
        let mut poisoned = false;
        if is_partial {
            mask(&mut scores, sees, start + first_key + lane % 4 * 2);
            if seen_by_all != seen_by_any {
                let found = poison::take_out::<T, CHUNKS>(memory.v(stage));
                poisoned = gpu::bar_red_or(0, found);
            }
        }
        if is_candidates {
            mask_candidates(&mut scores, memory, stage, first_key + lane % 4 * 2);
        }
        let (weights, rescale) = softmax.weigh::<T, KEY_TILES>(&mut scores, scale_log2);
        output.scale_rows(&rescale);
        let v_rows = memory.v(stage).columns_first(first_key, lane);
        output.add_weighted_rows::<T, KEY_TILES, CHUNKS>(&weights, v_rows);
        if poisoned {
            poison::add_back::<T, CHUNKS, KEY_TILES>(
                source,
                start + first_key,
                seen_by_any,
                sees,
                &weights,
                &mut output,
            );
        }
        stage = if stage == stages - 1 { 0 } else { stage + 1 };
        index += 1;
    }
    gpu::cp_async_wait_group::<0>();
    gpu::bar_sync(0);

    // The warps' shares, side by side.
    let statistics = softmax.statistics()[0];
    for half in 0..2 {
        let [row, column] = MmaM16N8K16::c(lane, 2 * half as u32);
        if lane.is_multiple_of(4) {
            let (maximum, sum) = statistics[half];
            // A row whose keys all score −∞ is 0/0, not a row without keys: see `SEES_NOTHING_FINITE`.
            let sum = if sum == 0.0 && first != end && sees[half] > 0 {
                SEES_NOTHING_FINITE
            } else {
                sum
            };
            gpu::st_shared_v2(memory.statistics(warp, row as u32), [maximum, sum]);
        }
        for (t, x) in output.elements[0].iter().enumerate() {
            let to = memory.output(warp, row as u32, (8 * t + column) as u32);
            gpu::st_shared_v2(to, [x[2 * half], x[2 * half + 1]]);
        }
    }
    gpu::bar_sync(0);
    write::<T, CHUNKS>(p, memory, &tile, key_warps, first == end);
}

/// Copies the tile's rows of Q, zero where there is none, with the sign of the scale.
#[inline(always)]
fn copy_queries<T: Float16, const CHUNKS: usize>(
    p: &SparseFlashParams,
    memory: Memory<CHUNKS>,
    tile: &RowTile,
    tile_rows: u32,
) {
    let (chunk, mut row) = thread_chunk::<CHUNKS>();
    while row < tile_rows {
        let mut words = [0; 4];
        if row < tile.rows {
            let (query, head) = tile.query_and_head(row);
            let token = tile.sequence.q_start + query;
            let from: Global<u16> = p.q.token(tile.sequence.batch, head, token);
            words = gpu::ld_global_nc_v4(from.add(u64::from(chunk * 8)).cast::<u32>());
        }
        let to = memory.q().chunk(row, chunk);
        gpu::st_shared_v4(
            to.cast::<u32>(),
            words.map(|pair| scale::times_sign::<T>(pair, p.scale_log2)),
        );
        row += rows_at_once::<CHUNKS>();
    }
}

/// Sets the scores of keys that a row does not see to −∞. `first` is the key of the lane's first column.
#[inline(always)]
fn mask<const KEY_TILES: usize>(
    scores: &mut Accumulator<1, KEY_TILES>,
    sees: [u32; 2],
    first: u32,
) {
    let last = sees.map(|sees| sees as i32 - 1 - first as i32);
    for (t, elements) in scores.elements[0].iter_mut().enumerate() {
        for (i, score) in elements.iter_mut().enumerate() {
            if (8 * t + i % 2) as i32 > last[i / 2] {
                *score = f32::NEG_INFINITY;
            }
        }
    }
}

/// Sets the scores of rows of a tile of candidates that hold no key to −∞. `first` is the row of the lane's first column.
#[inline(always)]
fn mask_candidates<const CHUNKS: usize, const KEY_TILES: usize>(
    scores: &mut Accumulator<1, KEY_TILES>,
    memory: Memory<CHUNKS>,
    stage: u32,
    first: u32,
) {
    for (t, elements) in scores.elements[0].iter_mut().enumerate() {
        for column in 0..2 {
            let row = first + 8 * t as u32 + column as u32;
            if gpu::ld_shared(memory.holds_key(stage, row)) == 0 {
                elements[column] = f32::NEG_INFINITY;
                elements[column + 2] = f32::NEG_INFINITY;
            }
        }
    }
}

/// Merges the warps' shares in order, and writes the rows: the result, or the split's share of it. Each thread has four columns.
#[inline(always)]
fn write<T: Float16, const CHUNKS: usize>(
    p: &DecodeParams,
    memory: Memory<CHUNKS>,
    tile: &RowTile,
    key_warps: u32,
    is_empty: bool,
) {
    let row_warps = WARPS / key_warps;
    let threads_of_row = CHUNKS as u32 * 2;
    let column = gpu::tid_x() % threads_of_row * 4;
    let mut row = gpu::tid_x() / threads_of_row;
    while row < tile.rows {
        let mut merged = Merged::EMPTY;
        for key_warp in 0..key_warps {
            let warp = key_warp * row_warps + row / 16;
            let [reference, _] = gpu::ld_shared_v2(memory.statistics(warp, row % 16));
            merged.reference = gpu::max_f32(merged.reference, reference);
        }
        for key_warp in 0..key_warps {
            let warp = key_warp * row_warps + row / 16;
            let [reference, sum] = gpu::ld_shared_v2(memory.statistics(warp, row % 16));
            let values = gpu::ld_shared_v4(memory.output(warp, row % 16, column));
            merged.add::<T>(&p.attention, (reference, sum), values);
        }
        let (query, head) = tile.query_and_head(row);
        let place = RowPlace::new(&p.attention, &tile.sequence, query, head);
        if p.splits.count == 1 {
            merged.write::<T>(&p.attention, place, column);
        } else {
            let index = place.index * u64::from(p.splits.count) + u64::from(gpu::ctaid_x());
            if column == 0 {
                let sums = [merged.reference, merged.sum];
                gpu::st_global_v2(p.partial_sums.add(2 * index), sums);
            }
            if !is_empty {
                let to = p.partial_o.add(index * u64::from(8 * CHUNKS as u32));
                gpu::st_global_v4(to.add(column.into()), merged.values);
            }
        }
        row += THREADS / threads_of_row;
    }
}

/// The sum of a row's weights where it sees keys, all of whose scores are −∞: a zero like any other to those who add, told apart by
/// its sign from that of a row that sees none.
const SEES_NOTHING_FINITE: f32 = -0.0;

#[inline(always)]
fn is_marked(sum: f32) -> bool {
    sum.to_bits() == SEES_NOTHING_FINITE.to_bits()
}

/// Four columns of a row, of which shares have been added up.
#[derive(Clone, Copy)]
pub(super) struct Merged {
    /// Greatest score of all shares, a raw product, known before the first is added.
    pub reference: f32,
    /// Of the weights relative to it; [`SEES_NOTHING_FINITE`] where it is 0 over keys that are seen.
    pub sum: f32,
    pub values: [f32; 4],
}

impl Merged {
    pub const EMPTY: Self = Self {
        reference: f32::NEG_INFINITY,
        sum: 0.0,
        values: [0.0; 4],
    };

    /// Adds a share: its greatest score and the sum of its weights, and its weighted values.
    #[inline(always)]
    pub fn add<T: Float16>(
        &mut self,
        p: &SparseFlashParams,
        (reference, sum): (f32, f32),
        values: [f32; 4],
    ) {
        if sum == 0.0 {
            if is_marked(sum) && self.sum == 0.0 {
                self.sum = SEES_NOTHING_FINITE;
            }
            return;
        }
        let scale_log2 = scale::magnitude(p.scale_log2);
        let change = exponent::change(reference, self.reference, scale_log2, T::TOP_WEIGHT_LOG2);
        // −∞ less −∞ would be NaN; a sum of NaN stays one.
        let factor = if reference == f32::NEG_INFINITY {
            0.0
        } else {
            gpu::ex2_approx_ftz_f32(change)
        };
        self.sum = gpu::fma_rn_f32(sum, factor, self.sum);
        for (x, value) in self.values.iter_mut().zip(&values) {
            *x = gpu::fma_rn_f32(*value, factor, *x);
        }
    }

    /// Writes the four columns from `column` on, and with the first the log-sum-exp.
    #[inline(always)]
    pub fn write<T: Float16>(&self, p: &SparseFlashParams, place: RowPlace, column: u32) {
        let scale_log2 = scale::magnitude(p.scale_log2);
        let sees_keys = is_marked(self.sum);
        let (factor, lse) = finish_sum::<T>(self.reference, self.sum, scale_log2, sees_keys);
        let values = self.values.map(|x| x * factor);
        if column == 0 {
            let RowPlace {
                batch, head, token, ..
            } = place;
            let at = u64::from(batch) * p.lse.stride_batch + u64::from(head) * p.lse.stride_head;
            gpu::st_global(p.lse.address.add(at + u64::from(token)), lse);
        }
        if p.output_f32 != 0 {
            let to: Global<f32> = p.o.token(place.batch, place.head, place.token);
            gpu::st_global_v4(to.add(column.into()), values);
        } else {
            let to: Global<u16> = p.o.token(place.batch, place.head, place.token);
            let [a, b, c, d] = values;
            let pairs = [pack_averages::<T>(a, b), pack_averages::<T>(c, d)];
            gpu::st_global_v2(to.add(column.into()).cast::<u32>(), pairs);
        }
    }
}

/// Where a row of a query head lies in tensors and in the workspace.
#[derive(Clone, Copy)]
pub(super) struct RowPlace {
    pub batch: u32,
    pub head: u32,
    pub token: u32,
    /// Its number among the rows of all query heads.
    pub index: u64,
}

impl RowPlace {
    #[inline(always)]
    fn new(p: &SparseFlashParams, sequence: &Sequence, query: u32, head: u32) -> Self {
        let token = sequence.q_start + query;
        let row = sequence.batch * p.sequences.max_q + token;
        Self {
            batch: sequence.batch,
            head,
            token,
            index: u64::from(row) * u64::from(p.q_heads) + u64::from(head),
        }
    }

    /// The row of a number; `None` where no sequence has it.
    #[inline(always)]
    pub fn of(p: &SparseFlashParams, index: u32) -> Option<Self> {
        let sequences = &p.sequences;
        let (row, head) = (index / p.q_heads, index % p.q_heads);
        let (batch, token, exists) = if sequences.is_ragged() {
            let rows = gpu::ld_global_nc(sequences.cu_q.add(sequences.count.into()));
            (0, row, row < rows && row < sequences.total_q)
        } else {
            let max_q = sequences.max_q;
            (row / max_q, row % max_q, row < sequences.count * max_q)
        };
        exists.then_some(Self {
            batch,
            head,
            token,
            index: index.into(),
        })
    }
}
