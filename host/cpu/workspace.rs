//! The buffers of a run, carved out of the caller's bytes.

use super::arena::{ALIGNMENT, Arena, Footprint};
use super::few_queries::Cut;
use super::per_row::TaskBuffers;
use super::sampling::BlockStats;
use super::scratch::Scratch;
use super::simd::{InstructionSet, Lanes};
use super::tile::Stats;
use super::units::Units;
use crate::policy::Budget;
use crate::problem::Problem;
use crate::selection::{SelectionMut, SelectionShape, StripeSpan};

/// Everything that a run works in.
pub(super) struct Workspace<'a> {
    pub(super) scratches: Vec<Scratch<'a>>,
    /// Results of ranges of keys, for few queries.
    pub(super) partials: &'a mut [f32],
    pub(super) selecting: Option<Selecting<'a>>,
}

/// What a plan that selects keeps besides: the selection, and the intermediate results of one wave.
pub(super) struct Selecting<'a> {
    pub(super) selection: SelectionMut<'a>,
    pub(super) totals: &'a mut [HeadTotals],
    pub(super) queries: &'a mut [Lanes],
    pub(super) row_stats: &'a mut [Stats],
    pub(super) blocks: &'a mut [BlockStats],
    pub(super) sinks: &'a mut [BlockStats],
    pub(super) mass: &'a mut [u64],
    pub(super) outside: &'a mut [u64],
    pub(super) covered: &'a mut [u64],
    /// One a worker for the budget of rows, else none.
    pub(super) tasks: Vec<TaskBuffers<'a>>,
}

/// What selection found of one head, over all its units.
#[derive(Clone, Copy, Debug, bytemuck::Zeroable, bytemuck::Pod)]
#[repr(C)]
pub(super) struct HeadTotals {
    /// Sampled rows whose softmax is finite, each of mass [`MASS_ONE`](super::MASS_ONE).
    pub(super) rows: u64,
    /// Mass that the mask keeps of them.
    pub(super) kept: u64,
    /// Sampled rows whose softmax is not finite.
    pub(super) non_finite: u64,
    /// Row and coverage of the sampled row of which the mask keeps the least; infinite where that is not known.
    pub(super) least_row: u64,
    pub(super) least: f64,
    /// Coverage of the last row; NaN where that is not known.
    pub(super) last: f64,
}

impl HeadTotals {
    pub(super) const EMPTY: HeadTotals = HeadTotals {
        rows: 0,
        kept: 0,
        non_finite: 0,
        least_row: 0,
        least: f64::INFINITY,
        last: f64::NAN,
    };

    /// Counts a row's coverage; the order of the rows does not matter.
    pub(super) fn add_row(&mut self, row: usize, coverage: f64, is_last: bool) {
        if (coverage, row as u64) < (self.least, self.least_row) {
            (self.least, self.least_row) = (coverage, row as u64);
        }
        if is_last {
            self.last = coverage;
        }
    }
}

impl HeadTotals {
    /// Counts the rows of other totals.
    pub(super) fn add_rows(&mut self, other: &HeadTotals) {
        self.add_row(other.least_row as usize, other.least, false);
        if !other.last.is_nan() {
            self.last = other.last;
        }
    }
}

/// Bytes of a wave's buffers, and what their alignment may take besides.
fn wave_bytes(units: &Units) -> usize {
    const BUFFERS: usize = 7;
    units.wave_bytes() + BUFFERS * ALIGNMENT
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
        let partials = arena.take(Cut::new(problem).partials_len())?;
        let selecting = match units {
            Some(units) => Some(Selecting::carve(&mut arena, problem, units, threads)?),
            None => None,
        };
        Some(Workspace {
            scratches,
            partials,
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
        let wave_bytes = arena.take(wave_bytes(units))?;
        let wave = &mut Arena::new(wave_bytes);
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
            queries: wave.take(units.wave * units.query_lanes())?,
            row_stats: wave.take(units.wave * units.panels)?,
            blocks: wave.take(units.wave * units.block_stats())?,
            sinks: wave.take(units.wave * units.sink_stats())?,
            mass: wave.take(units.wave * units.candidates())?,
            outside: wave.take(units.wave * units.outside_candidates())?,
            covered: wave.take(units.wave * units.reductions())?,
            tasks: (0..task_buffers(units, threads))
                .map(|_| TaskBuffers::carve(arena, units))
                .collect::<Option<_>>()?,
        })
    }
}

/// Bytes that [`Workspace::carve`] needs; `None` where they are more than any allocation has.
pub(crate) fn bytes(problem: &Problem, units: Option<&Units>, threads: usize) -> Option<usize> {
    let mut footprint = Footprint::new();
    let mut scratch = Footprint::new();
    Scratch::measure(&mut scratch, problem);
    footprint.repeat(&scratch, threads);
    footprint.take::<f32>(Cut::new(problem).partials_len(), 1);
    if let Some(units) = units {
        let shape = SelectionShape::new(problem);
        footprint.take::<u8>(wave_bytes(units), 1);
        footprint.take::<u64>(shape.words(), 1);
        footprint.take::<u32>(stripe_capacity(units), units.heads);
        footprint.take::<StripeSpan>(units.heads, 1);
        footprint.take::<u8>(units.heads, 1);
        footprint.take::<HeadTotals>(units.heads, 1);
        if units.budget == Budget::Rows {
            let mut task = Footprint::new();
            TaskBuffers::measure(&mut task, units);
            footprint.repeat(&task, threads);
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
                let needed = bytes(&problem, units, 2).unwrap();
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
