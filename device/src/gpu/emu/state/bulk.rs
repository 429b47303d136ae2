//! Bulk copies in flight.

use std::collections::VecDeque;

use super::site::At;
use crate::gpu::TensorMapLayout;

/// A box at its place in a tensor.
pub struct Patch {
    pub layout: TensorMapLayout,
    pub coords: [i64; 5],
    pub op: &'static str,
}

/// What a copy moves between shared and global memory.
pub enum Shape {
    /// `bytes` bytes at a global address.
    Linear { global: u64, bytes: u32 },
    /// A box of a tensor.
    Tensor(Patch),
}

pub struct Load {
    pub shape: Shape,
    pub shared: u32,
    pub mbarrier: u32,
    pub at: At,
}

pub struct Store {
    pub group: u32,
    pub shape: Shape,
    pub shared: u32,
    pub at: At,
}

/// The bulk stores of one thread that have not landed.
#[derive(Default)]
pub struct StoreQueue {
    pub stores: VecDeque<Store>,
    pub committed_groups: u32,
}

impl StoreQueue {
    /// Where a store that nothing has waited for was issued.
    pub fn unfinished(&self) -> Option<At> {
        self.stores.front().map(|store| store.at)
    }
}

/// The bulk loads of a CTA that have not landed.
#[derive(Default)]
pub struct Loads(pub Vec<Load>);

impl Loads {
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The mbarrier of the load at `index`.
    pub fn mbarrier(&self, index: usize) -> u32 {
        self.0[index].mbarrier
    }

    pub fn unfinished(&self) -> Option<At> {
        self.0.first().map(|load| load.at)
    }
}

impl Shape {
    pub fn bytes(&self) -> u32 {
        match self {
            Self::Linear { bytes, .. } => *bytes,
            Self::Tensor(patch) => patch.layout.box_bytes(),
        }
    }
}
