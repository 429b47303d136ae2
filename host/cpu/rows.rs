//! Between the caller's buffers and the tiles: reading rows of any element type as f32, writing rows back.

use std::marker::PhantomData;
use std::ops::Range;

use half::{bf16, f16, slice::HalfFloatSliceExt};

use super::simd::{Lanes, PANEL};
use super::tile::{KEY_GROUP, Rows};
use crate::problem::MAX_HEAD_DIM;
use crate::tensor::{Layout, Slice, SliceMut, TensorViewMut};
use crate::varlen::{KvView, RowIndex};

/// The rows of one head of an input.
#[derive(Clone, Copy)]
pub(super) struct HeadRows<'a> {
    data: Slice<'a>,
    index: RowIndex<'a>,
}

impl<'a> HeadRows<'a> {
    pub(super) fn new(view: KvView<'a>, batch: usize, head: usize) -> Self {
        HeadRows {
            data: view.data(),
            index: view.rows(batch, head),
        }
    }

    pub(super) fn data(&self) -> Slice<'a> {
        self.data
    }

    pub(super) fn index(&self) -> RowIndex<'a> {
        self.index
    }

    /// One row as f32.
    #[inline]
    pub(super) fn read(&self, token: usize, row: &mut [f32]) {
        let start = self.index.row(token);
        let range = start..start + row.len();
        match self.data {
            Slice::F32(data) => row.copy_from_slice(&data[range]),
            Slice::F16(data) => data[range].convert_to_f32_slice(row),
            Slice::Bf16(data) => {
                // A bf16 is the upper half of an f32; written out so that it vectorises.
                for (to, from) in row.iter_mut().zip(&data[range]) {
                    *to = f32::from_bits((from.to_bits() as u32) << 16);
                }
            }
        }
    }

    /// Rows `tokens`, converted into `tile`, or in place where they are f32 already and come in whole groups.
    #[inline]
    pub(super) fn tile<'t>(
        &self,
        tokens: Range<usize>,
        tile: &'t mut [f32],
        head_dim: usize,
    ) -> Rows<'t>
    where
        'a: 't,
    {
        if let Slice::F32(data) = self.data
            && tokens.len().is_multiple_of(KEY_GROUP)
            && self.index.is_strided(tokens.start, tokens.len())
        {
            return Rows {
                data: &data[self.index.row(tokens.start)..],
                stride: self.index.stride,
            };
        }
        self.gather(tokens, tile, head_dim)
    }

    /// Rows `tokens`, in any order, converted into `tile`; the rest of the last group is filled with zeros.
    #[inline]
    pub(super) fn gather<'t>(
        &self,
        tokens: impl ExactSizeIterator<Item = usize>,
        tile: &'t mut [f32],
        head_dim: usize,
    ) -> Rows<'t> {
        let count = tokens.len();
        let mut rows = tile.chunks_exact_mut(head_dim);
        for (token, row) in tokens.zip(&mut rows) {
            self.read(token, row);
        }
        for padding in rows.take(count.next_multiple_of(KEY_GROUP) - count) {
            padding.fill(0.0);
        }
        Rows {
            data: tile,
            stride: head_dim,
        }
    }

    /// A panel of queries, transposed and scaled; lanes without a row repeat zeros.
    #[inline]
    pub(super) fn queries(
        &self,
        rows: impl ExactSizeIterator<Item = usize>,
        scale: f64,
        row: &mut [f32],
        panel: &mut [Lanes],
    ) {
        debug_assert!(rows.len() <= PANEL);
        panel.fill(Lanes::ZERO);
        for (lane, token) in rows.enumerate() {
            self.read(token, row);
            for (lanes, &x) in panel.iter_mut().zip(row.iter()) {
                // Rounded once, and right for scales that an f32 hardly holds once log2(e) is in them.
                lanes.0[lane] = (f64::from(x) * scale) as f32;
            }
        }
    }
}

#[derive(Clone, Copy)]
enum Pointer {
    F32(*mut f32),
    F16(*mut f16),
    Bf16(*mut bf16),
}

/// The rows of an output, or of a part of it, to be written from several threads, each row by one of them.
#[derive(Clone, Copy)]
pub(super) struct OutputRows<'a> {
    pointer: Pointer,
    layout: Layout,
    /// Element of the output at which the part begins.
    start: usize,
    lse: *mut f32,
    /// Elements of the log-sum-exp from a head to the next, and at which the part begins.
    lse_stride: usize,
    lse_start: usize,
    owner: PhantomData<&'a mut f32>,
}

// SAFETY: rows are written through `OutputRows::write` alone, whose contract gives each row to one thread.
unsafe impl Sync for OutputRows<'_> {}
// SAFETY: it stands for exclusive borrows of plain floats.
unsafe impl Send for OutputRows<'_> {}

impl<'a> OutputRows<'a> {
    /// `lse`, where given, holds batch · heads · length elements of `o`'s sizes.
    pub(super) fn new(o: &'a mut TensorViewMut<'_>, lse: Option<&'a mut [f32]>) -> Self {
        let [batch, heads, len, _] = o.shape();
        if let Some(lse) = &lse {
            assert_eq!(lse.len(), batch * heads * len, "checked by the plan");
        }
        let (data, layout) = o.parts();
        OutputRows {
            layout: *layout,
            pointer: match data {
                SliceMut::F32(data) => Pointer::F32(data.as_mut_ptr().cast()),
                SliceMut::F16(data) => Pointer::F16(data.as_mut_ptr().cast()),
                SliceMut::Bf16(data) => Pointer::Bf16(data.as_mut_ptr().cast()),
            },
            start: 0,
            lse: lse.map_or(std::ptr::null_mut(), <[f32]>::as_mut_ptr),
            lse_stride: len,
            lse_start: 0,
            owner: PhantomData,
        }
    }

    /// Shape of the part as [batch, heads, length, head_dim].
    pub(super) fn shape(&self) -> [usize; 4] {
        self.layout.shape
    }

    /// Some heads and tokens of an output of one sequence, or of sequences that are packed.
    pub(super) fn part(&self, heads: Range<usize>, tokens: Range<usize>) -> Self {
        let [batches, all_heads, len, head_dim] = self.layout.shape;
        assert!(batches == 1 && heads.end <= all_heads && tokens.end <= len);
        OutputRows {
            layout: Layout {
                shape: [1, heads.len(), tokens.len(), head_dim],
                ..self.layout
            },
            start: self.start + self.layout.row(0, heads.start, tokens.start),
            lse_start: self.lse_start + heads.start * self.lse_stride + tokens.start,
            ..*self
        }
    }

    /// Writes one row of O and its log-sum-exp.
    ///
    /// # Safety
    /// No other thread may write the same (batch, head, token) at the same time, through this part or another.
    pub(super) unsafe fn write(
        &self,
        (batch, head, token): (usize, usize, usize),
        row: &[f32],
        lse: f32,
    ) {
        let [batches, heads, len, head_dim] = self.layout.shape;
        assert!(batch < batches && head < heads && token < len && row.len() == head_dim);
        let offset = self.start + self.layout.row(batch, head, token);
        // SAFETY: the layout keeps every index of the view inside its buffer and apart from all others, the buffer is
        // borrowed for 'a, and the caller gives this row to this thread alone.
        unsafe {
            match self.pointer {
                Pointer::F32(o) => write_row(o.add(offset), row),
                Pointer::F16(o) => {
                    let mut half = [f16::ZERO; MAX_HEAD_DIM];
                    half[..head_dim].convert_from_f32_slice(row);
                    write_row(o.add(offset), &half[..head_dim]);
                }
                Pointer::Bf16(o) => {
                    let mut half = [bf16::ZERO; MAX_HEAD_DIM];
                    half[..head_dim].convert_from_f32_slice(row);
                    write_row(o.add(offset), &half[..head_dim]);
                }
            }
            if !self.lse.is_null() {
                let row = self.lse_start + (batch * heads + head) * self.lse_stride + token;
                *self.lse.add(row) = lse;
            }
        }
    }
}

/// Writes a row to memory that may hold no values yet, and so has no slice.
///
/// # Safety
/// `to` is valid for writes of the row, and nobody else uses that memory.
unsafe fn write_row<T: Copy>(to: *mut T, row: &[T]) {
    // SAFETY: the caller's; the row is borrowed, so the two do not overlap.
    unsafe { to.copy_from_nonoverlapping(row.as_ptr(), row.len()) };
}
