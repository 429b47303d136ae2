//! Tensors as engines hold them, and the ops as a backend of the one test runner.

use candle_core::{DType, Device, Result, Tensor};
use candle_sample_attention::{flash_attn_with_lse, sample_attn_with_lse};
use half::{bf16, f16};
use sample_attention::{Dtype, Inputs, Outputs, Problem, TensorView};
use testkit::runner::{Attend, Backend, Found};
use testkit::tensor::{Qkv, Tensor as Plain};

/// How a tensor [batch, tokens, heads, head_dim] lies in memory; all but the first are strided views.
#[derive(Clone, Copy, Debug)]
pub enum Memory {
    /// Contiguous.
    Tokens,
    /// Contiguous [batch, heads, tokens, head_dim], transposed: a KV cache of candle's.
    Heads,
    /// A third of what one projection made for q, k and v: gaps between tokens.
    Fused,
    /// [tokens, batch, heads, head_dim] out of a longer cache, not at its beginning.
    Cache,
}

impl Memory {
    pub const ALL: [Memory; 4] = [Memory::Tokens, Memory::Heads, Memory::Fused, Memory::Cache];

    /// The tensor, with NaN wherever none of its elements lies.
    pub fn hold(self, plain: &Plain, dtype: DType) -> Result<Tensor> {
        let [batch, heads, tokens, head_dim] = plain.shape;
        let by_heads = Tensor::from_slice(
            &plain.values,
            (batch, heads, tokens, head_dim),
            &Device::Cpu,
        )?
        .to_dtype(dtype)?;
        let by_tokens = by_heads.transpose(1, 2)?.contiguous()?;
        let nan = |shape: [usize; 4]| Tensor::full(f32::NAN, &shape, &Device::Cpu)?.to_dtype(dtype);
        Ok(match self {
            Memory::Tokens => by_tokens,
            Memory::Heads => by_heads.transpose(1, 2)?,
            Memory::Fused => {
                let gap = nan([batch, tokens, heads, head_dim + 8])?;
                Tensor::cat(&[&gap, &by_tokens, &gap], 3)?.narrow(3, head_dim + 8, head_dim)?
            }
            Memory::Cache => {
                let turned = by_tokens.transpose(0, 1)?.contiguous()?;
                let gap = nan([7, batch, heads, head_dim])?;
                Tensor::cat(&[&gap, &turned, &gap], 0)?
                    .narrow(0, 7, tokens)?
                    .transpose(0, 1)?
            }
        })
    }
}

/// The same values as `plain`, rounded to an element type.
pub fn candle(dtype: Dtype) -> DType {
    match dtype {
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::Bf16 => DType::BF16,
        other => unimplemented!("{other:?}"),
    }
}

pub fn qkv(inputs: &Qkv, memory: Memory, dtype: Dtype) -> Result<[Tensor; 3]> {
    let dtype = candle(dtype);
    Ok([
        memory.hold(&inputs.q, dtype)?,
        memory.hold(&inputs.k, dtype)?,
        memory.hold(&inputs.v, dtype)?,
    ])
}

/// Values of [batch, tokens, heads, head_dim] in the order of [batch, heads, tokens, head_dim].
pub fn by_heads(tensor: &Tensor) -> Result<Vec<f32>> {
    let tensor = tensor.transpose(1, 2)?.to_dtype(DType::F32)?;
    tensor.flatten_all()?.to_vec1()
}

/// Every value of a tensor, widened.
pub fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}

/// The ops, as the runner takes a backend.
pub struct Ops(pub Memory);

impl Backend for Ops {
    fn name(&self) -> String {
        format!("candle, {:?}", self.0)
    }

    fn keeps_f32(&self) -> bool {
        true
    }

    fn run(
        &self,
        problem: &Problem,
        attend: &Attend,
        inputs: &Inputs<'_>,
        mut outputs: Outputs<'_>,
    ) -> sample_attention::Result<Found> {
        let inputs = Qkv {
            q: plain(&inputs.q),
            k: plain(&inputs.k),
            v: plain(&inputs.v),
        };
        let [q, k, v] = qkv(&inputs, self.0, problem.dtype).unwrap();
        let scale = problem.softmax_scale;
        let (o, lse) = match attend {
            Attend::Policy(policy) => sample_attn_with_lse(&q, &k, &v, scale, policy),
            Attend::Dense => flash_attn_with_lse(&q, &k, &v, scale, problem.causal),
            Attend::Own(_) => unimplemented!("candle takes no lists"),
        }
        .unwrap();
        let o = by_heads(&o).unwrap();
        outputs
            .o
            .as_bytes_mut()
            .copy_from_slice(&bytes(problem.dtype, &o));
        if let Some(to) = outputs.lse {
            to.copy_from_slice(&values(&lse).unwrap());
        }
        Ok(Found::default())
    }
}

/// Values as memory of an element type.
fn bytes(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    let bytes = values.iter().map(|&x| match dtype {
        Dtype::F32 => x.to_ne_bytes().to_vec(),
        Dtype::F16 => f16::from_f32(x).to_ne_bytes().to_vec(),
        _ => bf16::from_f32(x).to_ne_bytes().to_vec(),
    });
    bytes.flatten().collect()
}

/// The values of a view.
fn plain(view: &TensorView<'_>) -> Plain {
    let ([batch, heads, tokens, head_dim], strides) = (view.shape(), view.strides());
    let memory = view.as_bytes();
    let value = |at: usize| match view.dtype() {
        Dtype::F32 => f32::from_ne_bytes(memory[4 * at..][..4].try_into().unwrap()),
        Dtype::F16 => f16::from_ne_bytes([memory[2 * at], memory[2 * at + 1]]).to_f32(),
        _ => bf16::from_ne_bytes([memory[2 * at], memory[2 * at + 1]]).to_f32(),
    };
    let mut plain = Plain::filled(view.shape(), 0.0);
    for batch in 0..batch {
        for head in 0..heads {
            for token in 0..tokens {
                let start = batch * strides[0] + head * strides[1] + token * strides[2];
                let row = plain.row_mut(batch, head, token);
                for (d, x) in row.iter_mut().enumerate().take(head_dim) {
                    *x = value(start + d);
                }
            }
        }
    }
    plain
}
