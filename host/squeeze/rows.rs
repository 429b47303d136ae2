//! Keys and values that an index owns, in the element type that they came in, and rows of any tensor as f32.

use half::{bf16, f16, slice::HalfFloatSliceExt};

use super::error::Result;
use crate::dtype::Dtype;
use crate::tensor::{Element, Slice, SliceMut, TensorView, TensorViewMut};

/// [heads, length, head_dim], contiguous.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Rows {
    data: Data,
    heads: usize,
    len: usize,
    dim: usize,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Data {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
}

/// Where a row comes from: which of some tensors, and its token there.
pub(super) type Origin = (usize, u32);

impl Rows {
    /// Rows of `sources`, all of one type and batch 1, in the order that `order` gives for each head.
    pub(super) fn gathered(sources: &[TensorView<'_>], order: &[Vec<Origin>]) -> Self {
        let [_, heads, _, dim] = sources[0].shape();
        let len = order.first().map_or(0, Vec::len);
        let data = match sources[0].dtype() {
            Dtype::F32 => Data::F32(gathered(sources, order, dim, |slice| match slice {
                Slice::F32(data) => data,
                _ => unreachable!("the sources are of one type"),
            })),
            Dtype::F16 => Data::F16(gathered(sources, order, dim, |slice| match slice {
                Slice::F16(data) => data,
                _ => unreachable!("the sources are of one type"),
            })),
            Dtype::Bf16 => Data::Bf16(gathered(sources, order, dim, |slice| match slice {
                Slice::Bf16(data) => data,
                _ => unreachable!("the sources are of one type"),
            })),
        };
        Rows {
            data,
            heads,
            len,
            dim,
        }
    }

    #[cfg(feature = "index-files")]
    pub(super) fn from_data(data: Data, [heads, len, dim]: [usize; 3]) -> Self {
        Rows {
            data,
            heads,
            len,
            dim,
        }
    }

    #[cfg(feature = "index-files")]
    pub(super) fn data(&self) -> &Data {
        &self.data
    }

    #[cfg(all(test, feature = "index-files"))]
    pub(super) fn data_mut(&mut self) -> &mut Data {
        &mut self.data
    }

    pub(super) fn dtype(&self) -> Dtype {
        match self.data {
            Data::F32(_) => Dtype::F32,
            Data::F16(_) => Dtype::F16,
            Data::Bf16(_) => Dtype::Bf16,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn heads(&self) -> usize {
        self.heads
    }

    pub(super) fn dim(&self) -> usize {
        self.dim
    }

    pub(super) fn bytes(&self) -> usize {
        self.heads * self.len * self.dim * self.dtype().bytes()
    }

    /// All of it as [1, heads, length, head_dim].
    pub(super) fn view(&self) -> Result<TensorView<'_>> {
        let shape = [1, self.heads, self.len, self.dim];
        Ok(match &self.data {
            Data::F32(data) => TensorView::bhsd(data, shape),
            Data::F16(data) => TensorView::bhsd(data, shape),
            Data::Bf16(data) => TensorView::bhsd(data, shape),
        }?)
    }

    /// The first `len` rows of each head for each of `batch` sequences, which share them.
    pub(super) fn shared(&self, batch: usize, len: usize) -> Result<TensorView<'_>> {
        let shape = [batch, self.heads, len, self.dim];
        let strides = [0, self.len * self.dim, self.dim, 1];
        Ok(match &self.data {
            Data::F32(data) => TensorView::new(data, shape, strides),
            Data::F16(data) => TensorView::new(data, shape, strides),
            Data::Bf16(data) => TensorView::new(data, shape, strides),
        }?)
    }

    /// One row as f32.
    #[inline]
    pub(super) fn read(&self, head: usize, row: usize, to: &mut [f32]) {
        let start = (head * self.len + row) * self.dim;
        let range = start..start + self.dim;
        match &self.data {
            Data::F32(data) => to.copy_from_slice(&data[range]),
            Data::F16(data) => data[range].convert_to_f32_slice(to),
            Data::Bf16(data) => data[range].convert_to_f32_slice(to),
        }
    }
}

fn gathered<'a, T: Element>(
    sources: &[TensorView<'a>],
    order: &[Vec<Origin>],
    dim: usize,
    typed: impl Fn(Slice<'a>) -> &'a [T],
) -> Vec<T> {
    let data: Vec<&[T]> = sources.iter().map(|source| typed(source.data())).collect();
    let mut rows = Vec::with_capacity(order.iter().map(Vec::len).sum::<usize>() * dim);
    for (head, order) in order.iter().enumerate() {
        for &(source, token) in order {
            let start = sources[source].layout().row(0, head, token as usize);
            rows.extend_from_slice(&data[source][start..start + dim]);
        }
    }
    rows
}

/// One row of any tensor as f32.
#[inline]
pub(super) fn read(
    view: &TensorView<'_>,
    (batch, head, token): (usize, usize, usize),
    to: &mut [f32],
) {
    let start = view.layout().row(batch, head, token);
    let range = start..start + to.len();
    match view.data() {
        Slice::F32(data) => to.copy_from_slice(&data[range]),
        Slice::F16(data) => data[range].convert_to_f32_slice(to),
        Slice::Bf16(data) => data[range].convert_to_f32_slice(to),
    }
}

/// Some heads and tokens of one sequence.
pub(super) fn part<'a>(
    view: &TensorView<'a>,
    batch: usize,
    heads: std::ops::Range<usize>,
    tokens: std::ops::Range<usize>,
) -> Result<TensorView<'a>> {
    let start = view.layout().row(batch, heads.start, tokens.start);
    let shape = [1, heads.len(), tokens.len(), view.shape()[3]];
    let strides = view.strides();
    Ok(match view.data() {
        Slice::F32(data) => TensorView::new(&data[start..], shape, strides),
        Slice::F16(data) => TensorView::new(&data[start..], shape, strides),
        Slice::Bf16(data) => TensorView::new(&data[start..], shape, strides),
    }?)
}

/// Rows of one head, copied together in the element type that they have: kept runs, for a kernel that takes keys as they lie.
pub(super) struct Gathered {
    data: Data,
    dim: usize,
}

impl Gathered {
    /// Room for this many rows.
    pub(super) fn new(rows: &Rows, capacity: usize) -> Self {
        let elements = capacity * rows.dim;
        let data = match rows.data {
            Data::F32(_) => Data::F32(Vec::with_capacity(elements)),
            Data::F16(_) => Data::F16(Vec::with_capacity(elements)),
            Data::Bf16(_) => Data::Bf16(Vec::with_capacity(elements)),
        };
        Gathered {
            data,
            dim: rows.dim,
        }
    }

    pub(super) fn clear(&mut self) {
        match &mut self.data {
            Data::F32(data) => data.clear(),
            Data::F16(data) => data.clear(),
            Data::Bf16(data) => data.clear(),
        }
    }

    pub(super) fn push(&mut self, rows: &Rows, head: usize, run: std::ops::Range<usize>) {
        let start = (head * rows.len + run.start) * rows.dim;
        let range = start..start + run.len() * rows.dim;
        match (&mut self.data, &rows.data) {
            (Data::F32(to), Data::F32(from)) => to.extend_from_slice(&from[range]),
            (Data::F16(to), Data::F16(from)) => to.extend_from_slice(&from[range]),
            (Data::Bf16(to), Data::Bf16(from)) => to.extend_from_slice(&from[range]),
            _ => unreachable!("made for these rows"),
        }
    }

    /// What was pushed, as [1, 1, rows, head_dim].
    pub(super) fn view(&self) -> Result<TensorView<'_>> {
        let shape = |elements: usize| [1, 1, elements / self.dim, self.dim];
        Ok(match &self.data {
            Data::F32(data) => TensorView::bhsd(data, shape(data.len())),
            Data::F16(data) => TensorView::bhsd(data, shape(data.len())),
            Data::Bf16(data) => TensorView::bhsd(data, shape(data.len())),
        }?)
    }
}

impl Gathered {
    /// Bytes of its room.
    pub(super) fn bytes(&self) -> usize {
        match &self.data {
            Data::F32(data) => 4 * data.capacity(),
            Data::F16(data) => 2 * data.capacity(),
            Data::Bf16(data) => 2 * data.capacity(),
        }
    }
}

/// Writes one row of an output, rounded to its type.
pub(super) fn write_row(
    view: &mut TensorViewMut<'_>,
    (batch, head, token): (usize, usize, usize),
    row: &[f32],
) {
    let (data, layout) = view.parts();
    let start = layout.row(batch, head, token);
    let range = start..start + row.len();
    match data {
        SliceMut::F32(data) => {
            for (to, &x) in data[range].iter_mut().zip(row) {
                to.write(x);
            }
        }
        SliceMut::F16(data) => {
            for (to, &x) in data[range].iter_mut().zip(row) {
                to.write(f16::from_f32(x));
            }
        }
        SliceMut::Bf16(data) => {
            for (to, &x) in data[range].iter_mut().zip(row) {
                to.write(bf16::from_f32(x));
            }
        }
    }
}
