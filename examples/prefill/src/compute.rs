//! The runs themselves, and what is measured of them.

use std::time::{Duration, Instant};

use sample_attention::{
    Coverage, Inputs, Outputs, Plan, Problem, Report, Selection, StageTimes, TensorViewMut,
};
use sample_attention_inputs::relative_error;

use crate::Asked;
use crate::args::{Backend, Request};
use crate::engine::{Engine, Machine};
use crate::failure::Failure;
use crate::memory;
use crate::picture;
use crate::progress::Bar;
use crate::treatment::Treatment;

/// What came out.
pub struct Outcome {
    /// Attention output [batch, q_heads, q_len, head_dim].
    pub o: Vec<f32>,
    /// Natural log-sum-exp [batch, q_heads, q_len].
    pub lse: Vec<f32>,
    /// What each head kept; the times are the median run's.
    pub report: Report,
    /// What was selected; `None` where everything was kept.
    pub selection: Option<Selection>,
    pub instruction_set: String,
    /// Of this machine's CPU.
    pub threads: usize,
    pub measured: Measured,
    pub comparison: Option<Comparison>,
}

/// How the times were taken.
#[derive(Clone, Copy, PartialEq)]
pub enum Measured {
    /// One run, from a cold start.
    Once,
    /// The median of this many, after a warm-up.
    Median(usize),
}

impl std::fmt::Display for Measured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Measured::Once => write!(f, "one run"),
            Measured::Median(runs) => write!(f, "median of {runs} runs after a warm-up"),
        }
    }
}

/// The same problem, dense.
pub struct Comparison {
    pub dense: Duration,
    /// True coverage of each head's rows.
    pub coverage: Vec<Coverage>,
    /// ‖O − O_dense‖ / ‖O_dense‖ of each head.
    pub head_errors: Vec<f64>,
    /// The same over all heads.
    pub error: f64,
}

/// Runs longer than this are measured once: a warm-up would change them little and cost much.
const LONG: Duration = Duration::from_millis(1500);
/// Time to spend on repeating short runs.
const REPEAT: Duration = Duration::from_millis(2500);
const MAX_RUNS: usize = 9;

/// Runs the request, and dense attention where it is to be compared with.
/// `drawn` heads will be in the picture.
pub fn run(asked: &Asked<'_>, machine: &Machine, drawn: usize) -> Result<Outcome, Failure> {
    let (request, input) = (asked.request, asked.input);
    let problem = *input.problem();
    let dense_plan = Plan::dense(problem)?;
    let inputs = input.capture.inputs()?;
    let engine = Engine::new(machine, problem, asked.treatment, &inputs)?;
    let workspace_bytes = engine.workspace_bytes().max(dense_plan.workspace_bytes());
    let needed = needed_bytes(request, &problem, workspace_bytes, drawn);
    memory::check(needed + engine.emulated_bytes(&problem))?;
    let mut workspace = vec![0; workspace_bytes];
    let elements = problem.q_shape().iter().product();
    let mut o = vec![0.0; elements];
    let mut lse = vec![0.0; problem.lse_len()];

    let mut sparse = Runner {
        engine: &engine,
        problem: &problem,
        inputs: &inputs,
        label: if request.dense { "dense" } else { "sparse" },
        times: Vec::new(),
    };
    let (mut report, selection) = sparse.run(&mut workspace, &mut o, &mut lse)?;
    let mut measured = Measured::Once;
    let mut comparison = None;
    if request.compare_dense {
        let dense_engine = Engine::new(machine, problem, &Treatment::Dense, &inputs)?;
        let mut dense = Runner {
            engine: &dense_engine,
            problem: &problem,
            inputs: &inputs,
            label: "dense",
            times: Vec::new(),
        };
        let mut dense_o = vec![0.0; elements];
        let mut dense_lse = vec![0.0; lse.len()];
        dense.run(&mut workspace, &mut dense_o, &mut dense_lse)?;
        let (head_errors, error) = relative_errors(&problem, &o, &dense_o);
        // The emulator's times say nothing that more of them would say better.
        let short = sparse.times[0].total() < LONG && dense.times[0].total() < LONG;
        if short && request.backend != Backend::Emulator {
            let started = Instant::now();
            // In turns, so that whatever else the machine does meets both. Every run gives the same bits.
            while sparse.times.len() <= MAX_RUNS
                && (sparse.times.len() < 4 || started.elapsed() < REPEAT)
            {
                sparse.run(&mut workspace, &mut o, &mut lse)?;
                dense.run(&mut workspace, &mut dense_o, &mut dense_lse)?;
            }
            measured = Measured::Median(sparse.times.len() - 1);
        }
        comparison = Some(Comparison {
            dense: dense.median().total(),
            coverage: dense_plan.true_coverage(&inputs, &lse, &mut workspace)?,
            head_errors,
            error,
        });
    }
    report.times = sparse.median();
    Ok(Outcome {
        o,
        lse,
        report,
        selection,
        instruction_set: machine.instruction_set(),
        threads: rayon::current_num_threads(),
        measured,
        comparison,
    })
}

/// One plan, run again and again.
struct Runner<'a> {
    engine: &'a Engine<'a>,
    problem: &'a Problem,
    inputs: &'a Inputs<'a>,
    label: &'static str,
    times: Vec<StageTimes>,
}

impl Runner<'_> {
    fn run(
        &mut self,
        workspace: &mut [u8],
        o: &mut [f32],
        lse: &mut [f32],
    ) -> Result<(Report, Option<Selection>), Failure> {
        let bar = Bar::new(self.label);
        let outputs = Outputs::new(TensorViewMut::bhsd(o, self.problem.q_shape())?).with_lse(lse);
        let (report, selection) = self.engine.run(self.inputs, outputs, workspace, &bar)?;
        self.times.push(report.times);
        Ok((report, selection))
    }

    /// Of the runs after the first one; of the first where there are no others.
    fn median(&self) -> StageTimes {
        let mut warm = self.times[usize::from(self.times.len() > 1)..].to_vec();
        warm.sort_by_key(StageTimes::total);
        warm[warm.len() / 2]
    }
}

/// Relative error of each head's output, and of all together.
fn relative_errors(problem: &Problem, o: &[f32], dense: &[f32]) -> (Vec<f64>, f64) {
    let head_elements = problem.q_len * problem.head_dim;
    let heads = o.chunks(head_elements).zip(dense.chunks(head_elements));
    let of_heads = heads.map(|(o, dense)| relative_error(o, dense)).collect();
    (of_heads, relative_error(o, dense))
}

/// Everything that a run allocates, roughly.
fn needed_bytes(
    request: &Request,
    problem: &Problem,
    workspace_bytes: usize,
    drawn: usize,
) -> u128 {
    let elements = |shape: [usize; 4]| shape.iter().map(|&size| size as u128).product::<u128>();
    let heads = (problem.batch * problem.q_heads) as u128;
    let outputs = 4 * elements(problem.q_shape()) + 4 * problem.lse_len() as u128;
    let compared = if request.compare_dense {
        4 * outputs
    } else {
        outputs
    };
    let blocks = (problem.k_len as u128)
        .div_ceil(sample_attention::BLOCK as u128)
        .pow(2);
    let listed = if request.output.is_some() {
        outputs + heads * blocks
    } else {
        0
    };
    let drawn = if request.picture.is_some() {
        4 * (elements(problem.q_shape()) + elements(problem.kv_shape()))
            + 12 * blocks
            + picture::bytes(problem, drawn)
    } else {
        0
    };
    workspace_bytes as u128 + compared + listed + drawn
}
