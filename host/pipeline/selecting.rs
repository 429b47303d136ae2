//! A selection, cut up so that its buffers stay within limits.

use sample_attention_device::abi::{HeadKind, Sequences};
use sample_attention_device::params::ProblemSizes;

use super::heads::Heads;
use super::slices::{KeyPass, Shape, TileRange};
use crate::policy::Fallback;

/// Bytes of the buffers that hold one wave of the selection: a slice of query tiles, or a pass over heads. With 32 heads a slice of a prompt
/// of 128K tokens is then 32 query tiles, whose panels of sampled rows, cut into splits of their keys, are several for each multiprocessor.
pub const WAVE_BYTES: u64 = 64 << 20;

/// Bytes of a slice that holds no more than a panel of sampled rows: a smaller panel would load the same keys for fewer rows. At a million
/// tokens, 32 heads and a row stride of 8 it is half a panel.
const PANEL_BYTES: u64 = 160 << 20;

/// Bytes of the lists of all query tiles up to which they are all in the workspace at once, and attention is one launch: 128K tokens of 32
/// heads. Beyond that attention follows each slice of the selection, and the lists of the next take the place of its own.
const WHOLE_LISTS_BYTES: u64 = 136 << 20;

/// A selection, cut up.
#[derive(Clone, Debug)]
pub(super) struct Selecting {
    pub(super) heads: Heads,
    pub(super) sinks: u32,
    /// Of the heads that have lists of their own for each query tile, and of those that are not sampled.
    pub(super) slices: Vec<TileRange>,
    /// Of the heads that select single keys.
    pub(super) passes: Vec<KeyPass>,
    /// Whether each head runs dense if its selection costs as much.
    pub(super) chooses_dense: bool,
    /// Key blocks of a query tile's list, at most, where the lists of all query tiles are in the workspace together. `None`: those of a slice
    /// are, with as many key blocks as its rows see.
    pub(super) list_capacity: Option<u32>,
}

impl Selecting {
    /// Cuts up the selection of a batch.
    pub(super) fn new(
        (sequences, sizes): (Sequences, &ProblemSizes),
        heads: Heads,
        sinks: u32,
        fallback: Fallback,
        limits: Limits,
    ) -> Self {
        let shape = Shape {
            sequences,
            heads: &heads,
            q_heads: sizes.q_heads,
            kv_heads: sizes.kv_heads,
            sinks,
        };
        let has_slices = heads.any(|kind| !matches!(kind, HeadKind::Residual | HeadKind::Paper));
        let slices = if has_slices {
            shape.slices(limits.wave_bytes, limits.panel_bytes())
        } else {
            Vec::new()
        };
        let passes = shape.key_passes(limits.wave_bytes);
        let blocks = sequences.max_key_blocks().max(1);
        let all_tiles = sequences.query_tiles();
        let windows = heads.policies().iter().map(|policy| policy.window_blocks);
        let window = windows.max().unwrap_or(1).min(blocks);
        let has_long_lists = has_slices && heads.any(|kind| kind != HeadKind::Local);
        let list_capacity = if has_long_lists { blocks } else { window };
        let list_bytes =
            4 * u64::from(sizes.q_heads) * u64::from(all_tiles) * u64::from(list_capacity);
        let whole = limits.whole_lists
            || list_bytes <= WHOLE_LISTS_BYTES
            || !passes.is_empty()
            || slices.len() == 1;
        let chooses_dense = fallback == Fallback::Auto
            && whole
            && heads.any(|kind| {
                matches!(
                    kind,
                    HeadKind::Blocks | HeadKind::Residual | HeadKind::Paper
                )
            });
        Selecting {
            sinks,
            chooses_dense,
            list_capacity: whole.then_some(list_capacity),
            slices,
            passes,
            heads,
        }
    }

    /// Whether a kernel works on each query tile by itself: for all heads but those that spend their mass elsewhere.
    pub(super) fn selects_by_tile(&self) -> bool {
        self.heads
            .any(|kind| matches!(kind, HeadKind::Rows | HeadKind::Local | HeadKind::Dense))
    }
}

/// How much of a selection is in the workspace at a time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) wave_bytes: u64,
    pub(super) whole_lists: bool,
}

impl Limits {
    pub(super) const DEFAULT: Self = Limits {
        wave_bytes: WAVE_BYTES,
        whole_lists: false,
    };

    /// Bytes of a slice that is no more than a panel.
    fn panel_bytes(&self) -> u64 {
        if self.wave_bytes < WAVE_BYTES {
            self.wave_bytes
        } else {
            self.wave_bytes.max(PANEL_BYTES)
        }
    }
}
