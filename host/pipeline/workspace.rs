//! Where everything that the stages hand to each other lies in one allocation.

use std::marker::PhantomData;

use sample_attention_device::abi::{HeadEntry, HeadKind};
use sample_attention_device::gpu::Global;
use sample_attention_device::reduction::{blocks, keys};
use sample_attention_device::sampling;

use super::selecting::Selecting;
use super::slices::Shape;

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

/// The layout of a workspace. The order of the elements is in the documentation of the kernels. A *slice* is some query tiles
/// whose key blocks are selected together, a *pass* some heads whose single keys are.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Workspace {
    /// Of a slice or pass: the log-sum-exp of every sampled row, in two parts.
    pub row_lse: Region<f32>,
    /// Of a slice: the statistic of every sampled row over each key block; with the budget of rows its mass, at last.
    pub stats: Region<f32>,
    /// Of a slice: what statistics are relative to.
    pub bases: Region<f32>,
    /// Of a slice: the statistic of every sampled row over the sinks.
    pub sink_stats: Region<f32>,
    /// Of a slice or pass: what candidates are ranked by.
    pub mass: Region<u64>,
    /// Of a pass: mass outside window and sinks; for the paper's budget.
    pub outside: Region<u64>,
    /// Of a slice or pass: mass in window and sinks.
    pub covered: Region<u64>,
    /// \[q_heads, query tiles of all sequences\]: mass that the selection keeps.
    pub kept: Region<u64>,
    /// \[q_heads, query tiles of all sequences\]: how many key blocks are listed.
    pub listed: Region<u32>,
    /// \[q_heads, query tiles of all sequences\]: sampled rows with a finite normaliser; for the budget of rows.
    pub finite_rows: Region<u32>,
    /// \[q_heads, query tiles, capacity\]: ascending key blocks. Of all query tiles, or of a slice.
    pub lists: Region<u32>,
    /// \[q_heads, query tiles\]: how many are listed.
    pub list_counts: Region<u32>,
    /// \[batch · q_heads, k_len\]: ascending keys.
    pub stripes: Region<u32>,
    /// \[batch · q_heads\]: how many.
    pub stripe_counts: Region<u32>,
    /// \[batch · q_heads\]: 1 where the head runs dense.
    pub dense: Region<u32>,
    /// \[q_heads\]: the heads' policies, where they differ.
    pub heads: Region<HeadEntry>,
    /// The sampled heads, where the policies differ.
    pub sampled_heads: Region<u32>,
    /// How many of the attention's work tiles have been taken; one word.
    pub taken: Region<u32>,
    /// The attention's work tiles, longest first.
    pub order: Region<u32>,
    /// \[batch, q_len, q_heads, splits, head_dim\]: weighted sums of values, where few queries attend to splits of the keys.
    pub partial_o: Region<f32>,
    /// \[batch, q_len, q_heads, splits, 2\]: greatest score and sum of weights.
    pub partial_sums: Region<f32>,
    /// Bytes of all.
    pub bytes: u64,
}

impl Workspace {
    /// Of a plan in which every head is dense.
    pub(super) fn dense() -> Self {
        let mut end = End(0);
        let mut workspace = Workspace {
            row_lse: end.take(0),
            stats: end.take(0),
            bases: end.take(0),
            sink_stats: end.take(0),
            mass: end.take(0),
            outside: end.take(0),
            covered: end.take(0),
            kept: end.take(0),
            listed: end.take(0),
            finite_rows: end.take(0),
            lists: end.take(0),
            list_counts: end.take(0),
            stripes: end.take(0),
            stripe_counts: end.take(0),
            dense: end.take(0),
            heads: end.take(0),
            sampled_heads: end.take(0),
            taken: end.take(1),
            order: end.take(0),
            partial_o: end.take(0),
            partial_sums: end.take(0),
            bytes: 0,
        };
        workspace.bytes = end.0;
        workspace
    }

    /// Of a dense plan with few queries, whose splits' shares have so many elements.
    pub(super) fn few_queries((o_len, sums_len): (u64, u64)) -> Self {
        let mut workspace = Workspace::dense();
        let mut end = End(workspace.bytes);
        workspace.partial_o = end.take(o_len);
        workspace.partial_sums = end.take(sums_len);
        workspace.bytes = end.0;
        workspace
    }

    /// Of lists, stripes and dense flags, which the caller writes: of `tiles` query tiles, `sequences` sequences of up to
    /// `max_k` keys.
    pub(super) fn given(q_heads: u32, tiles: u32, sequences: u32, max_k: u32) -> Self {
        let mut workspace = Workspace::dense();
        let mut end = End(workspace.bytes);
        let blocks = max_k.div_ceil(sample_attention_device::params::BLOCK);
        workspace.take_lists(
            &mut end,
            u64::from(q_heads) * u64::from(tiles),
            blocks.into(),
        );
        let heads = u64::from(q_heads) * u64::from(sequences);
        workspace.take_keys(&mut end, heads, max_k);
        workspace.dense = end.take(heads);
        workspace.bytes = end.0;
        workspace
    }

    /// Of a selection.
    pub(super) fn selecting(shape: &Shape<'_>, selecting: &Selecting) -> Self {
        let mut workspace = Workspace::dense();
        let mut end = End(workspace.bytes);
        workspace.take_statistics(&mut end, shape, selecting);
        let q_heads = u64::from(shape.q_heads);
        let all_tiles = q_heads * u64::from(shape.sequences.query_tiles());
        workspace.kept = end.take(all_tiles);
        workspace.listed = end.take(all_tiles);
        if selecting.selects_by_tile() {
            workspace.finite_rows = end.take(all_tiles);
        }
        match selecting.list_capacity {
            Some(capacity) => workspace.take_lists(&mut end, all_tiles, capacity.into()),
            None => {
                let slices = selecting.slices.iter();
                let rows = slices.clone().map(|slice| u64::from(slice.tiles)).max();
                let entries =
                    slices.map(|slice| u64::from(slice.tiles) * u64::from(slice.block_capacity));
                workspace.lists = end.take(q_heads * entries.max().unwrap_or(0));
                workspace.take_lists(&mut end, q_heads * rows.unwrap_or(0), 0);
            }
        }
        let heads = q_heads * u64::from(shape.sequences.count);
        if !selecting.passes.is_empty() {
            workspace.take_keys(&mut end, heads, shape.sequences.max_k);
        }
        if selecting.chooses_dense {
            workspace.dense = end.take(heads);
        }
        if !selecting.heads.are_alike() {
            workspace.heads = end.take(q_heads);
            workspace.sampled_heads = end.take(selecting.heads.sampled().max(1).into());
        }
        workspace.bytes = end.0;
        workspace
    }

    /// Lists of so many query tiles; without a capacity, the key blocks are there already.
    fn take_lists(&mut self, end: &mut End, rows: u64, capacity: u64) {
        if capacity > 0 {
            self.lists = end.take(rows * capacity);
        }
        self.list_counts = end.take(rows);
        self.order = end.take(rows);
    }

    fn take_keys(&mut self, end: &mut End, heads: u64, max_k: u32) {
        self.stripes = end.take(heads * u64::from(max_k));
        self.stripe_counts = end.take(heads);
    }

    /// What slices and passes need, the largest of each.
    fn take_statistics(&mut self, end: &mut End, shape: &Shape<'_>, selecting: &Selecting) {
        let nowhere = selecting.heads.at_nowhere();
        let slices = || {
            let slices = selecting.slices.iter();
            slices
                .map(|range| shape.of_blocks(nowhere, range))
                .filter(|slice| slice.slots > 0)
        };
        let passes = || {
            let passes = selecting.passes.iter();
            passes.map(|pass| shape.of_keys(nowhere, pass))
        };
        let most = |lens: &mut dyn Iterator<Item = u64>| lens.max().unwrap_or(0);
        let by_segments = selecting.heads.any(|kind| kind == HeadKind::Blocks);
        let is_paper = selecting.heads.any(|kind| kind == HeadKind::Paper);
        let of_blocks = |len: u64| if by_segments { len } else { 0 };
        self.row_lse = end.take(
            most(&mut slices().map(|slice| sampling::row_lse_len(&slice))).max(most(
                &mut passes().map(|pass| sampling::row_lse_len(&pass.slice)),
            )),
        );
        self.stats = end.take(most(&mut slices().map(|slice| sampling::stats_len(&slice))));
        self.bases = end.take(most(&mut slices().map(|slice| sampling::bases_len(&slice))));
        self.sink_stats = end.take(most(
            &mut slices().map(|slice| sampling::sink_stats_len(&slice)),
        ));
        let of_passes = most(&mut passes().map(|pass| keys::mass_len(&pass)));
        self.mass = end.take(
            of_blocks(most(&mut slices().map(|slice| blocks::mass_len(&slice)))).max(of_passes),
        );
        self.outside = end.take(if is_paper { of_passes } else { 0 });
        self.covered = end.take(
            of_blocks(most(&mut slices().map(|slice| blocks::covered_len(&slice))))
                .max(most(&mut passes().map(|pass| keys::covered_len(&pass)))),
        );
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
