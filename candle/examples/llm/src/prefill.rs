//! One prefill of the prompt, in chunks, timed and watched.

use std::time::{Duration, Instant};

use candle_core::Tensor;
use candle_sample_attention::Workspace;
use indicatif::{ProgressBar, ProgressStyle};

use crate::cache::Cache;
use crate::failure::Failure;
use crate::model::{Attention, Model};
use crate::policies::LayerPolicies;

/// What a prefill gave.
pub struct Prefilled {
    /// \[tokens, hidden_size\].
    pub hidden: Tensor,
    pub caches: Vec<Cache>,
    /// The first token of the answer.
    pub first: u32,
    pub time_to_first_token: Duration,
    /// What each layer kept, where the backend told.
    pub kept: Vec<Kept>,
    pub workspace_bytes: usize,
}

/// What one layer kept of the prompt, over all chunks.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    /// Pairs (query, key) that were attended to, and that could have been, of each query head.
    heads: Vec<(f64, f64)>,
}

impl Kept {
    fn add(&mut self, workspace: &Workspace, q_len: usize, k_len: usize) {
        let Some(report) = workspace.take_report() else {
            return;
        };
        let visible = q_len as f64 * (k_len as f64 - (q_len as f64 - 1.0) / 2.0);
        self.heads.resize(report.heads.len(), (0.0, 0.0));
        for (sum, head) in self.heads.iter_mut().zip(&report.heads) {
            sum.0 += head.density * visible;
            sum.1 += visible;
        }
    }

    /// Share of the visible pairs, of each head.
    pub fn densities(&self) -> Vec<f64> {
        self.heads
            .iter()
            .map(|(kept, visible)| kept / visible)
            .collect()
    }
}

/// What to prefill with.
pub struct Request<'a> {
    pub label: &'static str,
    pub tokens: &'a [u32],
    /// At most this many tokens at a time.
    pub chunk: usize,
    /// Tokens of the cache.
    pub capacity: usize,
    /// Tokens of its pages.
    pub page: usize,
    /// `None` attends to everything.
    pub policies: Option<&'a LayerPolicies>,
}

/// # Errors
/// What the model's ops refuse.
pub fn prefill(model: &Model, request: &Request<'_>) -> Result<Prefilled, Failure> {
    let mut caches = model.caches(request.capacity, request.page)?;
    let mut kept = vec![Kept::default(); model.layers()];
    let workspace = Workspace::new();
    let of_chunks = request.policies.map(LayerPolicies::without_tail);
    let chunks: Vec<&[u32]> = request.tokens.chunks(request.chunk).collect();
    let bar = bar(request.label, chunks.len() * model.layers());
    model.device().synchronize()?;
    let started = Instant::now();
    let mut states = Vec::with_capacity(chunks.len());
    let mut done = 0;
    workspace.scope(|| -> Result<(), Failure> {
        for (number, chunk) in chunks.iter().enumerate() {
            let attention = match (request.policies, &of_chunks) {
                (Some(_), Some(policies)) if number + 1 < chunks.len() => {
                    Attention::Sparse(policies)
                }
                (Some(policies), _) => Attention::Sparse(policies),
                (None, _) => Attention::Dense,
            };
            done += chunk.len();
            states.push(model.forward(chunk, &mut caches, attention, |layer| {
                kept[layer].add(&workspace, chunk.len(), done);
                bar.inc(1);
            })?);
        }
        Ok(())
    })?;
    let first = model.next_token(&states[states.len() - 1])?;
    let time_to_first_token = started.elapsed();
    bar.finish_and_clear();
    Ok(Prefilled {
        hidden: Tensor::cat(&states, 0)?,
        caches,
        first,
        time_to_first_token,
        kept,
        workspace_bytes: workspace.host_bytes(),
    })
}

/// Nothing where stderr is no terminal.
fn bar(label: &'static str, steps: usize) -> ProgressBar {
    let template = "{prefix:6} [{bar:40}] {percent:>3} %  {elapsed}, {eta} to go";
    let style =
        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(steps as u64)
        .with_style(style)
        .with_prefix(label)
}
