//! The runs themselves, and what is measured of them.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use sample_attention::squeeze::{Centroids, Index, IndexOptions, Keep, Report, Squeeze, Workspace};
use sample_attention::{Inputs, Outputs, Plan, Problem, TensorViewMut};
use sample_attention_inputs::relative_error;
use sample_attention_prefill::failure::Failure;

use crate::args::{Request, Target};
use crate::input::Input;

/// Times of a token and of all queries are medians of so many runs.
pub const RUNS: usize = 5;

/// What came out.
pub struct Outcome {
    pub index: Index,
    pub index_time: Duration,
    /// Whether it was read from a file.
    pub loaded: bool,
    pub rule: Centroids,
    pub report: Report,
    /// Of each query head: ‖O − O dense‖ / ‖O dense‖, and the share of dense attention's mass that was kept, mean over the queries.
    pub heads: Vec<(f64, f64)>,
    pub all: Times,
    pub token: Times,
    pub workspace_bytes: usize,
}

/// Squeezed beside dense.
pub struct Times {
    pub squeezed: Duration,
    pub dense: Duration,
}

/// O and LSE of some queries.
struct Attended {
    o: Vec<f32>,
    lse: Vec<f32>,
}

pub fn run(request: &Request, input: &Input, loads: bool) -> Result<Outcome, Failure> {
    let began = Instant::now();
    let index = match (&request.index, loads) {
        (Some(path), true) => load(path, input)?,
        _ => build(request, input)?,
    };
    let index_time = began.elapsed();
    let problem = *input.whole();
    let squeeze = squeeze(request, input, &index)?;
    let rule = *squeeze.rule();
    let (fixed, len) = (input.fixed, problem.k_len);
    let inputs = input.inputs(fixed..len, fixed..len)?;
    let mut workspace = Workspace::new();
    let mut report = None;
    let (attended, squeezed) = median(|| {
        let (attended, of_run) = attend(&squeeze, &inputs, &mut workspace)?;
        report = Some(of_run);
        Ok(attended)
    })?;
    let all_dense = problem.with_q_len(len - fixed);
    let (dense, dense_time) = median(|| densely(all_dense, &input.inputs(fixed..len, 0..len)?))?;
    let token = input.inputs(len - 1..len, fixed..len)?;
    let (_, token_time) = median(|| Ok(attend(&squeeze, &token, &mut workspace)?.0))?;
    let token_dense = input.inputs(len - 1..len, 0..len)?;
    let (_, token_dense) = median(|| densely(problem.with_q_len(1), &token_dense))?;
    Ok(Outcome {
        heads: compare(&attended, &dense, len - fixed, problem.head_dim),
        report: report.expect("the runs left one"),
        rule,
        workspace_bytes: squeeze
            .workspace_bytes(1, len - fixed, len - fixed)
            .map_err(Failure::new)?,
        all: Times {
            squeezed,
            dense: dense_time,
        },
        token: Times {
            squeezed: token_time,
            dense: token_dense,
        },
        loaded: loads,
        index_time,
        index,
    })
}

fn build(request: &Request, input: &Input) -> Result<Index, Failure> {
    let options = if request.published {
        IndexOptions::published()
    } else {
        IndexOptions::default()
    };
    let coarse = options
        .coarse_ratio
        .map(|ratio| ratio.min(request.clusters));
    let options = options
        .with_cluster_ratio(request.clusters)
        .with_coarse_ratio(coarse);
    let style = ProgressStyle::with_template("clustering [{bar:40}] {percent:>3} %  {elapsed}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(1).with_style(style);
    let (k, v) = (input.k(0..input.fixed)?, input.v(0..input.fixed)?);
    let index = Index::build_watched(&k, &v, options, &|done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    index.map_err(Failure::new)
}

fn load(path: &std::path::Path, input: &Input) -> Result<Index, Failure> {
    let index = Index::load(path).map_err(|error| Failure::of("--index", error))?;
    let (k, v) = (input.k(0..input.fixed)?, input.v(0..input.fixed)?);
    if !index.holds(&k, &v) {
        return Err(Failure::of(
            format_args!("--index {}", path.display()),
            format_args!(
                "it holds another fixed context than the first {} positions of this input: name another file, or remove it",
                input.fixed
            ),
        ));
    }
    Ok(index)
}

/// The rule with its threshold, from the fixed context's own last queries.
fn squeeze<'a>(request: &Request, input: &Input, index: &'a Index) -> Result<Squeeze<'a>, Failure> {
    let rule = if request.published {
        Centroids::published()
    } else {
        Centroids::default().with_score(request.score)
    };
    let rule = rule.with_block(request.block);
    let problem = input.whole();
    let squeeze = Squeeze::new(index, rule, problem.q_heads, problem.softmax_scale);
    let squeeze = squeeze.map_err(Failure::new)?;
    let observed = || {
        let window = input.fixed - index.window()..input.fixed;
        squeeze.observe(&input.q(window)?).map_err(Failure::new)
    };
    let threshold = if index.outside() == index.len() {
        // There are no clusters to keep.
        1.0
    } else {
        match request.target {
            Target::Threshold(threshold) => threshold,
            Target::Coverage(coverage) => observed()?
                .threshold_for_coverage(coverage)
                .map_err(Failure::new)?,
            Target::Share(share) => observed()?
                .threshold_for_share(share)
                .map_err(Failure::new)?,
        }
    };
    let coarse = request.two_levels.then_some(threshold / 10.0);
    let rule = rule
        .with_keep(Keep::Threshold(threshold))
        .with_coarse_threshold(coarse);
    squeeze.with_rule(rule).map_err(Failure::new)
}

fn attend(
    squeeze: &Squeeze<'_>,
    inputs: &Inputs<'_>,
    workspace: &mut Workspace,
) -> Result<(Attended, Report), Failure> {
    let problem = squeeze.problem(1, inputs.q.shape()[2], inputs.k.shape()[2]);
    let mut attended = Attended::room(&problem);
    let outputs = attended.outputs(&problem)?;
    let report = squeeze
        .attend(inputs, outputs, workspace)
        .map_err(Failure::new)?;
    Ok((attended, report))
}

fn densely(problem: Problem, inputs: &Inputs<'_>) -> Result<Attended, Failure> {
    let plan = Plan::dense(problem)?;
    let mut workspace = vec![0; plan.workspace_bytes()];
    let mut attended = Attended::room(&problem);
    let outputs = attended.outputs(&problem)?;
    plan.run(inputs, outputs, &mut workspace)?;
    Ok(attended)
}

impl Attended {
    fn room(problem: &Problem) -> Self {
        Attended {
            o: vec![0.0; problem.q_shape().iter().product()],
            lse: vec![0.0; problem.lse_len()],
        }
    }

    fn outputs(&mut self, problem: &Problem) -> Result<Outputs<'_>, Failure> {
        let o = TensorViewMut::bhsd(&mut self.o, problem.q_shape())?;
        Ok(Outputs::new(o).with_lse(&mut self.lse))
    }
}

/// What the last run gives, and the median time of [`RUNS`] after one to warm up.
fn median(
    mut run: impl FnMut() -> Result<Attended, Failure>,
) -> Result<(Attended, Duration), Failure> {
    let mut last = run()?;
    let mut times = Vec::with_capacity(RUNS);
    for _ in 0..RUNS {
        let began = Instant::now();
        last = run()?;
        times.push(began.elapsed());
    }
    times.sort_unstable();
    Ok((last, times[RUNS / 2]))
}

fn compare(squeezed: &Attended, dense: &Attended, rows: usize, dim: usize) -> Vec<(f64, f64)> {
    let o = squeezed.o.chunks_exact(rows * dim);
    let o = o.zip(dense.o.chunks_exact(rows * dim));
    let lse = squeezed.lse.chunks_exact(rows);
    let lse = lse.zip(dense.lse.chunks_exact(rows));
    o.zip(lse)
        .map(|((o, dense_o), (lse, dense_lse))| {
            let shares = lse
                .iter()
                .zip(dense_lse)
                .map(|(kept, all)| f64::from(kept - all).exp());
            (
                relative_error(o, dense_o),
                shares.sum::<f64>() / rows as f64,
            )
        })
        .collect()
}
