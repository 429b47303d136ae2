//! What a launch is given, and how a CTA's rows are divided.

use super::super::SparseFlashParams;
use super::schedule::TileScheduler;
use crate::gpu::TensorMap;
use crate::params::BLOCK;

/// Warpgroups that compute. Two, so that one's softmax hides under the other's products; three would leave each too few registers.
pub(super) const CONSUMERS: u32 = 2;

/// Rows of a consumer: those of one `wgmma`.
pub(super) const CONSUMER_ROWS: u32 = BLOCK / CONSUMERS;

/// The parameters of a launch.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HopperParams {
    /// [`map_layout`](super::map_layout) of Q.
    pub q_map: TensorMap,
    /// [`kv_map_layout`](super::kv_map_layout) of K.
    pub k_map: TensorMap,
    /// [`kv_map_layout`](super::kv_map_layout) of V.
    pub v_map: TensorMap,
    /// As for the portable kernel.
    pub attention: SparseFlashParams,
    /// The order of the work tiles.
    pub schedule: TileScheduler,
    /// By how much, in the log2 domain, a row's maximum grows before what came before it is rescaled: 0 always, at most 8.
    pub rescale_threshold_log2: f32,
}

const _: () = assert!(size_of::<TensorMap>().is_multiple_of(64));
