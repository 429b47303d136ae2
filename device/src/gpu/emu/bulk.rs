//! Bulk copies in flight: loads land when someone waits on their mbarrier, stores when their thread
//! waits for them.

use std::panic::Location;

use super::state::bulk::{Load, Patch, Shape, Store};
use super::state::memory::{copy_in, copy_out};
use super::state::queue::pop_front_if;
use super::state::{At, Cta, FaultKind, with};
use crate::gpu::TensorMap;

impl Cta {
    /// Checks what linear copies demand.
    fn linear(&mut self, op: &'static str, global: u64, shared: u32, bytes: u32, at: At) -> Shape {
        if !bytes.is_multiple_of(16) || bytes == 0 {
            self.fail(
                FaultKind::AsyncCopy,
                at,
                format!("`{op}` of {bytes} bytes; it moves a positive multiple of 16"),
            );
        }
        self.global(global, bytes, 16, op, at);
        self.shared(shared, bytes, 16, op, at);
        Shape::Linear { global, bytes }
    }

    fn tensor(
        &mut self,
        op: &'static str,
        map: &TensorMap,
        coords: &[i32],
        shared: u32,
        at: At,
    ) -> Shape {
        let tensor = Patch::decode(self, op, map, coords, at);
        self.shared(shared, tensor.bytes(), 128, op, at);
        Shape::Tensor(tensor)
    }

    fn issue_load(&mut self, op: &'static str, shape: Shape, shared: u32, mbarrier: u32, at: At) {
        let bytes = shape.bytes();
        let phase = self.current_phase(mbarrier, op, at);
        self.note_bulk_load(shared, bytes, mbarrier, phase, op, at);
        let host = self.shared(shared, bytes, 16, op, at);
        // Poison until it lands: all ones is NaN in every format.
        // SAFETY: `shared` checked the range.
        unsafe { host.write_bytes(0xff, bytes as usize) };
        self.loads.0.push(Load {
            shape,
            shared,
            mbarrier,
            at,
        });
    }

    fn issue_store(&mut self, op: &'static str, shape: Shape, shared: u32, at: At) {
        let group = self.thread().stores.committed_groups;
        self.note_bulk_store(shared, shape.bytes(), group, op, at);
        self.thread().stores.stores.push_back(Store {
            group,
            shape,
            shared,
            at,
        });
    }

    /// Lands the loads that complete on `mbarrier`, or all.
    pub(super) fn land_bulk_loads(&mut self, mbarrier: Option<u32>) {
        let mut index = 0;
        while index < self.loads.0.len() {
            if mbarrier.is_none_or(|mbarrier| self.loads.0[index].mbarrier == mbarrier) {
                self.land_bulk_load(index);
            } else {
                index += 1;
            }
        }
    }

    /// Lands one load.
    pub(super) fn land_bulk_load(&mut self, index: usize) {
        let load = self.loads.0.remove(index);
        match &load.shape {
            Shape::Linear { global, bytes } => {
                let op = "cp.async.bulk";
                let from = self.global(*global, *bytes, 16, op, load.at);
                let to = self.shared(load.shared, *bytes, 16, op, load.at);
                // SAFETY: both ranges are checked.
                unsafe { copy_in(from, to, *bytes) };
            }
            Shape::Tensor(tensor) => tensor.load(self, load.shared, load.at),
        }
        self.complete_tx(load.mbarrier, load.shape.bytes());
    }

    fn land_stores(&mut self, groups: u32) {
        while let Some(store) = pop_front_if(&mut self.thread().stores.stores, |store| {
            store.group < groups
        }) {
            match &store.shape {
                Shape::Linear { global, bytes } => {
                    let op = "cp.async.bulk";
                    let to = self.global_write(*global, *bytes, 16, op, store.at);
                    let from = self.shared(store.shared, *bytes, 16, op, store.at);
                    // SAFETY: both ranges are checked.
                    unsafe { copy_out(from, to, *bytes) };
                }
                Shape::Tensor(tensor) => tensor.store(self, store.shared, store.at),
            }
        }
        self.note_bulk_stores_read(groups);
    }
}

#[track_caller]
pub(in super::super) fn load(to: u32, from: u64, bytes: u32, mbarrier: u32) {
    let op = "cp.async.bulk.shared.global";
    let at = Location::caller();
    with(|cta| {
        let shape = cta.linear(op, from, to, bytes, at);
        cta.issue_load(op, shape, to, mbarrier, at);
    });
}

#[track_caller]
pub(in super::super) fn load_tensor(to: u32, map: &TensorMap, coords: &[i32], mbarrier: u32) {
    let op = "cp.async.bulk.tensor.shared.global";
    let at = Location::caller();
    with(|cta| {
        let shape = cta.tensor(op, map, coords, to, at);
        cta.issue_load(op, shape, to, mbarrier, at);
    });
}

#[track_caller]
pub(in super::super) fn store(to: u64, from: u32, bytes: u32) {
    let op = "cp.async.bulk.global.shared";
    let at = Location::caller();
    with(|cta| {
        let shape = cta.linear(op, to, from, bytes, at);
        cta.issue_store(op, shape, from, at);
    });
}

#[track_caller]
pub(in super::super) fn store_tensor(map: &TensorMap, coords: &[i32], from: u32) {
    let op = "cp.async.bulk.tensor.global.shared";
    let at = Location::caller();
    with(|cta| {
        let shape = cta.tensor(op, map, coords, from, at);
        cta.issue_store(op, shape, from, at);
    });
}

#[track_caller]
pub(in super::super) fn commit_group() {
    with(|cta| cta.thread().stores.committed_groups += 1);
}

/// Waits until at most `pending` committed groups are in flight.
#[track_caller]
pub(in super::super) fn wait_group(pending: u32) {
    with(|cta| {
        let landed = cta.thread().stores.committed_groups.saturating_sub(pending);
        cta.land_stores(landed);
    });
}

#[track_caller]
pub(in super::super) fn fence_proxy_async() {
    with(Cta::note_proxy_fence);
}
