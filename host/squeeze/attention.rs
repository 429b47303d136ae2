//! Attention over a fixed context through its index, and over the queries' own tokens.
//!
//! ```text
//! O, LSE = dense causal attention over the own tokens, merged with dense attention over sinks and window
//! for each (sequence, key/value head, query block):                                              one task
//!     look up which clusters the block keeps, with LSE in the total
//!     their runs of keys and values, 2048 rows at a time: dense attention, merged into O and LSE
//! ```
//!
//! Parts are merged by their log-sum-exps, in f64: exact up to the rounding of an f32 LSE, 6e-8 of its magnitude.

use std::time::{Duration, Instant};

use super::error::{Error, Result};
use super::index::Index;
use super::level::Level;
use super::lookup::{Block, Kept, LevelRule, LookUp};
use super::merge::merge;
use super::observed::Observed;
use super::report::{HeadReport, Report};
use super::rows::{Gathered, part, write_row};
use super::rule::{Centroids, Keep};
use super::workspace::{Worker, WorkerShape, Workspace, sized};
use crate::cpu::{InstructionSet, MAX_THREADS, Plan, for_each_task};
use crate::problem::Problem;
use crate::tensor::{Inputs, Outputs, TensorView, TensorViewMut};

/// Rows of kept clusters that are copied together at a time.
const CHUNK: usize = 2048;

/// How queries attend to a fixed context: an index and a rule, validated once.
///
/// ```
/// use sample_attention::squeeze::{Centroids, Index, IndexOptions, Squeeze, Workspace};
/// use sample_attention::{Inputs, Outputs, TensorView, TensorViewMut};
/// let fixed = vec![0.25f32; 2 * 1000 * 64];
/// let fixed = TensorView::bhsd(&fixed, [1, 2, 1000, 64])?;
/// let index = Index::build(&fixed, &fixed, IndexOptions::default())?;
///
/// // Four query heads share two key/value heads; one token, which is also its own only key.
/// let squeeze = Squeeze::new(&index, Centroids::default(), 4, 1.0 / 8.0)?;
/// let (q, own) = (vec![0.5f32; 4 * 64], vec![0.25f32; 2 * 64]);
/// let own = TensorView::bhsd(&own, [1, 2, 1, 64])?;
/// let inputs = Inputs::new(TensorView::bhsd(&q, [1, 4, 1, 64])?, own, own);
/// let mut o = vec![0f32; 4 * 64];
/// let outputs = Outputs::new(TensorViewMut::bhsd(&mut o, [1, 4, 1, 64])?);
/// let report = squeeze.attend(&inputs, outputs, &mut Workspace::new())?;
/// assert!(report.mean_share() <= 1.0);
/// assert!(o.iter().all(|&x| x == 0.25));
/// # Ok::<(), sample_attention::squeeze::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Squeeze<'a> {
    index: &'a Index,
    rule: Centroids,
    q_heads: usize,
    softmax_scale: f32,
    threads: usize,
    instruction_set: InstructionSet,
}

/// One query block of one key/value head, and its part of O and LSE: [group, rows, head_dim] and [group, rows].
struct Task<'a> {
    batch: usize,
    kv_head: usize,
    first_row: usize,
    rows: usize,
    o: &'a mut [f32],
    lse: &'a mut [f32],
    done: &'a mut Done,
}

/// What became of a task.
#[derive(Clone, Default)]
struct Done {
    kept: Kept,
    clusters: Vec<u32>,
    lookup: Duration,
    attention: Duration,
    failed: Option<Error>,
}

/// Keys and values that all queries attend to in one dense pass.
struct Dense<'a> {
    k: TensorView<'a>,
    v: TensorView<'a>,
    causal: bool,
}

impl<'a> Squeeze<'a> {
    /// Attention of `q_heads` query heads, a multiple of the index's key/value heads, by a rule. On as many threads as the current rayon pool
    /// has; the bits do not depend on their number.
    ///
    /// # Errors
    /// [`Error::Rule`], [`Error::Missing`], and heads or a scale that no [`Problem`] has.
    pub fn new(
        index: &'a Index,
        rule: Centroids,
        q_heads: usize,
        softmax_scale: f32,
    ) -> Result<Self> {
        rule.check(index)?;
        let squeeze = Squeeze {
            index,
            rule,
            q_heads,
            softmax_scale,
            threads: rayon::current_num_threads().min(MAX_THREADS),
            instruction_set: InstructionSet::widest(),
        };
        squeeze.problem(1, 1, 1).validate()?;
        Ok(squeeze)
    }

    /// The same on `threads` tasks at a time.
    ///
    /// # Errors
    /// [`crate::Error::NoThreads`].
    pub fn with_threads(self, threads: usize) -> Result<Self> {
        if threads == 0 {
            return Err(crate::Error::NoThreads.into());
        }
        let threads = threads.min(MAX_THREADS);
        Ok(Squeeze { threads, ..self })
    }

    /// The same over the same index by another rule.
    ///
    /// # Errors
    /// As [`Squeeze::new`].
    pub fn with_rule(self, rule: Centroids) -> Result<Self> {
        rule.check(self.index)?;
        Ok(Squeeze { rule, ..self })
    }

    /// The rule.
    pub fn rule(&self) -> &Centroids {
        &self.rule
    }

    /// The problem of `q_len` queries over `own_len` own tokens, apart from the fixed context.
    pub fn problem(&self, batch: usize, q_len: usize, own_len: usize) -> Problem {
        Problem::causal(own_len, self.index.head_dim(), self.index.dtype())
            .with_batch(batch)
            .with_heads(self.q_heads, self.index.kv_heads())
            .with_q_len(q_len)
            .with_softmax_scale(self.softmax_scale)
    }

    /// Bytes that a call works in at most, beyond the index, its inputs and outputs: those of its [`Workspace`].
    ///
    /// # Errors
    /// Sizes that no [`Problem`] has.
    pub fn workspace_bytes(&self, batch: usize, q_len: usize, own_len: usize) -> Result<usize> {
        let problem = self.problem(batch, q_len, own_len);
        let mut dense = Plan::dense(problem)?
            .with_threads(self.threads)?
            .workspace_bytes();
        if self.index.outside > 0 {
            let outside = problem.with_k_len(self.index.outside).with_causal(false);
            let plan = Plan::dense(outside)?.with_threads(self.threads)?;
            dense = dense.max(plan.workspace_bytes());
        }
        let o: usize = problem.q_shape().iter().product();
        let worker = self.worker(q_len)?.bytes();
        Ok(dense + 8 * (o + problem.lse_len()) + self.threads * worker)
    }

    /// Attends: `inputs.q` [batch, q_heads, q_len, head_dim] to the fixed context, which every query sees, and to the queries' own tokens
    /// `inputs.k` and `inputs.v` [batch, kv_heads, own_len, head_dim], which stand after it, causally: query i sees own keys
    /// j ≤ i + own_len − q_len. One token of a decode has q_len 1; a user's input that is prefilled has q_len = own_len.
    ///
    /// # Errors
    /// Tensors that do not fit, and [`Error::Uncalibrated`].
    pub fn attend(
        &self,
        inputs: &Inputs<'_>,
        mut outputs: Outputs<'_>,
        workspace: &mut Workspace,
    ) -> Result<Report> {
        if self.rule.keep == Keep::Uncalibrated {
            return Err(Error::Uncalibrated);
        }
        let [batch, _, q_len, _] = inputs.q.shape();
        let problem = self.problem(batch, q_len, inputs.k.shape()[2]);
        problem.validate()?;
        inputs.check(&problem)?;
        outputs.check(&problem)?;
        let began = Instant::now();
        let mut dense = vec![Dense {
            k: inputs.k,
            v: inputs.v,
            causal: true,
        }];
        if self.index.outside > 0 {
            dense.push(Dense {
                k: self.index.keys.shared(batch, self.index.outside)?,
                v: self.index.values.shared(batch, self.index.outside)?,
                causal: false,
            });
        }
        self.attend_densely(&inputs.q, &dense, workspace)?;
        let dense_time = began.elapsed();
        let blocks = q_len.div_ceil(self.rule.block);
        let mut done = vec![Done::default(); blocks * batch * self.index.kv_heads()];
        self.make_workers(q_len, workspace)?;
        let mut workers = std::mem::take(&mut workspace.workers);
        let tasks = self.tasks(batch, q_len, workspace, &mut done);
        for_each_task(&mut workers, tasks.into_iter(), |worker, task| {
            self.run(&inputs.q, worker, task);
        });
        workspace.workers = workers;
        if let Some(error) = done.iter_mut().find_map(|done| done.failed.take()) {
            return Err(error);
        }
        self.store(batch, q_len, workspace, &mut outputs);
        Ok(self.report(batch, q_len, done, dense_time))
    }

    /// Attends several requests that share the index, each with a length and own tokens of its own, and each as [`Squeeze::attend`] does.
    ///
    /// # Errors
    /// The first request's that fails; the outputs of those before it have been written then.
    pub fn attend_ragged<'r>(
        &self,
        requests: impl IntoIterator<Item = (Inputs<'r>, Outputs<'r>)>,
        workspace: &mut Workspace,
    ) -> Result<Vec<Report>> {
        requests
            .into_iter()
            .map(|(inputs, outputs)| self.attend(&inputs, outputs, workspace))
            .collect()
    }

    /// What the queries of the observation window, [1, q_heads, window, head_dim] with window = [`Index::window`], would look up by the
    /// rule, whatever it keeps: for thresholds. They stand where they stood in the fixed context, and see of the window what causality
    /// leaves them.
    ///
    /// # Errors
    /// Tensors that do not fit.
    pub fn observe(&self, q: &TensorView<'_>) -> Result<Observed> {
        let index = self.index;
        let window = index.window();
        let problem = self.problem(1, window, window);
        problem.validate()?;
        q.check("q", problem.q_shape(), index.dtype())?;
        let sinks = index.outside - window;
        let (keys, values) = (index.keys.view()?, index.values.view()?);
        let heads = 0..index.kv_heads();
        let rows = sinks..index.outside;
        let mut dense = vec![Dense {
            k: part(&keys, 0, heads.clone(), rows.clone())?,
            v: part(&values, 0, heads, rows)?,
            causal: true,
        }];
        if sinks > 0 {
            dense.push(Dense {
                k: index.keys.shared(1, sinks)?,
                v: index.values.shared(1, sinks)?,
                causal: false,
            });
        }
        let mut workspace = Workspace::new();
        self.attend_densely(q, &dense, &mut workspace)?;
        let mut done = vec![Done::default(); window.div_ceil(self.rule.block) * index.kv_heads()];
        let tasks = self.tasks(1, window, &mut workspace, &mut done);
        let mut workers: Vec<(LookUp, Observed)> = (0..self.threads)
            .map(|_| (LookUp::new(index, self.group()), Observed::new()))
            .collect();
        for_each_task(&mut workers, tasks.into_iter(), |worker, task| {
            self.observe_task(q, worker, &task);
        });
        let mut all = Observed::new();
        for (_, observed) in &workers {
            all.merge(observed);
        }
        Ok(all)
    }

    fn observe_task(
        &self,
        q: &TensorView<'_>,
        (lookup, observed): &mut (LookUp, Observed),
        task: &Task<'_>,
    ) {
        let head = &self.index.heads[task.kv_head];
        let block = self.block(q, task);
        let one_level = self.rule.with_coarse_threshold(None);
        let scale_log2 = self.problem(1, 1, 1).scale_log2();
        lookup.score(
            self.index,
            &one_level,
            &block,
            scale_log2,
            self.instruction_set,
        );
        let rows = task.rows as f64;
        for (cluster, &estimate) in lookup.estimates[..head.fine.len()].iter().enumerate() {
            let masses = (0..block.group).map(|of| lookup.mass(&head.fine, of, cluster));
            let keys = u64::from(head.fine.count(cluster)) * task.rows as u64;
            observed.add(estimate, keys, masses.sum::<f64>() * rows);
        }
        let known = lookup.known_share[..block.group].iter().sum::<f64>() * rows;
        observed.add_rows(task.rows * block.group, known);
        if let Some(coarse) = &head.coarse {
            let rule = LevelRule::new(self.index, &self.rule, scale_log2, self.instruction_set);
            lookup.score_coarse(coarse, &rule, &block);
            for (cluster, &estimate) in lookup.coarse_estimates[..coarse.len()].iter().enumerate() {
                let keys = u64::from(coarse.count(cluster)) * task.rows as u64;
                observed.add_coarse(estimate, keys);
            }
        }
    }

    fn group(&self) -> usize {
        self.q_heads / self.index.kv_heads()
    }

    fn block<'b>(&self, q: &'b TensorView<'b>, task: &'b Task<'_>) -> Block<'b> {
        Block {
            q,
            batch: task.batch,
            kv_head: task.kv_head,
            group: self.group(),
            first_row: task.first_row,
            rows: task.rows,
            known: task.lse,
        }
    }

    fn worker(&self, q_len: usize) -> Result<Worker> {
        let rows = self.group() * q_len.min(self.rule.block);
        let problem = self.chunk_problem(q_len.min(self.rule.block), CHUNK);
        let plan = Plan::dense(problem)?.with_threads(1)?;
        Ok(Worker {
            lookup: LookUp::new(self.index, self.group()),
            keys: Gathered::new(&self.index.keys, CHUNK),
            values: Gathered::new(&self.index.values, CHUNK),
            dense: vec![0; plan.workspace_bytes()],
            o: vec![0.0; rows * self.index.head_dim()],
            lse: vec![0.0; rows],
        })
    }

    /// Workers for this call, unless those of the last one fit.
    fn make_workers(&self, q_len: usize, workspace: &mut Workspace) -> Result<()> {
        let heads = &self.index.heads;
        let coarse = heads.iter().filter_map(|head| head.coarse.as_ref());
        let shape = WorkerShape {
            dtype: self.index.dtype(),
            head_dim: self.index.head_dim(),
            group: self.group(),
            rows: q_len.min(self.rule.block),
            clusters: heads.iter().map(|head| head.fine.len()).max().unwrap_or(0),
            coarse_clusters: coarse.map(Level::len).max().unwrap_or(0),
            threads: self.threads,
        };
        if workspace.made_for != Some(shape) {
            workspace.made_for = None;
            workspace.workers = (0..self.threads)
                .map(|_| self.worker(q_len))
                .collect::<Result<_>>()?;
            workspace.made_for = Some(shape);
        }
        Ok(())
    }

    /// A block over some rows of one key/value head, all of which it sees.
    fn chunk_problem(&self, rows: usize, keys: usize) -> Problem {
        self.problem(1, rows, keys)
            .with_heads(self.group(), 1)
            .with_causal(false)
    }

    /// O and LSE over the parts, block by block as [`Squeeze::tasks`] takes them.
    fn attend_densely(
        &self,
        q: &TensorView<'_>,
        parts: &[Dense<'_>],
        workspace: &mut Workspace,
    ) -> Result<()> {
        let [batch, _, q_len, dim] = q.shape();
        let rows = batch * self.q_heads * q_len;
        let known = sized(&mut workspace.known, rows * dim);
        let known_lse = sized(&mut workspace.known_lse, rows);
        known_lse.fill(f32::NEG_INFINITY);
        for part in parts {
            let problem = self
                .problem(batch, q_len, part.k.shape()[2])
                .with_causal(part.causal);
            let plan = Plan::dense(problem)?.with_threads(self.threads)?;
            let o = sized(&mut workspace.part, rows * dim);
            let lse = sized(&mut workspace.part_lse, rows);
            let memory = sized(&mut workspace.dense, plan.workspace_bytes());
            let outputs = Outputs::new(TensorViewMut::bhsd(o, problem.q_shape())?).with_lse(lse);
            plan.run(&Inputs::new(*q, part.k, part.v), outputs, memory)?;
            for (row, place) in self.places(batch, q_len).enumerate() {
                merge(
                    (&mut known[row * dim..][..dim], &mut known_lse[row]),
                    (
                        &workspace.part[place * dim..][..dim],
                        workspace.part_lse[place],
                    ),
                );
            }
        }
        Ok(())
    }

    /// For each row in the order of the tasks, its place in [batch, q_heads, q_len].
    fn places(&self, batch: usize, q_len: usize) -> impl Iterator<Item = usize> + use<> {
        let (block, heads) = (self.rule.block, batch * self.q_heads);
        (0..q_len).step_by(block).flat_map(move |first| {
            (0..heads).flat_map(move |head| {
                (first..first.saturating_add(block).min(q_len)).map(move |row| head * q_len + row)
            })
        })
    }

    fn tasks<'t>(
        &self,
        batch: usize,
        q_len: usize,
        workspace: &'t mut Workspace,
        done: &'t mut [Done],
    ) -> Vec<Task<'t>> {
        let dim = self.index.head_dim();
        let (mut o, mut lse) = (&mut workspace.known[..], &mut workspace.known_lse[..]);
        let mut done = done.iter_mut();
        let mut tasks = Vec::with_capacity(done.len());
        for first_row in (0..q_len).step_by(self.rule.block) {
            let rows = self.rule.block.min(q_len - first_row);
            let of_group = self.group() * rows;
            for head in 0..batch * self.index.kv_heads() {
                tasks.push(Task {
                    batch: head / self.index.kv_heads(),
                    kv_head: head % self.index.kv_heads(),
                    first_row,
                    rows,
                    o: take(&mut o, of_group * dim),
                    lse: take(&mut lse, of_group),
                    done: done.next().expect("one for each task"),
                });
            }
        }
        tasks
    }

    /// Looks up and attends.
    fn run(&self, q: &TensorView<'_>, worker: &mut Worker, task: Task<'_>) {
        let began = Instant::now();
        let head = &self.index.heads[task.kv_head];
        let scale_log2 = self.problem(1, 1, 1).scale_log2();
        let block = self.block(q, &task);
        let lookup = &mut worker.lookup;
        lookup.score(
            self.index,
            &self.rule,
            &block,
            scale_log2,
            self.instruction_set,
        );
        let kept = lookup.keep(&head.fine, &self.rule, self.group());
        let clusters = lookup.kept.clone();
        let looked_up = Instant::now();
        let Task {
            batch,
            kv_head,
            first_row,
            rows,
            o,
            lse,
            done,
        } = task;
        let heads = kv_head * self.group()..(kv_head + 1) * self.group();
        let mut attend = |worker: &mut Worker| -> Result<()> {
            let q = part(q, batch, heads.clone(), first_row..first_row + rows)?;
            self.attend_chunk(&q, worker, o, lse)
        };
        let outcome = self.gather(kv_head, &clusters, worker, &mut attend);
        *done = Done {
            kept,
            clusters,
            lookup: looked_up - began,
            attention: looked_up.elapsed(),
            failed: outcome.err(),
        };
    }

    /// Copies the runs of kept clusters together, and calls `attend` whenever [`CHUNK`] rows are.
    fn gather(
        &self,
        kv_head: usize,
        clusters: &[u32],
        worker: &mut Worker,
        attend: &mut impl FnMut(&mut Worker) -> Result<()>,
    ) -> Result<()> {
        let head = &self.index.heads[kv_head];
        worker.keys.clear();
        worker.values.clear();
        let mut room = CHUNK;
        for &cluster in clusters {
            let mut run = head.run(cluster as usize);
            while !run.is_empty() {
                let end = run.end.min(run.start + room);
                worker.keys.push(&self.index.keys, kv_head, run.start..end);
                worker
                    .values
                    .push(&self.index.values, kv_head, run.start..end);
                room -= end - run.start;
                run.start = end;
                if room == 0 {
                    attend(worker)?;
                    room = CHUNK;
                }
            }
        }
        if room < CHUNK {
            attend(worker)?;
        }
        Ok(())
    }

    /// Dense attention over the rows that were copied together, merged into the block's O and LSE.
    fn attend_chunk(
        &self,
        q: &TensorView<'_>,
        worker: &mut Worker,
        o: &mut [f32],
        lse: &mut [f32],
    ) -> Result<()> {
        let dim = self.index.head_dim();
        let (keys, values) = (worker.keys.view()?, worker.values.view()?);
        let problem = self.chunk_problem(q.shape()[2], keys.shape()[2]);
        let plan = Plan::dense(problem)?.with_threads(1)?;
        let part = &mut worker.o[..o.len()];
        let part_lse = &mut worker.lse[..lse.len()];
        let outputs =
            Outputs::new(TensorViewMut::bhsd(part, problem.q_shape())?).with_lse(part_lse);
        plan.run(&Inputs::new(*q, keys, values), outputs, &mut worker.dense)?;
        let rows = o.chunks_exact_mut(dim).zip(lse);
        let parts = worker.o.chunks_exact(dim).zip(&worker.lse);
        for ((o, lse), (part, &part_lse)) in rows.zip(parts) {
            merge((o, lse), (part, part_lse));
        }
        worker.keys.clear();
        worker.values.clear();
        Ok(())
    }

    fn store(&self, batch: usize, q_len: usize, workspace: &Workspace, outputs: &mut Outputs<'_>) {
        let dim = self.index.head_dim();
        for (row, place) in self.places(batch, q_len).enumerate() {
            let (head, token) = (place / q_len, place % q_len);
            let at = (head / self.q_heads, head % self.q_heads, token);
            write_row(&mut outputs.o, at, &workspace.known[row * dim..][..dim]);
            if let Some(lse) = &mut outputs.lse {
                lse[place] = workspace.known_lse[row];
            }
        }
    }

    fn report(&self, batch: usize, q_len: usize, done: Vec<Done>, dense_time: Duration) -> Report {
        let index = self.index;
        let heads = batch * index.kv_heads();
        let clustered = index.len() - index.outside;
        let mut report = Report {
            heads: (0..heads)
                .map(|_| HeadReport {
                    share: 0.0,
                    fixed_share: 0.0,
                    coverage: 0.0,
                    scored: 0.0,
                    kept: Vec::new(),
                })
                .collect(),
            dense_time,
            lookup_time: done.iter().map(|done| done.lookup).sum(),
            attention_time: done.iter().map(|done| done.attention).sum(),
        };
        for (task, done) in done.into_iter().enumerate() {
            let (block, head) = (task / heads, task % heads);
            let rows = self.rule.block.min(q_len - block * self.rule.block);
            let report = &mut report.heads[head];
            // Sums of whole numbers, which are exact; divided below.
            report.share += (rows * done.kept.keys) as f64;
            report.fixed_share += (rows * (done.kept.keys + index.outside)) as f64;
            report.coverage += rows as f64 * done.kept.coverage;
            report.scored += (rows * done.kept.scored) as f64;
            report.kept.push(done.clusters);
        }
        for (head, report) in report.heads.iter_mut().enumerate() {
            let clusters = index.clusters(head % index.kv_heads());
            report.share /= (q_len * clustered.max(1)) as f64;
            report.fixed_share /= (q_len * index.len()) as f64;
            report.coverage /= q_len as f64;
            report.scored /= (q_len * clusters.max(1)) as f64;
        }
        report
    }
}

fn take<'t>(rest: &mut &'t mut [f32], len: usize) -> &'t mut [f32] {
    rest.split_off_mut(..len)
        .expect("the tasks together are as long as O")
}
