//! Ragged batches on the CPU.

use super::arena::{Arena, Footprint};
use super::batch::{self, Entry, Way, Workers};
use super::break_even;
use super::call::Call;
use super::few_queries::Cut;
use super::per_row::TaskBuffers;
use super::planned::MAX_THREADS;
use super::rows::OutputRows;
use super::scratch::Scratch;
use super::simd::{InstructionSet, PANEL};
use super::sparse_flash::write_zeros;
use super::units::Units;
use super::workspace::{Selecting, carve_task_buffers, measure_task_buffers};
use crate::error::{Error, Result};
use crate::head_policy::HeadPolicy;
use crate::plan::{Path, path};
use crate::policy::{BREAK_EVEN_TOKENS, Fallback, Policy, Window};
use crate::problem::Problem;
use crate::report::{HeadPath, HeadReport, Report};
use crate::selection::SelectionShape;
use crate::tensor::Outputs;
use crate::varlen::{Span, VarlenBounds, VarlenInputs};

/// Bytes of selections of several sequences at a time that one thread may bring, if one sequence does not take more.
const PASS_BYTES_PER_THREAD: usize = 16 << 20;

/// How attention over ragged batches will be computed on the CPU: made once for bounds and a policy, then run on any lengths within
/// them, with keys and values packed or in pages.
///
/// Each sequence is a problem of its own, bottom-right aligned, and has the bits that [`Plan`](crate::Plan) gives it alone, whatever
/// else is in the batch and wherever its keys lie; with [`VarlenPlan::per_head`], those of [`HeadPlan`](crate::HeadPlan). Sequences
/// may have no queries, no keys, or more queries than keys: rows that see no key give 0 and −∞, and so do tokens of the queries' tensor
/// that no sequence has. All threads share the work of all sequences. The workspace is stated for the bounds.
///
/// ```
/// use sample_attention::{BlockTable, Dtype, Outputs, Policy, SeqLens, TensorView, TensorViewMut};
/// use sample_attention::{VarlenBounds, VarlenInputs, VarlenPlan};
/// // A prompt's last 40 tokens, and one token after a cached one: keys and values in pages of 16, four query heads on two.
/// let bounds = VarlenBounds::causal(2, 64, 64, Dtype::F32).with_heads(4, 2).with_max_seqlen_q(40);
/// let plan = VarlenPlan::new(bounds, Policy::default())?;
/// let q = vec![0.1f32; 41 * 4 * 64];
/// let pool = vec![0.2f32; 8 * 16 * 2 * 64];
/// let pool = TensorView::bshd(&pool, [8, 16, 2, 64])?;
/// let block_table = [3i32, 0, 5, 7, 2, -1, -1, -1];
/// let inputs = VarlenInputs::new(
///     TensorView::thd(&q, [41, 4, 64])?,
///     pool,
///     pool,
///     SeqLens::cumulative(&[0u32, 40, 41]),
///     SeqLens::each(&[60u32, 9]),
/// )
/// .with_block_table(BlockTable::new(&block_table, 4));
/// let mut o = vec![0f32; q.len()];
/// let mut lse = vec![0f32; 4 * 41];
/// let outputs = Outputs::new(TensorViewMut::thd(&mut o, [41, 4, 64])?).with_lse(&mut lse);
/// plan.run(&inputs, outputs, &mut vec![0; plan.workspace_bytes()])?;
/// # assert!(o.iter().all(|x| (x - 0.2).abs() < 1e-6));
/// # Ok::<(), sample_attention::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct VarlenPlan {
    bounds: VarlenBounds,
    heads: Heads,
    threads: usize,
    instruction_set: InstructionSet,
    sizes: Sizes,
}

/// What the query heads attend to.
#[derive(Clone, Debug, PartialEq)]
enum Heads {
    Alike(HeadPolicy),
    /// One policy a query head, each for a problem of one head.
    Each(Vec<HeadPolicy>),
}

impl VarlenPlan {
    /// A plan that selects what to attend to by `policy`: with [`Fallback::Auto`], in those sequences where that pays.
    ///
    /// # Errors
    /// Any field of the bounds or the policy out of range, [`Error::SparseNeedsCausal`], and [`Error::SelectionTooLarge`] or
    /// [`Error::WorkspaceTooLarge`] for sizes that no machine has the memory for.
    pub fn new(bounds: VarlenBounds, policy: Policy) -> Result<Self> {
        VarlenPlan::with_heads(bounds, Heads::Alike(HeadPolicy::Selected(policy)))
    }

    /// A plan that attends to everything.
    ///
    /// # Errors
    /// As [`VarlenPlan::new`].
    pub fn dense(bounds: VarlenBounds) -> Result<Self> {
        VarlenPlan::with_heads(bounds, Heads::Alike(HeadPolicy::Dense))
    }

    /// A plan with `policies[h]` for query head `h` of every sequence.
    ///
    /// # Errors
    /// [`Error::HeadPolicies`], and those of [`VarlenPlan::new`] for any of the policies.
    pub fn per_head(bounds: VarlenBounds, policies: &[HeadPolicy]) -> Result<Self> {
        if policies.len() != bounds.q_heads {
            return Err(Error::HeadPolicies {
                given: policies.len(),
                q_heads: bounds.q_heads,
            });
        }
        let heads = policies.iter().enumerate();
        let heads = heads.map(|(q_head, policy)| policy.at_head(q_head));
        VarlenPlan::with_heads(bounds, Heads::Each(heads.collect()))
    }

    /// The same plan on `threads` tasks of the rayon pool at a time, at most [`MAX_THREADS`]: the workspace grows with it. The
    /// result's bits do not depend on it.
    ///
    /// # Errors
    /// [`Error::NoThreads`] and [`Error::WorkspaceTooLarge`].
    pub fn with_threads(self, threads: usize) -> Result<Self> {
        if threads == 0 {
            return Err(Error::NoThreads);
        }
        let threads = threads.min(MAX_THREADS);
        let sizes = Sizes::new(&self.bounds, &self.heads, threads)?;
        Ok(VarlenPlan {
            threads,
            sizes,
            ..self
        })
    }

    /// The same plan on another instruction set, as [`Plan::with_instruction_set`](crate::Plan::with_instruction_set).
    ///
    /// # Errors
    /// [`Error::NoSuchInstructionSet`].
    pub fn with_instruction_set(self, instruction_set: InstructionSet) -> Result<Self> {
        Ok(VarlenPlan {
            instruction_set: instruction_set.checked()?,
            ..self
        })
    }

    fn with_heads(bounds: VarlenBounds, heads: Heads) -> Result<Self> {
        bounds.validate()?;
        for policy in heads.all() {
            way(*policy, &longest(&bounds), 1)?;
        }
        let threads = rayon::current_num_threads().min(MAX_THREADS);
        Ok(VarlenPlan {
            sizes: Sizes::new(&bounds, &heads, threads)?,
            bounds,
            heads,
            threads,
            instruction_set: InstructionSet::widest(),
        })
    }

    /// What batches may be.
    pub fn bounds(&self) -> &VarlenBounds {
        &self.bounds
    }

    /// Bytes that every run works in, beyond inputs and outputs, whatever the lengths.
    pub fn workspace_bytes(&self) -> usize {
        self.sizes.workspace_bytes
    }

    /// Selects and attends. The output is [1, q_heads, tokens, head_dim] with as many tokens as the queries' tensor, and the
    /// log-sum-exp contiguous [q_heads, tokens]. Reports count sequences as the batch.
    ///
    /// # Errors
    /// Tensors, lengths and block tables that do not fit each other or the bounds, and [`Error::WorkspaceTooSmall`]; nothing has been
    /// written then.
    pub fn run(
        &self,
        inputs: &VarlenInputs<'_>,
        outputs: Outputs<'_>,
        workspace: &mut [u8],
    ) -> Result<Report> {
        let bounds = &self.bounds;
        let spans = inputs.check(bounds)?;
        let [_, _, tokens, _] = inputs.q.shape();
        check_outputs(bounds, tokens, &outputs)?;
        let (needed, given) = (self.workspace_bytes(), workspace.len());
        let too_small = Error::WorkspaceTooSmall { needed, given };
        if given < needed {
            return Err(too_small);
        }
        let mut arena = Arena::new(workspace);
        let mut memory = self.carve(&mut arena).ok_or(too_small)?;
        let Outputs { mut o, lse } = outputs;
        let output = OutputRows::new(&mut o, lse);
        let entries = self.entries(inputs, &spans, output)?;
        let of_sequence = |sequence| {
            (0..bounds.q_heads).map(move |q_head| HeadReport::of_dense(sequence, q_head))
        };
        let mut heads: Vec<_> = (0..bounds.sequences).flat_map(of_sequence).collect();
        let workers = Workers {
            scratches: &mut memory.scratches,
            task_buffers: &mut memory.task_buffers,
            partials: memory.partials,
        };
        let of_heads = (bounds.q_heads, &mut heads[..]);
        let (times, key_ranges) = batch::run(&entries, workers, memory.pass, of_heads);
        let zeros = &mut *memory.scratches[0].row;
        let sink = |head: usize| {
            inputs
                .sink_logits
                .map_or(f32::NEG_INFINITY, |logits| logits[head])
        };
        let mut end = 0;
        for Span { q, k, .. } in &spans {
            // Tokens of no sequence.
            // SAFETY: the workers have ended.
            unsafe { write_zeros(output, end..q.start, zeros, |_| f32::NEG_INFINITY) };
            if k.is_empty() {
                // SAFETY: as above.
                unsafe { write_zeros(output, q.clone(), zeros, sink) };
            }
            end = q.end;
        }
        // SAFETY: as above.
        unsafe { write_zeros(output, end..tokens, zeros, |_| f32::NEG_INFINITY) };
        Ok(Report {
            heads,
            times,
            key_ranges,
        })
    }

    /// The calls of a batch, those with most keys first: what is left at the end is then small.
    fn entries<'a>(
        &self,
        inputs: &VarlenInputs<'a>,
        spans: &[Span],
        output: OutputRows<'a>,
    ) -> Result<Vec<Entry<'a>>> {
        let has_work = |span: &&Span| !span.q.is_empty() && !span.k.is_empty();
        let mut spans: Vec<&Span> = spans.iter().filter(has_work).collect();
        spans.sort_by_key(|span| std::cmp::Reverse(span.k.len()));
        let mut entries = Vec::new();
        for span in spans {
            let problem = self.bounds.sequence(span.q.len(), span.k.len());
            let (q, [k, v]) = (inputs.queries(span), inputs.keys_and_values(span)?);
            match &self.heads {
                Heads::Alike(policy) => entries.push(Entry {
                    call: Call::new(problem, q, [k, v], inputs.sink_logits),
                    output: output.part(0..problem.q_heads, span.q.clone()),
                    way: way(*policy, &problem, self.threads)?,
                    sequence: span.sequence,
                    first_head: 0,
                }),
                Heads::Each(policies) => {
                    for (q_head, policy) in policies.iter().enumerate() {
                        let kv_head = q_head / problem.group_size();
                        let kv = [k, v].map(|all| all.with_heads(kv_head..kv_head + 1));
                        let one_head = problem.with_heads(1, 1);
                        let of_head = q.with_heads(q_head..q_head + 1);
                        let sink = inputs.sink_logits.map(|all| &all[q_head..=q_head]);
                        let call = Call::new(one_head, of_head, kv, sink);
                        entries.push(Entry {
                            call,
                            output: output.part(q_head..q_head + 1, span.q.clone()),
                            way: way(*policy, &one_head, self.threads)?,
                            sequence: span.sequence,
                            first_head: q_head,
                        });
                    }
                }
            }
        }
        Ok(entries)
    }
}

impl VarlenPlan {
    /// The memory of a run; `None` where there are fewer bytes than the plan says.
    fn carve<'a>(&self, arena: &mut Arena<'a>) -> Option<Memory<'a>> {
        let largest = self.sizes.largest;
        let scratches = (0..self.threads)
            .map(|_| Scratch::carve(arena, &largest, self.instruction_set))
            .collect::<Option<_>>()?;
        Some(Memory {
            scratches,
            partials: arena.take(self.sizes.partials_len)?,
            task_buffers: match &self.sizes.task_units {
                Some(units) => carve_task_buffers(arena, units, self.threads)?,
                None => Vec::new(),
            },
            pass: arena.take(self.sizes.pass_bytes)?,
        })
    }
}

/// The memory of a run.
struct Memory<'a> {
    scratches: Vec<Scratch<'a>>,
    partials: &'a mut [f32],
    task_buffers: Vec<TaskBuffers<'a>>,
    pass: &'a mut [u8],
}

/// How much memory a plan has, besides the sizes of a worker's.
#[derive(Clone, Debug, PartialEq)]
struct Sizes {
    /// A call as large as there could be any.
    largest: Problem,
    /// The units of the budget of rows whose task buffers are largest.
    task_units: Option<Units>,
    partials_len: usize,
    pass_bytes: usize,
    workspace_bytes: usize,
}

impl Sizes {
    fn new(bounds: &VarlenBounds, heads: &Heads, threads: usize) -> Result<Self> {
        let (largest, calls) = match heads {
            Heads::Alike(_) => (longest(bounds), bounds.sequences),
            Heads::Each(policies) => (
                longest(bounds).with_heads(1, 1),
                bounds.sequences.saturating_mul(policies.len()),
            ),
        };
        let too_large = Error::WorkspaceTooLarge {
            heads: calls.saturating_mul(largest.q_heads),
            k_len: largest.k_len,
            threads,
        };
        let mut tasks = (Footprint::new(), None);
        let mut one_bytes = 0;
        for policy in heads.all() {
            let Some(units) = largest_units(*policy, &largest, threads) else {
                continue;
            };
            SelectionShape::checked(&largest)?;
            let mut one = Footprint::new();
            Selecting::measure(&mut one, &largest, &units);
            one_bytes = one_bytes.max(one.bytes().ok_or(too_large.clone())?);
            let mut of_tasks = Footprint::new();
            measure_task_buffers(&mut of_tasks, &units, threads);
            let bytes = |footprint: &Footprint| footprint.bytes().unwrap_or(usize::MAX);
            let is_sampled = matches!(policy, HeadPolicy::Selected(_));
            if is_sampled && bytes(&of_tasks) > bytes(&tasks.0) {
                tasks = (of_tasks, Some(units));
            }
        }
        let several = one_bytes
            .saturating_mul(calls)
            .min(PASS_BYTES_PER_THREAD.saturating_mul(threads));
        let pass_bytes = one_bytes.max(several);
        let partials_len = Cut::new(&largest.with_batch(calls)).partials_len();
        let mut footprint = Footprint::new();
        let mut scratch = Footprint::new();
        Scratch::measure(&mut scratch, &largest);
        footprint.repeat(&scratch, threads);
        footprint.take::<f32>(partials_len, 1);
        if let (_, Some(units)) = &tasks {
            measure_task_buffers(&mut footprint, units, threads);
        }
        footprint.take::<u8>(pass_bytes, 1);
        Ok(Sizes {
            largest,
            task_units: tasks.1,
            partials_len,
            pass_bytes,
            workspace_bytes: footprint.bytes().ok_or(too_large)?,
        })
    }
}

impl Heads {
    fn all(&self) -> &[HeadPolicy] {
        match self {
            Heads::Alike(policy) => std::slice::from_ref(policy),
            Heads::Each(policies) => policies,
        }
    }
}

/// The longest sequence that there could be.
fn longest(bounds: &VarlenBounds) -> Problem {
    bounds.sequence(bounds.max_seqlen_q.max(1), bounds.max_seqlen_k.max(1))
}

/// What a call attends to.
///
/// # Errors
/// Any field of the policy out of range, and [`Error::SparseNeedsCausal`].
fn way(policy: HeadPolicy, problem: &Problem, threads: usize) -> Result<Way> {
    let selected = match policy {
        HeadPolicy::Dense => return Ok(Way::Dense(HeadPath::Dense)),
        HeadPolicy::Local { window, .. } => Policy::default().with_window(window),
        HeadPolicy::Selected(policy) => policy,
    };
    // Says what is wrong with the policy and the problem.
    let path = path(problem, &selected, break_even::selects)?;
    Ok(match (policy, path) {
        (HeadPolicy::Local { window, sinks }, _) => {
            Way::Local(local_units(window, sinks, problem, threads))
        }
        (_, Path::Select) => Way::Select {
            units: Units::new(problem, &selected, threads),
            coverage: selected.coverage,
            fallback: selected.fallback,
        },
        (_, path) => Way::Dense(path.of_heads()),
    })
}

/// The units of the largest call within the bounds that has some; `None` where no call does.
fn largest_units(policy: HeadPolicy, largest: &Problem, threads: usize) -> Option<Units> {
    match policy {
        HeadPolicy::Dense => None,
        HeadPolicy::Local { window, sinks } => Some(local_units(window, sinks, largest, threads)),
        HeadPolicy::Selected(policy) => {
            // The least that is sampled is a panel, and no more queries than that cost less than several times as much.
            let may_pay = largest.k_len >= BREAK_EVEN_TOKENS && largest.q_len > PANEL;
            let may_select = policy.fallback == Fallback::Never || may_pay;
            may_select.then(|| Units::new(largest, &policy, threads))
        }
    }
}

/// Units that are not sampled: of a window and sinks.
fn local_units(window: Window, sinks: usize, problem: &Problem, threads: usize) -> Units {
    let policy = Policy::default()
        .with_window(window)
        .with_sinks(sinks)
        .with_row_stride(usize::MAX);
    Units::new(problem, &policy, threads)
}

fn check_outputs(bounds: &VarlenBounds, tokens: usize, outputs: &Outputs<'_>) -> Result<()> {
    let shape = [1, bounds.q_heads, tokens, bounds.head_dim];
    outputs.o.check("o", shape, bounds.dtype)?;
    let expected = bounds.q_heads * tokens;
    match &outputs.lse {
        Some(lse) if lse.len() != expected => Err(Error::LseLen {
            expected,
            given: lse.len(),
        }),
        _ => Ok(()),
    }
}
