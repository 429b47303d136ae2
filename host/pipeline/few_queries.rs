//! Dense attention of few queries: keys are split over blocks of threads, and the splits merged.

use sample_attention_device::abi::{KvTensor, LseTensor, SparseMask};
use sample_attention_device::decode::{self, DecodeParams, Splits, WIDE_ROWS};
use sample_attention_device::gpu::Global;
use sample_attention_device::params::{ProblemSizes, TensorArg};
use sample_attention_device::sparse_flash::SparseFlashParams;

use super::kernels::Call;
use super::{GpuPlan, Launch};
use crate::report::Stage;

/// Rows of a key/value head, its query heads' together, up to which its keys are split: those of one row tile, so that every key is
/// still read once.
const MAX_ROWS: u32 = WIDE_ROWS;

/// Multiprocessors that the splits fill, whichever GPU runs them: workspace and bits follow from the plan alone.
const MULTIPROCESSORS: u32 = 132;

/// How the keys of a dense plan are split; `None` where it has too many queries for that.
pub(super) fn splits(sizes: &ProblemSizes) -> Option<Splits> {
    let group = u64::from(sizes.q_heads / sizes.kv_heads);
    let rows = u64::from(sizes.q_len) * group;
    (rows <= u64::from(MAX_ROWS)).then(|| Splits::even(&nowhere(sizes), MULTIPROCESSORS))
}

/// Elements of the splits' weighted sums of values, and of their statistics.
pub(super) fn partial_lens(sizes: &ProblemSizes, splits: &Splits) -> (u64, u64) {
    let attention = nowhere(sizes);
    (
        splits.partial_o_len(&attention),
        splits.partial_sums_len(&attention),
    )
}

/// Dense attention as far as sizes say: no tensor has an address.
fn nowhere(sizes: &ProblemSizes) -> SparseFlashParams {
    let tensor = TensorArg {
        address: Global::NULL,
        stride_batch: 0,
        stride_head: 0,
        stride_token: 0,
    };
    SparseFlashParams {
        sequences: sizes.sequences(),
        q_heads: sizes.q_heads,
        kv_heads: sizes.kv_heads,
        head_dim: sizes.head_dim,
        scale_log2: 0.0,
        output_f32: 0,
        q: tensor,
        k: KvTensor::strided(tensor),
        v: KvTensor::strided(tensor),
        o: tensor,
        lse: LseTensor {
            address: Global::NULL,
            stride_batch: 0,
            stride_head: 0,
        },
        mask: SparseMask::DENSE,
    }
}

impl GpuPlan {
    /// Attention over splits of the keys, then their merge where there is more than one.
    pub(super) fn attend_in_splits<E>(
        &self,
        attention: SparseFlashParams,
        splits: Splits,
        workspace: Global<u8>,
        issue: &mut impl FnMut(Launch) -> Result<(), E>,
    ) -> Result<(), E> {
        let params = DecodeParams {
            attention,
            splits,
            partial_o: self.workspace().partial_o.at(workspace),
            partial_sums: self.workspace().partial_sums.at(workspace),
        };
        let kernels = self.kernels();
        let kernel = if splits.tile_rows(&attention) == WIDE_ROWS {
            kernels.decode_wide
        } else {
            kernels.decode_narrow
        };
        issue(Launch {
            stage: Stage::SparseFlash,
            shape: decode::launch_shape(&params),
            call: Call::Decode(kernel, params),
        })?;
        if splits.count > 1 {
            issue(Launch {
                stage: Stage::SparseFlash,
                shape: decode::combine_shape(&params),
                call: Call::Decode(kernels.decode_combine, params),
            })?;
        }
        Ok(())
    }
}
