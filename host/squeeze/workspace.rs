//! What calls work in.

use super::lookup::LookUp;
use super::rows::Gathered;
use crate::dtype::Dtype;

/// What calls work in. It grows to what the largest call so far took, which [`Squeeze::workspace_bytes`](super::Squeeze::workspace_bytes) bounds.
#[derive(Default)]
pub struct Workspace {
    pub(super) dense: Vec<u8>,
    pub(super) part: Vec<f32>,
    pub(super) part_lse: Vec<f32>,
    pub(super) known: Vec<f32>,
    pub(super) known_lse: Vec<f32>,
    pub(super) workers: Vec<Worker>,
    /// What the workers were made for.
    pub(super) made_for: Option<WorkerShape>,
}

/// What the memory of a worker depends on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct WorkerShape {
    pub(super) dtype: Dtype,
    pub(super) head_dim: usize,
    pub(super) group: usize,
    pub(super) rows: usize,
    pub(super) clusters: usize,
    pub(super) coarse_clusters: usize,
    pub(super) threads: usize,
}

impl Workspace {
    /// Of nothing yet.
    pub fn new() -> Self {
        Workspace::default()
    }

    /// Bytes that it holds between calls.
    pub fn bytes(&self) -> usize {
        let floats = [&self.part, &self.part_lse, &self.known, &self.known_lse];
        let workers = self.workers.iter().map(Worker::bytes);
        self.dense.capacity()
            + 4 * floats.map(Vec::capacity).iter().sum::<usize>()
            + workers.sum::<usize>()
    }
}

/// Sizes `memory` without spare capacity, which no one has been told of.
pub(super) fn sized<T: Clone + Default>(memory: &mut Vec<T>, len: usize) -> &mut [T] {
    memory.clear();
    memory.reserve_exact(len);
    memory.resize(len, T::default());
    memory
}

/// What a worker thread works in.
pub(super) struct Worker {
    pub(super) lookup: LookUp,
    pub(super) keys: Gathered,
    pub(super) values: Gathered,
    pub(super) dense: Vec<u8>,
    pub(super) o: Vec<f32>,
    pub(super) lse: Vec<f32>,
}

impl Worker {
    /// Bytes of one.
    pub(super) fn bytes(&self) -> usize {
        self.lookup.bytes()
            + self.keys.bytes()
            + self.values.bytes()
            + self.dense.len()
            + 4 * (self.o.len() + self.lse.len())
    }
}
