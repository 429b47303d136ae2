//! The native backend, driven stage by stage so that every intermediate result is seen.

use sample_attention::cpu::InstructionSet;
use sample_attention::{Inputs, Outputs, Plan, Problem, Result};

use super::{Attend, Backend, Found, UnitFound};

/// The CPU backend under given circumstances, none of which may change a result (the instruction set: beyond rounding).
#[derive(Clone, Copy, Debug)]
pub struct Cpu {
    /// Tasks at a time.
    pub threads: usize,
    /// What every byte of the workspace holds before the run.
    pub workspace_fill: u8,
    /// What the tiles are compiled for.
    pub instruction_set: InstructionSet,
    /// Whether to ask for the true coverage too.
    pub coverage: bool,
}

impl Default for Cpu {
    fn default() -> Self {
        Cpu {
            threads: 2,
            workspace_fill: 0xff,
            instruction_set: InstructionSet::widest(),
            coverage: false,
        }
    }
}

/// Bytes before and after the workspace.
const RED_ZONE: usize = 128;
const RED: u8 = 0xa5;

impl Cpu {
    /// `bytes` bytes at an odd address, to be worked in by `work`.
    fn in_workspace<T>(&self, bytes: usize, work: impl FnOnce(&mut [u8]) -> T) -> T {
        let mut memory = vec![RED; bytes + 2 * RED_ZONE];
        let start = RED_ZONE - 1 - memory.as_ptr().addr() % 2;
        let workspace = &mut memory[start..start + bytes];
        workspace.fill(self.workspace_fill);
        let result = work(workspace);
        let around = memory[..start].iter().chain(&memory[start + bytes..]);
        assert!(
            around.into_iter().all(|&byte| byte == RED),
            "a byte beyond the workspace was written"
        );
        result
    }

    fn plan(&self, problem: &Problem, attend: &Attend) -> Result<Plan> {
        match attend {
            Attend::Policy(policy) => Plan::new(*problem, *policy),
            Attend::Dense | Attend::Own(_) => Plan::dense(*problem),
        }?
        .with_threads(self.threads)?
        .with_instruction_set(self.instruction_set)
    }
}

impl Backend for Cpu {
    fn name(&self) -> String {
        format!("cpu, {self:?}")
    }

    fn keeps_f32(&self) -> bool {
        true
    }

    fn run(
        &self,
        problem: &Problem,
        attend: &Attend,
        inputs: &Inputs<'_>,
        outputs: Outputs<'_>,
    ) -> Result<Found> {
        let plan = self.plan(problem, attend)?;
        let mut found = Found::default();
        let Outputs { o, mut lse, .. } = outputs;
        let mut outputs = Outputs::new(o);
        outputs.lse = lse.as_deref_mut();
        self.in_workspace(plan.workspace_bytes(), |workspace| {
            if let Attend::Own(selection) = attend {
                return plan.attend(inputs, selection, outputs, workspace);
            }
            let mut stages = plan.stages(inputs, workspace)?;
            for wave in 0..stages.waves() {
                stages.sampling(wave)?;
                found.sampled.extend(stages.sampled_rows(wave)?);
                stages.reduction(wave)?;
                found
                    .units
                    .extend(stages.masses(wave)?.into_iter().map(UnitFound::from));
                stages.top_k(wave)?;
            }
            stages.sparse_flash(outputs)?;
            found.selection = stages.selection();
            found.report = Some(stages.report());
            Ok(())
        })?;
        if let (true, Some(lse)) = (self.coverage, lse) {
            let coverage = self.in_workspace(plan.workspace_bytes(), |workspace| {
                plan.true_coverage(inputs, lse, workspace)
            })?;
            found.coverage = Some(coverage);
        }
        Ok(found)
    }
}
