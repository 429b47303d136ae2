//! Lengths and page numbers, which are tensors too.

use candle_core::{DType, Result, Tensor, bail};
use sample_attention::Indices;

/// The values of a tensor of u32 or i32, in order.
pub(super) struct Integers {
    name: &'static str,
    dims: Vec<usize>,
    values: Values,
}

enum Values {
    U32(Vec<u32>),
    I32(Vec<i32>),
}

impl Integers {
    pub(super) fn new(name: &'static str, tensor: &Tensor) -> Result<Self> {
        if !tensor.device().is_cpu() {
            bail!("{name} must be on the device of q, which is the CPU")
        }
        let flat = tensor.flatten_all()?;
        Ok(Integers {
            name,
            dims: tensor.dims().to_vec(),
            values: match tensor.dtype() {
                DType::U32 => Values::U32(flat.to_vec1()?),
                DType::I32 => Values::I32(flat.to_vec1()?),
                other => bail!("{name} must be u32 or i32, and is {other:?}"),
            },
        })
    }

    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    pub(super) fn dims(&self) -> &[usize] {
        &self.dims
    }

    pub(super) fn indices(&self) -> Indices<'_> {
        match &self.values {
            Values::U32(values) => values.into(),
            Values::I32(values) => values.into(),
        }
    }
}
