//! Strided views of the caller's buffers: [batch, heads, length, head_dim] in any order of the outer three.

use std::fmt;
use std::mem::MaybeUninit;
use std::ops::Range;

use half::{bf16, f16};

use crate::error::{Error, Result};
use crate::problem::{Dtype, Problem};
use crate::shape::swap_middle;

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::f16 {}
    impl Sealed for half::bf16 {}
}

/// Element types of tensors: `f32`, [`half::f16`] and [`half::bf16`].
pub trait Element: sealed::Sealed + Copy + Send + Sync + Sized + 'static {
    /// The type's tag.
    const DTYPE: Dtype;
    #[doc(hidden)]
    fn slice(data: &[Self]) -> Slice<'_>;
}

/// Elements of outputs: those of inputs, and the same in `MaybeUninit`, since outputs are only written.
pub trait OutputElement: sealed::Sealed + Sized {
    /// Whether memory of this type always holds values.
    #[doc(hidden)]
    const IS_INITIALISED: bool;
    #[doc(hidden)]
    fn slice_mut(data: &mut [Self]) -> SliceMut<'_>;
}

macro_rules! element {
    ($type:ty, $variant:ident) => {
        impl Element for $type {
            const DTYPE: Dtype = Dtype::$variant;
            fn slice(data: &[Self]) -> Slice<'_> {
                Slice::$variant(data)
            }
        }

        impl OutputElement for $type {
            const IS_INITIALISED: bool = true;
            fn slice_mut(data: &mut [Self]) -> SliceMut<'_> {
                let (data, len) = (data.as_mut_ptr().cast(), data.len());
                // SAFETY: the same memory for as long, and the crate writes nothing but values to a `SliceMut`.
                SliceMut::$variant(unsafe { std::slice::from_raw_parts_mut(data, len) })
            }
        }

        impl sealed::Sealed for MaybeUninit<$type> {}

        impl OutputElement for MaybeUninit<$type> {
            const IS_INITIALISED: bool = false;
            fn slice_mut(data: &mut [Self]) -> SliceMut<'_> {
                SliceMut::$variant(data)
            }
        }
    };
}
element!(f32, F32);
element!(f16, F16);
element!(bf16, Bf16);

#[doc(hidden)]
#[derive(Clone, Copy)]
pub enum Slice<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    Bf16(&'a [bf16]),
}

/// Elements to be written, which may hold nothing yet.
#[doc(hidden)]
pub enum SliceMut<'a> {
    F32(&'a mut [MaybeUninit<f32>]),
    F16(&'a mut [MaybeUninit<f16>]),
    Bf16(&'a mut [MaybeUninit<bf16>]),
}

/// Where the elements of a view lie: shape and strides, both in elements, as [batch, heads, length, head_dim].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) shape: [usize; 4],
    pub(crate) strides: [usize; 4],
}

impl Layout {
    /// Checks that every index stays below `len` and that rows are contiguous.
    pub(crate) fn new(shape: [usize; 4], strides: [usize; 4], len: usize) -> Result<Self> {
        if strides[3] != 1 && shape[3] > 1 {
            return Err(Error::InnerStride { stride: strides[3] });
        }
        let overflow = Error::ViewOverflow { shape, strides };
        if !shape.contains(&0) {
            let last = shape
                .iter()
                .zip(strides)
                .try_fold(0usize, |last, (&size, stride)| {
                    last.checked_add((size - 1).checked_mul(stride)?)
                })
                .ok_or(overflow)?;
            if last >= len {
                return Err(Error::OutOfBounds {
                    shape,
                    strides,
                    last,
                    len,
                });
            }
        }
        Ok(Layout { shape, strides })
    }

    pub(crate) fn dense([a, b, c, d]: [usize; 4]) -> Result<[usize; 4]> {
        let overflow = Error::SizeOverflow {
            shape: [a, b, c, d],
        };
        let plane = c.checked_mul(d);
        let volume = plane.and_then(|plane| plane.checked_mul(b));
        match (plane, volume) {
            (Some(plane), Some(volume)) => Ok([volume, plane, d, 1]),
            _ => Err(overflow),
        }
    }

    /// Whether no two indices share an address: sorted by stride, each dimension steps over all the smaller ones.
    pub(crate) fn is_injective(&self) -> bool {
        // No index, so no stride is ever taken; without bounds on them, their sum could overflow.
        if self.shape.contains(&0) {
            return true;
        }
        let mut dims: Vec<(usize, usize)> = self
            .strides
            .into_iter()
            .zip(self.shape)
            .filter(|&(_, size)| size > 1)
            .collect();
        dims.sort_unstable();
        let mut reach = 0usize;
        dims.into_iter().all(|(stride, size)| {
            let steps_over = stride > reach;
            reach += stride * (size - 1);
            steps_over
        })
    }

    fn describe(&self, view: &str, dtype: Dtype, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct(view)
            .field("dtype", &dtype)
            .field("shape", &self.shape)
            .field("strides", &self.strides)
            .finish()
    }

    /// One head of one sequence, and the element at which it begins; the buffer holds at least one.
    fn of_head(&self, batch: usize, head: usize) -> (usize, Layout) {
        let [_, _, len, head_dim] = self.shape;
        let layout = Layout {
            shape: [1, 1, len, head_dim],
            strides: self.strides,
        };
        (self.row(batch, head, 0), layout)
    }

    /// Element offset of row (batch, head, token).
    #[inline]
    pub(crate) fn row(&self, batch: usize, head: usize, token: usize) -> usize {
        batch * self.strides[0] + head * self.strides[1] + token * self.strides[2]
    }
}

/// A read-only tensor over a caller's buffer.
#[derive(Clone, Copy)]
pub struct TensorView<'a> {
    data: Slice<'a>,
    layout: Layout,
}

impl<'a> TensorView<'a> {
    /// A view with explicit strides, in elements, of [batch, heads, length, head_dim]; the last must be 1.
    ///
    /// # Errors
    /// [`Error::InnerStride`], [`Error::OutOfBounds`] and [`Error::ViewOverflow`].
    pub fn new<T: Element>(data: &'a [T], shape: [usize; 4], strides: [usize; 4]) -> Result<Self> {
        let layout = Layout::new(shape, strides, data.len())?;
        Ok(TensorView {
            data: T::slice(data),
            layout,
        })
    }

    /// A contiguous tensor in memory order [batch, heads, length, head_dim].
    ///
    /// # Errors
    /// As [`TensorView::new`].
    pub fn bhsd<T: Element>(data: &'a [T], shape: [usize; 4]) -> Result<Self> {
        Self::new(data, shape, Layout::dense(shape)?)
    }

    /// A contiguous tensor in memory order [batch, length, heads, head_dim], which is also the order of `shape`.
    ///
    /// # Errors
    /// As [`TensorView::new`].
    pub fn bshd<T: Element>(data: &'a [T], shape: [usize; 4]) -> Result<Self> {
        let strides = Layout::dense(shape)?;
        Self::new(data, swap_middle(shape), swap_middle(strides))
    }

    /// A contiguous packed tensor in memory order [tokens, heads, head_dim], which is also the order of `shape`: the tokens of all
    /// sequences of a ragged batch, as one of shape [1, heads, tokens, head_dim].
    ///
    /// # Errors
    /// As [`TensorView::new`].
    pub fn thd<T: Element>(data: &'a [T], [tokens, heads, head_dim]: [usize; 3]) -> Result<Self> {
        Self::bshd(data, [1, tokens, heads, head_dim])
    }

    /// Shape as [batch, heads, length, head_dim].
    pub fn shape(&self) -> [usize; 4] {
        self.layout.shape
    }

    /// Strides in elements, of [batch, heads, length, head_dim].
    pub fn strides(&self) -> [usize; 4] {
        self.layout.strides
    }

    /// Element type.
    pub fn dtype(&self) -> Dtype {
        match self.data {
            Slice::F32(_) => Dtype::F32,
            Slice::F16(_) => Dtype::F16,
            Slice::Bf16(_) => Dtype::Bf16,
        }
    }

    /// The whole buffer as it lies in memory, gaps included.
    pub fn as_bytes(&self) -> &'a [u8] {
        match self.data {
            Slice::F32(data) => bytemuck::cast_slice(data),
            Slice::F16(data) => bytemuck::cast_slice(data),
            Slice::Bf16(data) => bytemuck::cast_slice(data),
        }
    }

    pub(crate) fn data(&self) -> Slice<'a> {
        self.data
    }

    /// One head of one sequence.
    pub(crate) fn of_head(&self, batch: usize, head: usize) -> TensorView<'a> {
        let (start, layout) = self.layout.of_head(batch, head);
        let data = match self.data {
            Slice::F32(data) => Slice::F32(&data[start..]),
            Slice::F16(data) => Slice::F16(&data[start..]),
            Slice::Bf16(data) => Slice::Bf16(&data[start..]),
        };
        TensorView { data, layout }
    }

    /// Some heads of all sequences; the buffer holds at least one element of them.
    pub(crate) fn with_heads(&self, heads: Range<usize>) -> TensorView<'a> {
        self.within(1, heads)
    }

    /// Some tokens of all heads, at least one; the buffer holds at least one element of them.
    pub(crate) fn with_tokens(&self, tokens: Range<usize>) -> TensorView<'a> {
        self.within(2, tokens)
    }

    fn within(&self, dimension: usize, some: Range<usize>) -> TensorView<'a> {
        let start = some.start * self.layout.strides[dimension];
        let mut layout = self.layout;
        layout.shape[dimension] = some.len();
        let data = match self.data {
            Slice::F32(data) => Slice::F32(&data[start..]),
            Slice::F16(data) => Slice::F16(&data[start..]),
            Slice::Bf16(data) => Slice::Bf16(&data[start..]),
        };
        TensorView { data, layout }
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    pub(crate) fn check(
        &self,
        tensor: &'static str,
        expected: [usize; 4],
        dtype: Dtype,
    ) -> Result<()> {
        check_shape(tensor, expected, self.shape())?;
        if self.dtype() != dtype {
            return Err(Error::Dtype {
                tensor,
                expected: dtype,
                given: self.dtype(),
            });
        }
        Ok(())
    }
}

/// Element type, shape and strides; not the elements, of which there may be millions.
impl fmt::Debug for TensorView<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.layout.describe("TensorView", self.dtype(), f)
    }
}

/// A writable tensor over a caller's buffer; no two of its elements share an address.
///
/// The buffer need not hold values: `&mut [MaybeUninit<f32>]`, such as [`Vec::spare_capacity_mut`], is taken as it is. A run that
/// returns `Ok` has written **every element of the view** (not the gaps that its strides leave); one that returns an error has
/// written none.
///
/// ```
/// # use sample_attention::*;
/// # let problem = Problem::causal(300, 64, Dtype::F32);
/// # let plan = Plan::dense(problem)?;
/// # let mut workspace = vec![0; plan.workspace_bytes()];
/// # let data = vec![0.5f32; 300 * 64];
/// # let view = TensorView::bhsd(&data, problem.q_shape())?;
/// # let inputs = Inputs::new(view, view, view);
/// let len = problem.q_shape().iter().product();
/// let mut o = Vec::<f32>::with_capacity(len);
/// let outputs = Outputs::new(TensorViewMut::bhsd(o.spare_capacity_mut(), problem.q_shape())?);
/// plan.run(&inputs, outputs, &mut workspace)?;
/// // SAFETY: the run has written the first `len` elements, all of a contiguous view.
/// unsafe { o.set_len(len) };
/// # assert!(o.iter().all(|&x| x == 0.5));
/// # Ok::<(), Error>(())
/// ```
pub struct TensorViewMut<'a> {
    data: SliceMut<'a>,
    is_initialised: bool,
    layout: Layout,
}

impl<'a> TensorViewMut<'a> {
    /// A view with explicit strides, in elements, of [batch, heads, length, head_dim]; the last must be 1.
    ///
    /// # Errors
    /// As [`TensorView::new`], and [`Error::OverlappingOutput`].
    pub fn new<T: OutputElement>(
        data: &'a mut [T],
        shape: [usize; 4],
        strides: [usize; 4],
    ) -> Result<Self> {
        let layout = Layout::new(shape, strides, data.len())?;
        if !layout.is_injective() {
            return Err(Error::OverlappingOutput { shape, strides });
        }
        Ok(TensorViewMut {
            data: T::slice_mut(data),
            is_initialised: T::IS_INITIALISED,
            layout,
        })
    }

    /// A contiguous tensor in memory order [batch, heads, length, head_dim].
    ///
    /// # Errors
    /// As [`TensorViewMut::new`].
    pub fn bhsd<T: OutputElement>(data: &'a mut [T], shape: [usize; 4]) -> Result<Self> {
        Self::new(data, shape, Layout::dense(shape)?)
    }

    /// A contiguous tensor in memory order [batch, length, heads, head_dim], which is also the order of `shape`.
    ///
    /// # Errors
    /// As [`TensorViewMut::new`].
    pub fn bshd<T: OutputElement>(data: &'a mut [T], shape: [usize; 4]) -> Result<Self> {
        let strides = Layout::dense(shape)?;
        Self::new(data, swap_middle(shape), swap_middle(strides))
    }

    /// A contiguous packed tensor in memory order [tokens, heads, head_dim], as [`TensorView::thd`].
    ///
    /// # Errors
    /// As [`TensorViewMut::new`].
    pub fn thd<T: OutputElement>(
        data: &'a mut [T],
        [tokens, heads, head_dim]: [usize; 3],
    ) -> Result<Self> {
        Self::bshd(data, [1, tokens, heads, head_dim])
    }

    /// Shape as [batch, heads, length, head_dim].
    pub fn shape(&self) -> [usize; 4] {
        self.layout.shape
    }

    /// Strides in elements, of [batch, heads, length, head_dim].
    pub fn strides(&self) -> [usize; 4] {
        self.layout.strides
    }

    /// Element type.
    pub fn dtype(&self) -> Dtype {
        match self.data {
            SliceMut::F32(_) => Dtype::F32,
            SliceMut::F16(_) => Dtype::F16,
            SliceMut::Bf16(_) => Dtype::Bf16,
        }
    }

    /// The whole buffer as it lies in memory, gaps included. A buffer of `MaybeUninit` is filled with zeros first.
    pub fn as_bytes_mut(&mut self) -> &mut [u8] {
        let (start, bytes): (*mut u8, usize) = match &mut self.data {
            SliceMut::F32(data) => (data.as_mut_ptr().cast(), size_of_val(*data)),
            SliceMut::F16(data) => (data.as_mut_ptr().cast(), size_of_val(*data)),
            SliceMut::Bf16(data) => (data.as_mut_ptr().cast(), size_of_val(*data)),
        };
        if !self.is_initialised {
            // SAFETY: the buffer is borrowed for as long as the view lives.
            unsafe { start.write_bytes(0, bytes) };
            self.is_initialised = true;
        }
        // SAFETY: the same memory, which holds values, of types of which any bytes are one.
        unsafe { std::slice::from_raw_parts_mut(start, bytes) }
    }

    /// One head of one sequence.
    pub(crate) fn of_head(&mut self, batch: usize, head: usize) -> TensorViewMut<'_> {
        let (start, layout) = self.layout.of_head(batch, head);
        let data = match &mut self.data {
            SliceMut::F32(data) => SliceMut::F32(&mut data[start..]),
            SliceMut::F16(data) => SliceMut::F16(&mut data[start..]),
            SliceMut::Bf16(data) => SliceMut::Bf16(&mut data[start..]),
        };
        TensorViewMut {
            data,
            is_initialised: self.is_initialised,
            layout,
        }
    }

    pub(crate) fn parts(&mut self) -> (&mut SliceMut<'a>, &Layout) {
        (&mut self.data, &self.layout)
    }

    /// The output takes the inputs' element type or f32.
    pub(crate) fn check(
        &self,
        tensor: &'static str,
        expected: [usize; 4],
        dtype: Dtype,
    ) -> Result<()> {
        check_shape(tensor, expected, self.shape())?;
        if self.dtype() != dtype && self.dtype() != Dtype::F32 {
            return Err(Error::Dtype {
                tensor,
                expected: dtype,
                given: self.dtype(),
            });
        }
        Ok(())
    }
}

/// As for [`TensorView`].
impl fmt::Debug for TensorViewMut<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.layout.describe("TensorViewMut", self.dtype(), f)
    }
}

pub(crate) fn check_shape(
    tensor: &'static str,
    expected: [usize; 4],
    given: [usize; 4],
) -> Result<()> {
    if given != expected {
        return Err(Error::Shape {
            tensor,
            expected,
            given,
        });
    }
    Ok(())
}

/// Q, K and V of one call.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Inputs<'a> {
    /// Queries [batch, q_heads, q_len, head_dim].
    pub q: TensorView<'a>,
    /// Keys [batch, kv_heads, k_len, head_dim].
    pub k: TensorView<'a>,
    /// Values [batch, kv_heads, k_len, head_dim].
    pub v: TensorView<'a>,
    /// A learned sink of each query head \[q_heads\]: a logit in the softmax of every row that has no value. It is part of the
    /// log-sum-exp, also of rows that see no key. `None` has no sinks, and so has a head with −∞.
    pub sink_logits: Option<&'a [f32]>,
}

/// What one call writes.
#[non_exhaustive]
pub struct Outputs<'a> {
    /// Attention output [batch, q_heads, q_len, head_dim], in the inputs' element type or f32.
    /// Rows that see no key are 0.
    pub o: TensorViewMut<'a>,
    /// Natural log-sum-exp of each row's kept, scaled scores, contiguous [batch, q_heads, q_len].
    /// Rows that see no key are −∞.
    pub lse: Option<&'a mut [f32]>,
}

impl<'a> Inputs<'a> {
    /// Queries, keys and values.
    pub fn new(q: TensorView<'a>, k: TensorView<'a>, v: TensorView<'a>) -> Self {
        Inputs {
            q,
            k,
            v,
            sink_logits: None,
        }
    }

    /// The same with a learned sink of each query head: see [`Inputs::sink_logits`].
    pub fn with_sink_logits(self, sink_logits: &'a [f32]) -> Self {
        Inputs {
            sink_logits: Some(sink_logits),
            ..self
        }
    }
}

impl<'a> Outputs<'a> {
    /// The attention output alone.
    pub fn new(o: TensorViewMut<'a>) -> Self {
        Outputs { o, lse: None }
    }

    /// The same with the log-sum-exp of each row besides.
    pub fn with_lse(self, lse: &'a mut [f32]) -> Self {
        Outputs {
            lse: Some(lse),
            ..self
        }
    }
}

impl fmt::Debug for Outputs<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outputs")
            .field("o", &self.o)
            .field("lse_len", &self.lse.as_ref().map(|lse| lse.len()))
            .finish()
    }
}

impl Inputs<'_> {
    pub(crate) fn check(&self, problem: &Problem) -> Result<()> {
        self.q.check("q", problem.q_shape(), problem.dtype)?;
        self.k.check("k", problem.kv_shape(), problem.dtype)?;
        self.v.check("v", problem.kv_shape(), problem.dtype)?;
        check_sinks(self.sink_logits, problem.q_heads)
    }
}

/// There is one sink for each query head, or none at all.
pub(crate) fn check_sinks(sink_logits: Option<&[f32]>, q_heads: usize) -> Result<()> {
    match sink_logits {
        Some(logits) if logits.len() != q_heads => Err(Error::SinkLogits {
            given: logits.len(),
            q_heads,
        }),
        _ => Ok(()),
    }
}

impl Outputs<'_> {
    pub(crate) fn check(&self, problem: &Problem) -> Result<()> {
        self.o.check("o", problem.q_shape(), problem.dtype)?;
        match &self.lse {
            Some(lse) => problem.check_lse(lse.len()),
            None => Ok(()),
        }
    }
}
