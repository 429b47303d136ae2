//! The buffers of a run, carved out of the caller's bytes.

use super::arena::{ALIGNMENT, Arena, Footprint};
use super::few_queries::Cut;
use super::per_row::TaskBuffers;
use super::reduction::{MASS_ONE, MassBuffers, Sampled};
use super::sampling::{BlockStats, SamplingBuffers};
use super::scratch::Scratch;
use super::simd::{InstructionSet, Lanes};
use super::tile::Stats;
use super::top_k::Masses;
use super::totals::HeadTotals;
use super::units::Units;
use crate::policy::Budget;
use crate::problem::Problem;
use crate::report::{KeptKeys, RowCoverage, SelectedHead};
use crate::selection::{SelectionMut, SelectionShape, StripeSpan};

/// Everything that a run works in.
pub(super) struct Workspace<'a> {
    pub(super) scratches: Vec<Scratch<'a>>,
    /// Results of ranges of keys, for few queries.
    pub(super) partials: &'a mut [f32],
    pub(super) selecting: Option<Selecting<'a>>,
    /// One a worker where the budget is of rows, else none.
    pub(super) task_buffers: Vec<TaskBuffers<'a>>,
}

/// What a plan that selects keeps besides: the selection, and the intermediate results of one wave.
pub(super) struct Selecting<'a> {
    pub(super) selection: SelectionMut<'a>,
    pub(super) totals: &'a mut [HeadTotals],
    pub(super) wave: WaveBuffers<'a>,
}

/// What sampling and reduction leave of the units of one wave.
pub(super) struct WaveBuffers<'a> {
    queries: &'a mut [Lanes],
    pub(super) row_stats: &'a mut [Stats],
    blocks: &'a mut [BlockStats],
    sinks: &'a mut [BlockStats],
    pub(super) mass: &'a mut [u64],
    outside: &'a mut [u64],
    covered: &'a mut [u64],
}

impl WaveBuffers<'_> {
    pub(super) fn sampling(&mut self) -> SamplingBuffers<'_> {
        SamplingBuffers {
            queries: self.queries,
            row_stats: self.row_stats,
            blocks: self.blocks,
            sinks: self.sinks,
        }
    }

    fn sampled(&self) -> Sampled<'_> {
        Sampled {
            queries: self.queries,
            row_stats: self.row_stats,
            blocks: self.blocks,
            sinks: self.sinks,
        }
    }

    pub(super) fn reduction(&mut self) -> (Sampled<'_>, MassBuffers<'_>) {
        let sampled = Sampled {
            queries: self.queries,
            row_stats: self.row_stats,
            blocks: self.blocks,
            sinks: self.sinks,
        };
        let masses = MassBuffers {
            mass: self.mass,
            outside: self.outside,
            covered: self.covered,
        };
        (sampled, masses)
    }

    pub(super) fn masses<'m>(&'m self, units: &'m Units, coverage: f32) -> Masses<'m> {
        Masses {
            units,
            coverage,
            mass: self.mass,
            outside: self.outside,
            covered: self.covered,
            sampled: self.sampled(),
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
        let mut task_buffers = Vec::new();
        let selecting = match units {
            Some(units) => {
                task_buffers = carve_task_buffers(&mut arena, units, threads)?;
                Some(Selecting::carve(&mut arena, problem, units)?)
            }
            None => None,
        };
        Some(Workspace {
            scratches,
            partials,
            selecting,
            task_buffers,
        })
    }
}

/// One a worker where the budget is of rows, else none.
pub(super) fn carve_task_buffers<'a>(
    arena: &mut Arena<'a>,
    units: &Units,
    threads: usize,
) -> Option<Vec<TaskBuffers<'a>>> {
    let count = match units.budget {
        Budget::Rows => threads,
        Budget::Blocks | Budget::Residual | Budget::Paper => 0,
    };
    (0..count)
        .map(|_| TaskBuffers::carve(arena, units))
        .collect()
}

/// Counts what [`carve_task_buffers`] takes.
pub(super) fn measure_task_buffers(footprint: &mut Footprint, units: &Units, threads: usize) {
    if units.budget == Budget::Rows {
        let mut task = Footprint::new();
        TaskBuffers::measure(&mut task, units);
        footprint.repeat(&task, threads);
    }
}

impl<'a> Selecting<'a> {
    pub(super) fn carve(arena: &mut Arena<'a>, problem: &Problem, units: &Units) -> Option<Self> {
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
            wave: WaveBuffers {
                queries: wave.take(units.wave * units.query_lanes())?,
                row_stats: wave.take(units.wave * units.panels)?,
                blocks: wave.take(units.wave * units.block_stats())?,
                sinks: wave.take(units.wave * units.sink_stats())?,
                mass: wave.take(units.wave * units.candidates())?,
                outside: wave.take(units.wave * units.outside_candidates())?,
                covered: wave.take(units.wave * units.reductions())?,
            },
        })
    }

    /// Counts what [`Selecting::carve`] takes.
    pub(super) fn measure(footprint: &mut Footprint, problem: &Problem, units: &Units) {
        let shape = SelectionShape::new(problem);
        footprint.take::<u8>(wave_bytes(units), 1);
        footprint.take::<u64>(shape.words(), 1);
        footprint.take::<u32>(stripe_capacity(units), units.heads);
        footprint.take::<StripeSpan>(units.heads, 1);
        footprint.take::<u8>(units.heads, 1);
        footprint.take::<HeadTotals>(units.heads, 1);
    }

    /// What was found of a head, for reports.
    pub(super) fn found(&self, head: usize) -> SelectedHead<'_> {
        let totals = self.totals[head];
        SelectedHead {
            kept: KeptKeys::Mask(self.selection.as_ref().head(head)),
            sampled_coverage: (totals.rows > 0)
                .then(|| totals.kept as f64 / (totals.rows as f64 * MASS_ONE as f64)),
            non_finite_rows: Some(totals.non_finite as usize),
            least_covered_row: totals.least.is_finite().then_some(RowCoverage {
                row: totals.least_row as usize,
                coverage: totals.least,
            }),
            last_row_coverage: Some(totals.last).filter(|coverage| !coverage.is_nan()),
        }
    }

    /// Back to windows and sinks, of which nothing is known.
    pub(super) fn reset(&mut self, units: &Units) {
        self.selection.reset(units.window_blocks);
        self.totals.fill(HeadTotals::EMPTY);
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
        measure_task_buffers(&mut footprint, units, threads);
        Selecting::measure(&mut footprint, problem, units);
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
