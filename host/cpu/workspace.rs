//! The buffers of a run, carved out of the caller's bytes.

use super::arena::{Arena, Footprint};
use super::per_row::TaskBuffers;
use super::sampling::BlockStats;
use super::scratch::Scratch;
use super::simd::{InstructionSet, Lanes};
use super::units::Units;
use crate::policy::Budget;
use crate::problem::Problem;
use crate::selection::{SelectionMut, SelectionShape, StripeSpan};

/// Everything that a run works in.
pub(super) struct Workspace<'a> {
    pub(super) scratches: Vec<Scratch<'a>>,
    pub(super) selecting: Option<Selecting<'a>>,
}

/// What a plan that selects keeps besides: the selection, and the intermediate results of one wave.
pub(super) struct Selecting<'a> {
    pub(super) selection: SelectionMut<'a>,
    pub(super) totals: &'a mut [HeadTotals],
    pub(super) queries: &'a mut [Lanes],
    pub(super) row_lse: &'a mut [Lanes],
    pub(super) blocks: &'a mut [BlockStats],
    pub(super) sinks: &'a mut [BlockStats],
    pub(super) mass: &'a mut [u64],
    pub(super) outside: &'a mut [u64],
    pub(super) covered: &'a mut [u64],
    /// One a worker for the budget of rows, else none.
    pub(super) tasks: Vec<TaskBuffers<'a>>,
}

/// What selection found of one head, over all its units.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Zeroable, bytemuck::Pod)]
#[repr(C)]
pub(super) struct HeadTotals {
    /// Sampled rows, each of mass [`MASS_ONE`](super::MASS_ONE).
    pub(super) rows: u64,
    /// Mass that the mask keeps of them.
    pub(super) kept: u64,
}

fn stripe_capacity(units: &Units) -> usize {
    match units.budget {
        Budget::Rows | Budget::Blocks => 0,
        Budget::Residual | Budget::Paper => units.geometry.k_len,
    }
}

fn task_buffers(units: &Units, threads: usize) -> usize {
    match units.budget {
        Budget::Rows => threads,
        Budget::Blocks | Budget::Residual | Budget::Paper => 0,
    }
}

impl<'a> Workspace<'a> {
    /// `None` where there are fewer than [`bytes`] bytes.
    pub(super) fn carve(
        bytes: &'a mut [u8],
        problem: &Problem,
        units: Option<&Units>,
        (threads, instruction_set): (usize, InstructionSet),
    ) -> Option<Self> {
        let mut arena = Arena::new(bytes);
        let scratches = (0..threads)
            .map(|_| Scratch::carve(&mut arena, problem, instruction_set))
            .collect::<Option<_>>()?;
        let selecting = match units {
            Some(units) => Some(Selecting::carve(&mut arena, problem, units, threads)?),
            None => None,
        };
        Some(Workspace {
            scratches,
            selecting,
        })
    }
}

impl<'a> Selecting<'a> {
    fn carve(
        arena: &mut Arena<'a>,
        problem: &Problem,
        units: &Units,
        threads: usize,
    ) -> Option<Self> {
        let shape = SelectionShape::new(problem);
        Some(Selecting {
            selection: SelectionMut {
                shape,
                sinks: units.sinks,
                kept_blocks: arena.take(shape.words())?,
                stripes: arena.take(units.heads * stripe_capacity(units))?,
                stripe_spans: arena.take(units.heads)?,
                dense: arena.take(units.heads)?,
            },
            totals: arena.take(units.heads)?,
            queries: arena.take(units.wave * units.query_lanes())?,
            row_lse: arena.take(units.wave * units.panels)?,
            blocks: arena.take(units.wave * units.block_stats())?,
            sinks: arena.take(units.wave * units.sink_stats())?,
            mass: arena.take(units.wave * units.candidates())?,
            outside: arena.take(units.wave * units.outside_candidates())?,
            covered: arena.take(units.wave * units.reductions())?,
            tasks: (0..task_buffers(units, threads))
                .map(|_| TaskBuffers::carve(arena, units))
                .collect::<Option<_>>()?,
        })
    }
}

/// Bytes that [`Workspace::carve`] needs.
pub(crate) fn bytes(problem: &Problem, units: Option<&Units>, threads: usize) -> usize {
    let mut footprint = Footprint::default();
    for _ in 0..threads {
        Scratch::measure(&mut footprint, problem);
    }
    if let Some(units) = units {
        let shape = SelectionShape::new(problem);
        footprint.take::<u64>(shape.words());
        footprint.take::<u32>(units.heads * stripe_capacity(units));
        footprint.take::<StripeSpan>(units.heads);
        footprint.take::<u8>(units.heads);
        footprint.take::<HeadTotals>(units.heads);
        footprint.take::<Lanes>(units.wave * units.query_lanes());
        footprint.take::<Lanes>(units.wave * units.panels);
        footprint.take::<BlockStats>(units.wave * units.block_stats());
        footprint.take::<BlockStats>(units.wave * units.sink_stats());
        footprint.take::<u64>(units.wave * units.candidates());
        footprint.take::<u64>(units.wave * units.outside_candidates());
        footprint.take::<u64>(units.wave * units.reductions());
        for _ in 0..task_buffers(units, threads) {
            TaskBuffers::measure(&mut footprint, units);
        }
    }
    footprint.bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Policy;
    use crate::problem::Dtype;

    #[test]
    fn the_advertised_bytes_suffice_wherever_they_start_and_one_line_less_does_not() {
        let problem = Problem {
            q_heads: 3,
            ..Problem::causal(1000, 64, Dtype::F32)
        };
        let workers = (2, InstructionSet::widest());
        for budget in [
            Budget::Rows,
            Budget::Blocks,
            Budget::Residual,
            Budget::Paper,
        ] {
            let policy = Policy {
                budget,
                ..Policy::default()
            };
            let units = Units::new(&problem, &policy, 2);
            for units in [None, Some(&units)] {
                let needed = bytes(&problem, units, 2);
                let mut memory = vec![0u8; needed + 64];
                for start in 0..64 {
                    let memory = &mut memory[start..start + needed];
                    assert!(Workspace::carve(memory, &problem, units, workers).is_some());
                }
                let memory = &mut memory[..needed - 64];
                assert!(Workspace::carve(memory, &problem, units, workers).is_none());
            }
        }
    }
}
