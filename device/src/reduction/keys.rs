//! The mass that all sampled rows of a head give each key: a second pass over QKᵀ, now that the normalisers are known.
//!
//! ```text
//! a CTA: the 128 keys of one key block of one unit, 32 a warp, against the sampled rows that see any of them
//!
//! the keys as fragments in registers, with the sign of softmax_scale
//! near = far = 0
//! for the rows whose window reaches the key block, in tiles of 64; then for the later ones:
//!     scores = keys · rowsᵀ
//!     share[key] = Σ over the tile's rows that see the key of 2^((score − reference)·scale − log2 sum), of row_lse's two parts
//!     near or far += share[key] in fixed point
//! whole = near + far; outside = far, or 0 for sinks; covered += whole − outside
//! ```
//!
//! Which rows are near does not depend on the key, so no tile mixes the two.
//!
//! # Synchronisation
//! That of [`Panel`]; the normalisers of a tile's rows travel with the tile. Lanes add f32 over the 16 rows of a tile that are
//! theirs, in a fixed order; everything beyond is integers. Each key has one writer.
//!
//! # Shape contract
//! [`launch_shape`]; heavy key blocks come first. bf16 or f16, head_dim 64 or 128 as the entry says. The problem is causal. A
//! *unit* is a sequence of a head, and its mass is spent by itself. All of `mass`, `covered` and, if given, `outside` is written;
//! zero for keys after the last.

use super::fixed_point;
use crate::abi::{KvTensor, Sequence, TileSlice};
use crate::gpu::{self, Global, Shared};
use crate::launch::{LaunchShape, PANEL_THREADS, STAGES, TILE, WARP_ROWS};
use crate::params::{BLOCK, TensorArg};
use crate::tile::panel::{self, Panel, Scores};
use crate::tile::sum::{sum_across, sum_in_block};
use crate::tile::{Bf16, F16, Float16, WARP, exponent, scale};

/// Sequences of sampled heads, each a unit that ranks its keys by itself.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct WholeHeads {
    /// Which heads, and where their rows lie. It holds all query tiles of the batch, in one split.
    pub slice: TileSlice,
    /// The first sequence.
    pub first_sequence: u32,
    /// How many.
    pub sequence_count: u32,
}

impl WholeHeads {
    /// Units of the launch.
    #[inline(always)]
    pub const fn units(&self) -> u32 {
        self.slice.slots * self.sequence_count
    }

    /// Keys of a unit, at most, in whole key blocks.
    #[inline(always)]
    pub const fn key_capacity(&self) -> u32 {
        self.slice.block_capacity * BLOCK
    }

    /// Slot and sequence of a unit: heads that share keys stand together.
    #[inline(always)]
    pub fn unit(&self, index: u32) -> (u32, Sequence) {
        let sequence = self.first_sequence + index / self.slice.slots;
        let slot = self.slice.first_slot + index % self.slice.slots;
        (slot, self.slice.sequences.get(sequence))
    }
}

/// What the reduction to keys reads and writes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ReductionKeysParams {
    /// Which units.
    pub units: WholeHeads,
    /// softmax_scale · log2 e.
    pub scale_log2: f32,
    /// Queries.
    pub q: TensorArg,
    /// Keys.
    pub k: KvTensor,
    /// \[row\], from sampling.
    pub row_lse: Global<f32>,
    /// \[unit, key\]: what keys are ranked by: all their mass if `outside` is given, else the mass outside window and sinks.
    pub mass: Global<u64>,
    /// \[unit, key\]: mass outside window and sinks; or null.
    pub outside: Global<u64>,
    /// \[unit, key block\]: mass in window and sinks.
    pub covered: Global<u64>,
}

/// Elements of `mass`, and of `outside` where it is given.
pub const fn mass_len(units: &WholeHeads) -> u64 {
    units.units() as u64 * units.key_capacity() as u64
}

/// Elements of `covered`.
pub const fn covered_len(units: &WholeHeads) -> u64 {
    units.units() as u64 * units.slice.block_capacity as u64
}

/// The launch of a reduction to keys.
pub const fn launch_shape(units: &WholeHeads, head_dim: u32) -> LaunchShape {
    LaunchShape::linear(
        units.units() * units.slice.block_capacity,
        PANEL_THREADS,
        lse_offset(head_dim) + STAGES * LSE_BYTES,
    )
}

/// The log-sum-exps of a tile's rows: two numbers each, one for each thread to copy.
const LSE_BYTES: u32 = TILE * 8;
const _: () = assert!(2 * TILE == PANEL_THREADS && PANEL_THREADS == BLOCK);

/// Where they lie in shared memory, stage after stage.
const fn lse_offset(head_dim: u32) -> u32 {
    panel::shared_bytes(head_dim)
}

/// Ranks of a tile's rows.
#[derive(Clone, Copy)]
struct RowTile {
    first: u32,
    end: u32,
    is_near: bool,
}

#[inline(always)]
fn reduce<T: Float16, const CHUNKS: usize>(p: &ReductionKeysParams) {
    let slice = &p.units.slice;
    let blocks = slice.block_capacity;
    // Early keys are seen by more rows.
    let (unit, key_block) = (gpu::ctaid_x() / blocks, gpu::ctaid_x() % blocks);
    let (slot, sequence) = p.units.unit(unit);
    let q_head = slice.heads.head_of(slot);
    let policy = slice.heads.get(q_head).policy.without_offset();
    let rows = policy.sampled_rows(&sequence, 0, sequence.k_len);
    let first_key = key_block * BLOCK;
    let first_rank = rows.rank_at(first_key);
    let first_far_rank = rows.rank_at((key_block + policy.window_blocks) * BLOCK);
    let near_steps = (first_far_rank - first_rank).div_ceil(TILE);
    let steps = near_steps + (rows.len() - first_far_rank).div_ceil(TILE);
    let row_tile = |step: u32| {
        let is_near = step < near_steps;
        RowTile {
            first: if is_near {
                first_rank + step * TILE
            } else {
                first_far_rank + (step - near_steps) * TILE
            },
            end: if is_near { first_far_rank } else { rows.len() },
            is_near,
        }
    };

    let first_mass = u64::from(unit) * u64::from(p.units.key_capacity()) + u64::from(first_key);
    if steps == 0 {
        // No row sees the keys, and where the sequence has ended there are none to load.
        let at = first_mass + u64::from(gpu::tid_x());
        gpu::st_global(p.mass.add(at), 0);
        if !p.outside.is_null() {
            gpu::st_global(p.outside.add(at), 0);
        }
        if gpu::tid_x() == 0 {
            gpu::st_global(p.covered.add(gpu::ctaid_x().into()), 0);
        }
        return;
    }

    let kv_head = slice.kv_head(q_head);
    let shared = gpu::dynamic_shared();
    let panel = Panel::<T, CHUNKS>::load(shared, |key| {
        // Keys after the last repeat it: no row sees them.
        let key = (first_key + key).min(sequence.k_len - 1);
        p.k.token(&sequence, kv_head, key)
    })
    .times_sign_of(p.scale_log2);
    let scale = scale::magnitude(p.scale_log2);

    let lse_tiles: Shared<f32> = shared.byte_add(lse_offset(CHUNKS as u32 * 8)).cast();
    let first_tile = slice.sequences.first_query_tile(&sequence);
    let lse = |rank: u32| {
        let query_block = rows.position(rank) / BLOCK;
        let tile = first_tile + sequence.place_of(query_block);
        let row = slice.first_row(slot, tile) + rank - rows.rank_at(query_block * BLOCK);
        p.row_lse.add(2 * u64::from(row))
    };
    let warp_key = first_key + panel::warp() * WARP_ROWS;
    let key = |half: usize, pair: usize| warp_key + panel::row_in_warp(half as u32, pair as u32);
    let mut near = [[0; 2]; 2];
    let mut far = [[0; 2]; 2];
    panel.stream(
        steps,
        |step, row| {
            let tile = row_tile(step);
            let position = rows.position((tile.first + row).min(tile.end - 1));
            let row = sequence.q_start + position + sequence.q_len - sequence.k_len;
            p.q.token(sequence.batch, q_head, row)
        },
        |step, stage| {
            let tile = row_tile(step);
            let (row, part) = (gpu::tid_x() / 2, gpu::tid_x() % 2);
            let rank = (tile.first + row).min(tile.end - 1);
            let to = lse_tiles.add(stage * 2 * TILE + gpu::tid_x());
            gpu::cp_async_ca_4(to, lse(rank).add(part.into()));
        },
        |step| {
            let tile = row_tile(step);
            rows.position(tile.end.min(tile.first + TILE) - 1) >= warp_key
        },
        |step, stage, mut scores| {
            let tile = row_tile(step);
            to_shares(&mut scores, scale, lse_tiles.add(stage * 2 * TILE));
            let all_seen = tile.first + TILE <= tile.end
                && rows.position(tile.first) + 1 >= warp_key + WARP_ROWS;
            if !all_seen {
                mask(&mut scores, &tile, |rank| rows.position(rank), warp_key);
            }
            for half in 0..2 {
                for pair in 0..2 {
                    let mut sum = 0.0;
                    for columns in &scores.elements[half] {
                        sum += columns[2 * pair];
                        sum += columns[2 * pair + 1];
                    }
                    let sum = fixed_point(sum, LANE_ROWS);
                    near[half][pair] += if tile.is_near { sum } else { 0 };
                    far[half][pair] += if tile.is_near { 0 } else { sum };
                }
            }
        },
    );

    let mut covered = 0;
    for half in 0..2 {
        for pair in 0..2 {
            let key = key(half, pair);
            let near = sum_across::<4>(near[half][pair]);
            let far = sum_across::<4>(far[half][pair]);
            let outside = if key < slice.sinks { 0 } else { far };
            if gpu::laneid().is_multiple_of(4) {
                let at = first_mass + u64::from(key - first_key);
                if p.outside.is_null() {
                    gpu::st_global(p.mass.add(at), outside);
                } else {
                    gpu::st_global(p.mass.add(at), near + far);
                    gpu::st_global(p.outside.add(at), outside);
                }
                covered += near + far - outside;
            }
        }
    }
    // No copy is in flight, but a slower warp may still read its last tile.
    gpu::bar_sync(0);
    let covered = sum_in_block(covered, shared.cast());
    if gpu::tid_x() == 0 {
        gpu::st_global(p.covered.add(gpu::ctaid_x().into()), covered);
    }
}

/// Rows of a tile that one lane adds up.
const LANE_ROWS: f32 = (TILE / 4) as f32;

/// Each score as a share of its row's mass, at most 1; 0 for what is NaN, so that it spoils no sum. The whole warp calls it.
#[inline(always)]
fn to_shares(scores: &mut Scores, scale: f32, lse: Shared<f32>) {
    let lse = lse.add(2 * panel::first_column());
    let mut offset = [[0.0; 2]; 8];
    let mut far = false;
    for (tile, offset) in offset.iter_mut().enumerate() {
        let [reference, log2_sum, next_reference, next_log2_sum] =
            gpu::ld_shared_v4(lse.add(16 * tile as u32));
        *offset = [
            exponent::near_offset(reference, scale, -log2_sum),
            exponent::near_offset(next_reference, scale, -next_log2_sum),
        ];
        far |= exponent::is_far(offset[0]) || exponent::is_far(offset[1]);
    }
    if gpu::vote_sync_any(WARP, far) {
        for (tile, offset) in offset.iter_mut().enumerate() {
            for i in 0..2 {
                let of_row = lse.add(16 * tile as u32 + 2 * i as u32);
                let [reference, log2_sum] = gpu::ld_shared_v2(of_row);
                let shift = exponent::shift(reference, offset[i]);
                offset[i] = exponent::offset(offset[i], -log2_sum);
                for rows in &mut scores.elements {
                    rows[tile][i] -= shift;
                    rows[tile][2 + i] -= shift;
                }
            }
        }
    }
    for rows in &mut scores.elements {
        for (scores, offset) in rows.iter_mut().zip(&offset) {
            for (i, score) in scores.iter_mut().enumerate() {
                let exponent = gpu::fma_rn_f32(*score, scale, offset[i % 2]);
                // Products of other instructions than sampling's may be larger: no row has more than its mass.
                *score = gpu::saturate_f32(gpu::ex2_approx_ftz_f32(exponent));
            }
        }
    }
}

/// Takes out shares of rows that are not of the tile or do not see the key, whatever they are.
#[inline(always)]
fn mask(shares: &mut Scores, tile: &RowTile, position: impl Fn(u32) -> u32, warp_key: u32) {
    for column in 0..16 {
        let rank = tile.first + panel::first_column() + column / 2 * 8 + column % 2;
        // The last of the lane's keys that the row sees, counted from the lane's first; −1 or less for none.
        let last = if rank < tile.end {
            position(rank) as i32 - (warp_key + panel::row_in_warp(0, 0)) as i32
        } else {
            -1
        };
        for (half, rows) in shares.elements.iter_mut().enumerate() {
            for pair in 0..2 {
                let key = (half * 16 + pair * 8) as i32;
                if key > last {
                    rows[column as usize / 2][2 * pair + column as usize % 2] = 0.0;
                }
            }
        }
    }
}

crate::entry! {
    /// The reduction to keys of `bf16`, head_dim 64.
    BF16_D64, reduction_keys_bf16_d64 = reduce::<Bf16, 8>, ReductionKeysParams
}
crate::entry! {
    /// The reduction to keys of `bf16`, head_dim 128.
    BF16_D128, reduction_keys_bf16_d128 = reduce::<Bf16, 16>, ReductionKeysParams
}
crate::entry! {
    /// The reduction to keys of `f16`, head_dim 64.
    F16_D64, reduction_keys_f16_d64 = reduce::<F16, 8>, ReductionKeysParams
}
crate::entry! {
    /// The reduction to keys of `f16`, head_dim 128.
    F16_D128, reduction_keys_f16_d128 = reduce::<F16, 16>, ReductionKeysParams
}
