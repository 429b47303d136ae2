//! The caller's memory as hostile as it may be: poison in every gap, red zones around everything.

use half::{bf16, f16};
use sample_attention::{Dtype, TensorView, TensorViewMut};

use crate::tensor::{Storage, Tensor};

/// Elements before and after the memory that a backend is given.
const RED_ZONE: usize = 96;

/// How a tensor lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// [batch, heads, length, head_dim], contiguous.
    Bhsd,
    /// [batch, length, heads, head_dim], contiguous.
    Bshd,
    /// A slice of a larger tensor: gaps after every row, every head and every sequence, and rows at odd addresses.
    Sliced,
    /// A slice of a larger tensor whose rows are at multiples of 16 bytes, as GPU kernels take them without a copy.
    Aligned,
    /// [length, batch, heads, head_dim] with gaps: the outermost stride is the tokens'.
    TokensOutermost,
}

impl Layout {
    /// All of them.
    pub const ALL: [Layout; 5] = [
        Layout::Bhsd,
        Layout::Bshd,
        Layout::Sliced,
        Layout::TokensOutermost,
        Layout::Aligned,
    ];

    /// Strides in elements.
    pub fn strides(self, [batch, heads, len, dim]: [usize; 4]) -> [usize; 4] {
        match self {
            Layout::Bhsd => [heads * len * dim, len * dim, dim, 1],
            Layout::Bshd => [len * heads * dim, dim, heads * dim, 1],
            Layout::Sliced => {
                let token = dim + 5;
                let head = len * token + 3;
                [heads * head + 17, head, token, 1]
            }
            Layout::Aligned => {
                let token = dim + 8;
                let head = len * token + 16;
                [heads * head + 24, head, token, 1]
            }
            Layout::TokensOutermost => {
                let head = dim + 1;
                let sequence = heads * head + 2;
                [sequence, head, batch * sequence + 7, 1]
            }
        }
    }
}

/// A tensor in memory, between red zones.
pub struct Buffer {
    shape: [usize; 4],
    strides: [usize; 4],
    data: Data,
}

enum Data {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
}

/// Evaluates an expression with `$vec` bound to the vector of whichever type.
macro_rules! each {
    ($data:expr, $vec:ident => $result:expr) => {
        match $data {
            Data::F32($vec) => $result,
            Data::F16($vec) => $result,
            Data::Bf16($vec) => $result,
        }
    };
}

impl Buffer {
    /// An input: NaN wherever no element lies.
    pub fn of_input(tensor: &Tensor, layout: Layout, dtype: Dtype) -> Self {
        let mut buffer = Self::of_output(tensor.shape, layout, dtype);
        let places: Vec<usize> = buffer.places().collect();
        each!(&mut buffer.data, vec => place(vec, &places, &tensor.values));
        buffer
    }

    /// An output: no element written.
    pub fn of_output(shape: [usize; 4], layout: Layout, dtype: Dtype) -> Self {
        let strides = layout.strides(shape);
        let last: usize = shape
            .iter()
            .zip(strides)
            .map(|(size, stride)| (size - 1) * stride)
            .sum();
        let len = last + 1 + 2 * RED_ZONE;
        let data = match dtype {
            Dtype::F32 => Data::F32(vec![f32::UNWRITTEN; len]),
            Dtype::F16 => Data::F16(vec![f16::UNWRITTEN; len]),
            Dtype::Bf16 => Data::Bf16(vec![bf16::UNWRITTEN; len]),
            other => unimplemented!("{other:?}"),
        };
        Buffer {
            shape,
            strides,
            data,
        }
    }

    /// What an input's reader gets: the memory from the first to the last element.
    pub fn view(&self) -> TensorView<'_> {
        let view = each!(&self.data, vec => TensorView::new(inner(vec), self.shape, self.strides));
        view.expect("the buffer was made for the layout")
    }

    /// What an output's writer gets.
    pub fn view_mut(&mut self) -> TensorViewMut<'_> {
        let view = each!(&mut self.data, vec => TensorViewMut::new(inner_mut(vec), self.shape, self.strides));
        view.expect("the buffer was made for the layout")
    }

    /// The elements of a contiguous f32 buffer.
    ///
    /// # Panics
    /// For any other buffer.
    pub fn elements_mut(&mut self) -> &mut [f32] {
        assert_eq!(self.strides, Layout::Bhsd.strides(self.shape));
        match &mut self.data {
            Data::F32(vec) => inner_mut(vec),
            _ => panic!("not f32"),
        }
    }

    /// The values in logical order.
    pub fn tensor(&self) -> Tensor {
        Tensor {
            shape: self.shape,
            values: each!(&self.data, vec => self.places().map(|at| vec[at].to_f32()).collect()),
        }
    }

    /// Panics unless all elements were written, or none where `written` is false, and nothing else was.
    ///
    /// # Panics
    /// As it says.
    pub fn assert_only_elements_written(
        &self,
        name: &str,
        written: bool,
        context: impl Fn() -> String,
    ) {
        let mut expected = vec![false; each!(&self.data, vec => vec.len())];
        self.places().for_each(|at| expected[at] = written);
        let touched: Vec<bool> = each!(&self.data, vec => touched(vec));
        let wrong = (0..touched.len()).find(|&at| touched[at] != expected[at]);
        if let Some(at) = wrong {
            let what = if touched[at] {
                "written"
            } else {
                "left unwritten"
            };
            let offset = at as i64 - RED_ZONE as i64;
            panic!(
                "{name}: the element at offset {offset} was {what}\n{}",
                context()
            );
        }
    }

    /// Where the elements lie, in logical order.
    fn places(&self) -> impl Iterator<Item = usize> + use<> {
        let (shape, strides) = (self.shape, self.strides);
        let [batch, heads, len, dim] = shape;
        (0..batch * heads * len * dim).map(move |index| {
            let coordinates = [
                index / (heads * len * dim),
                index / (len * dim) % heads,
                index / dim % len,
                index % dim,
            ];
            RED_ZONE
                + coordinates
                    .iter()
                    .zip(strides)
                    .map(|(x, stride)| x * stride)
                    .sum::<usize>()
        })
    }
}

fn place<T: Storage>(vec: &mut [T], places: &[usize], values: &[f32]) {
    for (&at, &x) in places.iter().zip(values) {
        vec[at] = T::from_f32(x);
    }
}

fn touched<T: Storage>(vec: &[T]) -> Vec<bool> {
    vec.iter()
        .map(|x| x.bits() != T::UNWRITTEN.bits())
        .collect()
}

fn inner<T>(vec: &[T]) -> &[T] {
    &vec[RED_ZONE..vec.len() - RED_ZONE]
}

fn inner_mut<T>(vec: &mut [T]) -> &mut [T] {
    let end = vec.len() - RED_ZONE;
    &mut vec[RED_ZONE..end]
}
