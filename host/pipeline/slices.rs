//! How a selection is cut up, so that what its launches hand to each other fits a bounded workspace.
//!
//! Heads that select key blocks go in *slices* of query tiles: sampling writes the statistics of a slice, selection reads them,
//! and the next slice takes their place. Heads that rank single keys over whole sequences go in *passes* over heads, or over
//! sequences of one head.

use sample_attention_device::abi::slice::SPLIT_BLOCKS;
use sample_attention_device::abi::{HeadKind, HeadPolicies, Sequences, TileSlice};
use sample_attention_device::params::SEGMENT_BLOCKS;
use sample_attention_device::reduction::keys::{self, WholeHeads};
use sample_attention_device::sampling;

use super::heads::Heads;

/// Query tiles whose statistics are in the workspace together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TileRange {
    pub(super) first_tile: u32,
    pub(super) tiles: u32,
    /// Sampled rows of a tile and head, at most.
    pub(super) row_capacity: u32,
    /// Key blocks that a row sees, at most.
    pub(super) block_capacity: u32,
}

/// Units whose masses are in the workspace together: slots × sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct KeyPass {
    pub(super) first_slot: u32,
    pub(super) slots: u32,
    pub(super) first_sequence: u32,
    pub(super) sequence_count: u32,
}

/// What the launches of a selection have in common.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape<'a> {
    pub(super) sequences: Sequences,
    pub(super) heads: &'a Heads,
    pub(super) q_heads: u32,
    pub(super) kv_heads: u32,
    pub(super) sinks: u32,
}

impl Shape<'_> {
    /// A slice of heads that select key blocks.
    pub(super) fn of_blocks(&self, heads: HeadPolicies, range: &TileRange) -> TileSlice {
        TileSlice {
            sequences: self.sequences,
            heads,
            q_heads: self.q_heads,
            kv_heads: self.kv_heads,
            sinks: self.sinks,
            first_slot: 0,
            slots: self.heads.of_blocks(),
            first_tile: range.first_tile,
            tiles: range.tiles,
            row_capacity: range.row_capacity,
            block_capacity: range.block_capacity,
            split_blocks: SPLIT_BLOCKS,
        }
    }

    /// A pass of heads that select single keys.
    pub(super) fn of_keys(&self, heads: HeadPolicies, pass: &KeyPass) -> WholeHeads {
        WholeHeads {
            slice: TileSlice {
                sequences: self.sequences,
                heads,
                q_heads: self.q_heads,
                kv_heads: self.kv_heads,
                sinks: self.sinks,
                first_slot: pass.first_slot,
                slots: pass.slots,
                first_tile: 0,
                tiles: self.sequences.query_tiles(),
                row_capacity: self.row_bound(),
                block_capacity: self.sequences.max_key_blocks().max(1),
                split_blocks: u32::MAX,
            },
            first_sequence: pass.first_sequence,
            sequence_count: pass.sequence_count,
        }
    }

    /// Sampled rows of a query tile, at most, wherever it lies.
    fn row_bound(&self) -> u32 {
        let rows = self
            .heads
            .distinct()
            .iter()
            .map(|policy| policy.rows_of_block())
            .max();
        rows.unwrap_or(1).min(self.sequences.max_q.max(1)).max(1)
    }

    /// Rows and key blocks of every query tile, at most; key blocks exactly where lengths are uniform.
    fn tiles(&self) -> Tiles {
        let sequences = &self.sequences;
        if sequences.is_ragged() {
            let bound = (self.row_bound(), sequences.max_key_blocks().max(1), 0);
            return Tiles {
                of_sequence: vec![bound],
                count: sequences.query_tiles(),
            };
        }
        let sequence = sequences.get(0);
        let policies = self.heads.distinct();
        let of_sequence = (0..sequence.query_tiles())
            .map(|place| {
                let block = sequence.query_tile(place).and_then(|tile| tile.query_block);
                let Some(block) = block else {
                    return (1, 1, 0);
                };
                let rows = policies.iter().map(|policy| {
                    let policy = policy.in_segment_of(block);
                    policy.rows_of_block().min(sequence.q_len)
                });
                (rows.max().unwrap_or(1).max(1), block + 1, block)
            })
            .collect();
        Tiles {
            of_sequence,
            count: sequences.query_tiles(),
        }
    }

    /// Slices whose buffers take at most `bytes`, or a panel's rows up to `most_bytes`; each at least one tile, and whole
    /// segments where heads spend their mass by segments. They hold all numbers of query tiles.
    pub(super) fn slices(&self, bytes: u64, most_bytes: u64) -> Vec<TileRange> {
        let tiles = self.tiles();
        let by_segments = self.heads.any(|kind| kind == HeadKind::Blocks);
        if by_segments && self.sequences.is_ragged() {
            // Where segments begin is device data.
            return vec![tiles.range(0, tiles.count)];
        }
        // All that depends on the heads, whose number would otherwise multiply that of the tiles.
        let heads = self.heads.at_nowhere();
        let mut slices = Vec::new();
        let mut first = 0;
        while first < tiles.count {
            let mut fitting = 1;
            let mut range = tiles.range(first, 1);
            while first + fitting < tiles.count {
                let longer = tiles.extended(range, first + fitting);
                let of_panel = PANEL_ROWS / longer.row_capacity;
                let allowed = if longer.tiles <= of_panel {
                    most_bytes
                } else {
                    bytes
                };
                if self.bytes(heads, by_segments, &longer) > allowed {
                    break;
                }
                fitting += 1;
                range = longer;
            }
            let end = tiles.aligned_end(first, first + fitting, by_segments);
            slices.push(tiles.range(first, end - first));
            first = end;
        }
        slices
    }

    /// Bytes of the buffers of a slice; masses are kept where heads spend theirs by segments.
    fn bytes(&self, heads: HeadPolicies, keeps_masses: bool, range: &TileRange) -> u64 {
        let slice = self.of_blocks(heads, range);
        let statistics = sampling::stats_len(&slice)
            + sampling::bases_len(&slice)
            + sampling::sink_stats_len(&slice)
            + sampling::row_lse_len(&slice);
        let masses = if keeps_masses {
            u64::from(slice.slots) * u64::from(slice.tiles) * u64::from(slice.block_capacity + 1)
        } else {
            0
        };
        4 * statistics + 8 * masses
    }

    /// Passes whose masses take at most `bytes`, each at least one unit.
    pub(super) fn key_passes(&self, bytes: u64) -> Vec<KeyPass> {
        let mut passes = Vec::new();
        for slots in self.heads.of_keys() {
            self.add_key_passes(bytes, slots, &mut passes);
        }
        passes
    }

    fn add_key_passes(&self, bytes: u64, of: std::ops::Range<u32>, passes: &mut Vec<KeyPass>) {
        let count = self.sequences.count;
        let all_slots = of.end - of.start;
        if all_slots == 0 || count == 0 {
            return;
        }
        let unit = self.of_keys(
            self.heads.at_nowhere(),
            &KeyPass {
                first_slot: of.start,
                slots: 1,
                first_sequence: 0,
                sequence_count: 1,
            },
        );
        let unit_bytes = 8 * (2 * keys::mass_len(&unit) + keys::covered_len(&unit));
        let fitting = (bytes / unit_bytes).clamp(1, u64::from(all_slots) * u64::from(count)) as u32;
        let (slots, sequences) = ((fitting / count).max(1), fitting.min(count));
        // About equal passes: a few units take as long as the longest of them.
        let slots = all_slots.div_ceil(all_slots.div_ceil(slots));
        for first_slot in of.clone().step_by(slots as usize) {
            for first_sequence in (0..count).step_by(sequences as usize) {
                passes.push(KeyPass {
                    first_slot,
                    slots: slots.min(of.end - first_slot),
                    first_sequence,
                    sequence_count: sequences.min(count - first_sequence),
                });
            }
        }
    }
}

/// Rows of a panel of Hopper's sampling.
const PANEL_ROWS: u32 = 256;

/// Rows and key blocks of every query tile of a batch.
struct Tiles {
    /// Of the tiles of a sequence, or of any tile: rows, key blocks, query block.
    of_sequence: Vec<(u32, u32, u32)>,
    count: u32,
}

impl Tiles {
    fn get(&self, tile: u32) -> (u32, u32, u32) {
        self.of_sequence[tile as usize % self.of_sequence.len()]
    }

    fn extended(&self, range: TileRange, tile: u32) -> TileRange {
        let (rows, blocks, _) = self.get(tile);
        TileRange {
            tiles: range.tiles + 1,
            row_capacity: range.row_capacity.max(rows),
            block_capacity: range.block_capacity.max(blocks),
            ..range
        }
    }

    fn range(&self, first_tile: u32, tiles: u32) -> TileRange {
        let empty = TileRange {
            first_tile,
            tiles: 0,
            row_capacity: 1,
            block_capacity: 1,
        };
        (first_tile..first_tile + tiles).fold(empty, |range, tile| self.extended(range, tile))
    }

    /// An end of a slice that leaves panels whole, or segments where it must: the last multiple of a power of two of query
    /// blocks, a sequence's end, or the batch's.
    fn aligned_end(&self, first: u32, end: u32, by_segments: bool) -> u32 {
        let begins = |tile: u32, len: u32| {
            tile >= self.count
                || tile.is_multiple_of(self.of_sequence.len() as u32)
                || self.get(tile).2.is_multiple_of(len)
        };
        if by_segments {
            let is_whole = |tile: &u32| begins(*tile, SEGMENT_BLOCKS);
            let below = (first + 1..=end).rev().find(is_whole);
            return below.unwrap_or_else(|| (end..).find(is_whole).unwrap_or(self.count));
        }
        let len = (1 << (end - first).ilog2()).min(SEGMENT_BLOCKS);
        let aligned = (first + 1..=end).rev().find(|&tile| begins(tile, len));
        aligned.unwrap_or(end)
    }
}
