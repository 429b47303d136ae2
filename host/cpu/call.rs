//! One problem of a run, and where its tensors lie.

use super::rows::HeadRows;
use super::tile::Softcap;
use crate::geometry::Geometry;
use crate::problem::Problem;
use crate::tensor::{Inputs, TensorView};
use crate::varlen::KvView;

/// A problem with its inputs: a whole call, or one sequence or head of it.
#[derive(Clone, Copy)]
pub(super) struct Call<'a> {
    pub(super) problem: Problem,
    q: KvView<'a>,
    k: KvView<'a>,
    v: KvView<'a>,
    /// One a query head.
    sink_logits: Option<&'a [f32]>,
}

impl<'a> Call<'a> {
    /// The problem with tensors of its shapes.
    pub(super) fn new(
        problem: Problem,
        q: TensorView<'a>,
        [k, v]: [KvView<'a>; 2],
        sink_logits: Option<&'a [f32]>,
    ) -> Self {
        Call {
            problem,
            q: KvView::strided(q),
            k,
            v,
            sink_logits,
        }
    }

    /// The problem with inputs that fit it.
    pub(super) fn of_inputs(problem: &Problem, inputs: &Inputs<'a>) -> Self {
        let kv = [inputs.k, inputs.v].map(KvView::strided);
        Call::new(*problem, inputs.q, kv, inputs.sink_logits)
    }

    /// The sink of a head, counted over all sequences: −∞ where it has none.
    pub(super) fn sink(&self, head: usize) -> f32 {
        let (_, q_head) = self.place(head);
        self.sink_logits
            .map_or(f32::NEG_INFINITY, |logits| logits[q_head])
    }

    /// The same in the log2 domain.
    pub(super) fn sink_log2(&self, head: usize) -> f32 {
        (f64::from(self.sink(head)) * std::f64::consts::LOG2_E) as f32
    }

    pub(super) fn softcap(&self) -> Option<Softcap> {
        self.problem.softcap.map(Softcap::new)
    }

    pub(super) fn geometry(&self) -> Geometry {
        Geometry::new(&self.problem)
    }

    /// Sequence and query head of a head, counted over all sequences.
    pub(super) fn place(&self, head: usize) -> (usize, usize) {
        (head / self.problem.q_heads, head % self.problem.q_heads)
    }

    /// Queries of a head, counted over all sequences.
    pub(super) fn queries(&self, head: usize) -> HeadRows<'a> {
        let (batch, head) = self.place(head);
        HeadRows::new(self.q, batch, head)
    }

    /// Keys that a query head reads.
    pub(super) fn keys(&self, head: usize) -> HeadRows<'a> {
        let (batch, head) = self.place(head);
        HeadRows::new(self.k, batch, head / self.problem.group_size())
    }

    /// Values that a query head reads.
    pub(super) fn values(&self, head: usize) -> HeadRows<'a> {
        let (batch, head) = self.place(head);
        HeadRows::new(self.v, batch, head / self.problem.group_size())
    }
}
