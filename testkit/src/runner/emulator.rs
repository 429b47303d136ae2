//! The GPU kernels on the emulator.

use sample_attention::cpu::{SampledRow, UnitMass};
use sample_attention::emulator;
use sample_attention::pipeline::{GPU_BREAK_EVEN_TOKENS, Target, Watch};
use sample_attention::{Inputs, Outputs, Problem, Result};

use super::{Attend, Backend, Found, gpu_kernels};

/// The emulator under given circumstances, none of which may change a result.
#[derive(Clone, Copy, Debug)]
pub struct Emulator {
    /// Fast or checked.
    pub emulator: emulator::Emulator,
    /// Bytes of the buffers of one wave; few for many waves.
    pub wave_bytes: Option<u64>,
}

impl Default for Emulator {
    fn default() -> Self {
        Emulator {
            emulator: emulator::Emulator::FAST,
            wave_bytes: None,
        }
    }
}

impl Emulator {
    /// The kernels for Hopper.
    pub fn hopper() -> Self {
        Emulator {
            emulator: emulator::Emulator::FAST.with_target(Target::Sm90a),
            ..Self::default()
        }
    }

    /// The checked mode, in the order of threads that the seed draws.
    pub fn checked(seed: u64) -> Self {
        Emulator {
            emulator: emulator::Emulator::checked(seed),
            ..Self::default()
        }
    }
}

impl Watch for Found {
    fn sampled(&mut self, rows: Vec<SampledRow>) {
        self.sampled.extend(rows);
    }

    fn reduced(&mut self, unit: UnitMass<'_>) {
        self.units.push(unit.into());
    }
}

impl Backend for Emulator {
    fn name(&self) -> String {
        format!("{self:?}")
    }

    fn supports(&self, problem: &Problem) -> bool {
        gpu_kernels::support(problem)
    }

    fn break_even_tokens(&self) -> usize {
        GPU_BREAK_EVEN_TOKENS
    }

    fn keeps_f32(&self) -> bool {
        false
    }

    fn run(
        &self,
        problem: &Problem,
        attend: &Attend,
        inputs: &Inputs<'_>,
        outputs: Outputs<'_>,
    ) -> Result<Found> {
        let mut found = Found::default();
        let plan = gpu_kernels::plan(problem, attend, self.wave_bytes)?;
        if let Attend::Own(selection) = attend {
            self.emulator.attend(&plan, inputs, selection, outputs)?;
            return Ok(found);
        }
        let run = self
            .emulator
            .run_watched(&plan, inputs, outputs, &mut found)?;
        // Several waves tell of several heads by turns.
        found
            .sampled
            .sort_by_key(|row| (row.batch, row.q_head, row.row));
        found
            .units
            .sort_by_key(|unit| (unit.batch, unit.q_head, unit.first_query_block));
        found.report = Some(run.report);
        found.selection = run.selection;
        Ok(found)
    }
}
