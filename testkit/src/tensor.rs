//! Plain tensors to test with: values in logical order, apart from how a backend is given them.

use half::{bf16, f16};
use sample_attention::{Dtype, Element, Problem};
pub use sample_attention_inputs::relative_error;

/// A tensor [batch, heads, length, head_dim], in that order.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Sizes.
    pub shape: [usize; 4],
    /// Values, each of them one that the tensor's element type can hold.
    pub values: Vec<f32>,
}

impl Tensor {
    /// A tensor of one value.
    pub fn filled(shape: [usize; 4], value: f32) -> Self {
        Tensor {
            shape,
            values: vec![value; shape.iter().product()],
        }
    }

    /// One row of head_dim values.
    pub fn row(&self, batch: usize, head: usize, token: usize) -> &[f32] {
        let start = self.offset(batch, head, token);
        &self.values[start..start + self.shape[3]]
    }

    /// As [`Tensor::row`], to be changed.
    pub fn row_mut(&mut self, batch: usize, head: usize, token: usize) -> &mut [f32] {
        let start = self.offset(batch, head, token);
        &mut self.values[start..start + self.shape[3]]
    }

    fn offset(&self, batch: usize, head: usize, token: usize) -> usize {
        let [_, heads, len, dim] = self.shape;
        ((batch * heads + head) * len + token) * dim
    }
}

/// The inputs of one problem.
#[derive(Clone, Debug, PartialEq)]
pub struct Qkv {
    /// Queries.
    pub q: Tensor,
    /// Keys.
    pub k: Tensor,
    /// Values.
    pub v: Tensor,
}

impl Qkv {
    /// Inputs that a function of (batch, head, token, element) gives, rounded to the problem's element type: first all
    /// of q, then k, then v.
    pub fn rounded(problem: &Problem, q: Tensor, k: Tensor, v: Tensor) -> Self {
        let mut qkv = Qkv { q, k, v };
        for tensor in [&mut qkv.q, &mut qkv.k, &mut qkv.v] {
            for x in &mut tensor.values {
                *x = round(problem.dtype, f64::from(*x)) as f32;
            }
        }
        qkv
    }
}

/// The nearest value of an element type, ties to even.
pub fn round(dtype: Dtype, x: f64) -> f64 {
    match dtype {
        Dtype::F32 => f64::from(x as f32),
        Dtype::F16 => f16::from_f64(x).to_f64(),
        Dtype::Bf16 => bf16::from_f64(x).to_f64(),
        other => unimplemented!("{other:?}"),
    }
}

/// Half the distance between neighbours at `x`: what rounding to the element type may change.
pub fn rounding_error(dtype: Dtype, x: f64) -> f64 {
    // Bits after the leading one, and the exponent below which values are subnormal.
    let (mantissa_bits, lowest_exponent) = match dtype {
        Dtype::F32 => (23, -126),
        Dtype::F16 => (10, -14),
        Dtype::Bf16 => (7, -126),
        other => unimplemented!("{other:?}"),
    };
    let exponent = if x == 0.0 {
        lowest_exponent
    } else {
        (x.abs().log2().floor() as i32).max(lowest_exponent)
    };
    f64::from(exponent - mantissa_bits - 1).exp2()
}

/// Element types as the runner stores them.
pub trait Storage: Element {
    /// A NaN that no computation makes: what unwritten outputs hold.
    const UNWRITTEN: Self;
    /// Rounds to nearest.
    fn from_f32(x: f32) -> Self;
    /// Exact.
    fn to_f32(self) -> f32;
    /// The bit pattern.
    fn bits(self) -> u32;
}

impl Storage for f32 {
    const UNWRITTEN: f32 = f32::from_bits(0x7fad_beef);
    fn from_f32(x: f32) -> f32 {
        x
    }
    fn to_f32(self) -> f32 {
        self
    }
    fn bits(self) -> u32 {
        self.to_bits()
    }
}

macro_rules! half_storage {
    ($type:ty, $unwritten:literal) => {
        impl Storage for $type {
            const UNWRITTEN: $type = <$type>::from_bits($unwritten);
            fn from_f32(x: f32) -> $type {
                <$type>::from_f32(x)
            }
            fn to_f32(self) -> f32 {
                self.to_f32()
            }
            fn bits(self) -> u32 {
                self.to_bits().into()
            }
        }
    };
}
half_storage!(f16, 0x7dad);
half_storage!(bf16, 0x7fad);
