//! Where everything that the stages hand to each other lies in one allocation.

use std::marker::PhantomData;

use sample_attention_device::geometry::Units;
use sample_attention_device::gpu::Global;
use sample_attention_device::params::ProblemSizes;
use sample_attention_device::reduction::{blocks, keys};
use sample_attention_device::{sampling, top_k};

use crate::policy::Budget;

/// A workspace and its regions begin at multiples of this, as allocations of a GPU do: every vector access is aligned, and no
/// two regions share a line of the cache.
pub const WORKSPACE_ALIGN_BYTES: u64 = 256;

/// Elements of the workspace.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Region<T> {
    /// Bytes from the start of the workspace.
    pub offset_bytes: u64,
    /// Elements; 0 where the plan has no use for the region.
    pub len: u64,
    element: PhantomData<T>,
}

impl<T> Region<T> {
    /// Its address in a workspace that begins at `workspace`; null where it is empty.
    pub fn at(&self, workspace: Global<u8>) -> Global<T> {
        if self.len == 0 {
            Global::NULL
        } else {
            workspace.byte_add(self.offset_bytes).cast()
        }
    }
}

/// The layout of a workspace. What a *unit* is, and the order of the elements, is in the documentation of the kernels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Workspace {
    /// Of a wave: log2 of the normaliser of every sampled row.
    pub row_lse: Region<f32>,
    /// Of a wave: maximum and sum of every sampled row over each key block; for the budget of blocks.
    pub stats: Region<f32>,
    /// The same over the sinks.
    pub sink_stats: Region<f32>,
    /// Of a wave: what candidates are ranked by.
    pub mass: Region<u64>,
    /// Of a wave: mass outside window and sinks; for the paper's budget.
    pub outside: Region<u64>,
    /// Of a wave: mass in window and sinks.
    pub covered: Region<u64>,
    /// Of every unit: mass that its selection keeps.
    pub kept: Region<u64>,
    /// \[q_heads, query tiles of all sequences, key blocks\]: ascending key blocks.
    pub lists: Region<u32>,
    /// \[q_heads, query tiles of all sequences\]: how many are listed.
    pub list_counts: Region<u32>,
    /// \[batch · q_heads, k_len\]: ascending keys.
    pub stripes: Region<u32>,
    /// \[batch · q_heads\]: how many.
    pub stripe_counts: Region<u32>,
    /// \[batch · q_heads\]: 1 where the head runs dense.
    pub dense: Region<u32>,
    /// How many of the attention's work tiles have been taken; one word.
    pub taken: Region<u32>,
    /// The attention's work tiles, longest first.
    pub order: Region<u32>,
    /// Bytes of all.
    pub bytes: u64,
}

/// Which regions a plan has.
#[derive(Clone, Copy)]
pub(super) enum Contents<'a> {
    /// None: every head is dense.
    Nothing,
    /// Lists, stripes and dense flags, which the caller writes.
    Lists,
    /// All that a selection needs, for as many units at a time as `wave` has.
    Selection {
        wave: &'a Units,
        budget: Budget,
        chooses_dense: bool,
    },
}

impl Workspace {
    pub(super) fn new(sizes: &ProblemSizes, contents: Contents<'_>) -> Self {
        let mut end = End(0);
        let heads = u64::from(sizes.heads());
        let list_count = u64::from(sizes.q_heads) * u64::from(sizes.sequences().query_tiles());
        let mut workspace = Workspace {
            row_lse: end.take(0),
            stats: end.take(0),
            sink_stats: end.take(0),
            mass: end.take(0),
            outside: end.take(0),
            covered: end.take(0),
            kept: end.take(0),
            lists: end.take(0),
            list_counts: end.take(0),
            stripes: end.take(0),
            stripe_counts: end.take(0),
            dense: end.take(0),
            taken: end.take(1),
            order: end.take(0),
            bytes: 0,
        };
        workspace.bytes = end.0;
        let (has_stripes, has_dense) = match contents {
            Contents::Nothing => return workspace,
            Contents::Lists => (true, true),
            Contents::Selection {
                wave,
                budget,
                chooses_dense,
            } => {
                workspace.take_wave(&mut end, wave, budget);
                workspace.kept = end.take(top_k::kept_len(wave));
                (
                    matches!(budget, Budget::Residual | Budget::Paper),
                    chooses_dense,
                )
            }
        };
        workspace.lists = end.take(list_count * u64::from(sizes.key_blocks()));
        workspace.list_counts = end.take(list_count);
        if has_stripes {
            workspace.stripes = end.take(heads * u64::from(sizes.k_len));
        }
        workspace.stripe_counts = end.take(heads);
        workspace.order = end.take(list_count);
        if has_dense {
            workspace.dense = end.take(heads);
        }
        workspace.bytes = end.0;
        workspace
    }

    /// Bytes that each unit of a wave brings.
    pub(super) fn unit_bytes(units: &Units, budget: Budget) -> u64 {
        let mut end = End(0);
        let mut workspace = Workspace::new(&units.sizes, Contents::Nothing);
        workspace.take_wave(&mut end, &units.slice(0, 1), budget);
        end.0
    }

    fn take_wave(&mut self, end: &mut End, wave: &Units, budget: Budget) {
        self.row_lse = end.take(sampling::row_lse_len(wave));
        match budget {
            Budget::Rows | Budget::Blocks => {
                self.stats = end.take(sampling::stats_len(wave));
                self.sink_stats = end.take(sampling::sink_stats_len(wave));
                self.mass = end.take(blocks::mass_len(wave));
                self.covered = end.take(blocks::covered_len(wave));
            }
            Budget::Residual | Budget::Paper => {
                self.mass = end.take(keys::mass_len(wave));
                self.covered = end.take(keys::covered_len(wave));
            }
        }
        if budget == Budget::Paper {
            self.outside = end.take(keys::mass_len(wave));
        }
    }
}

/// The end of what is taken.
struct End(u64);

impl End {
    fn take<T>(&mut self, len: u64) -> Region<T> {
        let offset_bytes = self.0.next_multiple_of(WORKSPACE_ALIGN_BYTES);
        if len > 0 {
            self.0 = offset_bytes + len * size_of::<T>() as u64;
        }
        Region {
            offset_bytes,
            len,
            element: PhantomData,
        }
    }
}
