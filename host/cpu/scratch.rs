//! What one worker works in.

use super::arena::{Arena, Footprint};
use super::simd::{InstructionSet, Lanes, PANEL};
use crate::geometry::BLOCK;
use crate::problem::Problem;

/// Buffers of one worker, reused by every task of every stage.
pub(super) struct Scratch<'a> {
    /// What the worker's kernels are compiled for.
    pub(super) instruction_set: InstructionSet,
    /// Qᵀ of a query block: head_dim lanes a panel.
    pub(super) queries: &'a mut [Lanes],
    /// Oᵀ of a query block over the recent tiles, or two sums for each key of a tile.
    pub(super) output: &'a mut [Lanes],
    /// Oᵀ of a query block over the tiles before.
    pub(super) total: &'a mut [Lanes],
    /// Rounding errors of `total`.
    pub(super) carry: &'a mut [Lanes],
    /// Scores of one panel against one tile of keys, then weights.
    pub(super) scores: &'a mut [Lanes],
    /// Keys of a tile as f32, where they cannot be read in place.
    pub(super) keys: &'a mut [f32],
    /// Values of a tile as f32, where they cannot be read in place.
    pub(super) values: &'a mut [f32],
    /// One query, value or output row.
    pub(super) row: &'a mut [f32],
    /// Stripes and sinks of a query block that its key blocks do not cover.
    pub(super) loose: &'a mut [u32],
}

struct Sizes {
    queries: usize,
    output: usize,
    tile: usize,
}

impl Sizes {
    fn new(problem: &Problem) -> Self {
        let queries = BLOCK / PANEL * problem.head_dim;
        Sizes {
            queries,
            output: queries.max(2 * BLOCK),
            tile: BLOCK * problem.head_dim,
        }
    }
}

impl<'a> Scratch<'a> {
    pub(super) fn carve(
        arena: &mut Arena<'a>,
        problem: &Problem,
        instruction_set: InstructionSet,
    ) -> Option<Self> {
        let sizes = Sizes::new(problem);
        Some(Scratch {
            instruction_set,
            queries: arena.take(sizes.queries)?,
            output: arena.take(sizes.output)?,
            total: arena.take(sizes.queries)?,
            carry: arena.take(sizes.queries)?,
            scores: arena.take(BLOCK)?,
            keys: arena.take(sizes.tile)?,
            values: arena.take(sizes.tile)?,
            row: arena.take(problem.head_dim)?,
            loose: arena.take(problem.k_len)?,
        })
    }

    pub(super) fn measure(footprint: &mut Footprint, problem: &Problem) {
        let sizes = Sizes::new(problem);
        footprint.take::<Lanes>(sizes.queries, 1);
        footprint.take::<Lanes>(sizes.output, 1);
        footprint.take::<Lanes>(sizes.queries, 1);
        footprint.take::<Lanes>(sizes.queries, 1);
        footprint.take::<Lanes>(BLOCK, 1);
        footprint.take::<f32>(sizes.tile, 1);
        footprint.take::<f32>(sizes.tile, 1);
        footprint.take::<f32>(problem.head_dim, 1);
        footprint.take::<u32>(problem.k_len, 1);
    }
}
