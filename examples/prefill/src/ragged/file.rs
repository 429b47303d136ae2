//! The file of a ragged batch.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use half::bf16;
use safetensors::tensor::{Dtype as FileDtype, TensorView as FileTensor};
use safetensors::{SafeTensorError, SafeTensors};
use sample_attention::{BlockTable, Dtype, SeqLens, TensorView, VarlenBounds, VarlenInputs};
use sample_attention_inputs::capture::Tensor;

use crate::failure::Failure;
use crate::memory;

/// The name that tells a ragged batch.
const CU_SEQLENS_Q: &str = "cu_seqlens_q";

/// Headers of captures take a few hundred bytes.
const MAX_HEADER_BYTES: u64 = 8 << 20;

/// A ragged batch that owns its memory.
pub struct Ragged {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    /// [tokens, heads, head_dim]
    q_shape: [usize; 3],
    /// [tokens, heads, head_dim], or [pages, page size, heads, head_dim].
    kv_shape: Vec<usize>,
    cu_seqlens_q: Vec<i32>,
    cu_seqlens_k: Vec<i32>,
    /// [sequences, most pages], and the latter.
    block_table: Option<(Vec<i32>, usize)>,
}

/// Whether a file's header names lengths of sequences. Files that cannot be read hold no ragged batch.
pub fn is_ragged(path: &Path) -> bool {
    let read = || -> Option<bool> {
        // A pipe would wait, or could be read once only.
        if !std::fs::metadata(path).ok()?.is_file() {
            return None;
        }
        let mut file = File::open(path).ok()?;
        let mut len = [0; 8];
        file.read_exact(&mut len).ok()?;
        let len = u64::from_le_bytes(len);
        if len > MAX_HEADER_BYTES.min(file.metadata().ok()?.len()) {
            return None;
        }
        let mut header = vec![0; len as usize];
        file.read_exact(&mut header).ok()?;
        let header: serde_json::Value = serde_json::from_slice(&header).ok()?;
        Some(header.get(CU_SEQLENS_Q).is_some())
    };
    read().unwrap_or(false)
}

impl Ragged {
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let mut file = File::open(path).map_err(Failure::new)?;
        let len = file.metadata().map_err(Failure::new)?.len();
        // The file, and the tensors that it becomes.
        memory::check(2 * u128::from(len))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(Failure::new)?;
        let tensors = SafeTensors::deserialize(&bytes).map_err(|error| invalid(&error))?;
        let tensor = |name: &str| {
            tensors.tensor(name).map_err(|_| {
                let mut names = tensors.names();
                names.sort_unstable();
                Failure::new(format_args!(
                    "it has no tensor `{name}`; a ragged batch needs q, k, v, cu_seqlens_q and cu_seqlens_k (this file has: {})",
                    names.join(", ")
                ))
            })
        };
        let table = tensors.tensor("block_table").ok();
        let (q, k, v) = (tensor("q")?, tensor("k")?, tensor("v")?);
        let kv_dimensions = match table {
            None => "[tokens, heads, head_dim]",
            Some(_) => "[pages, page size, heads, head_dim]",
        };
        let kv_rank = 3 + usize::from(table.is_some());
        let q_shape = shape("q", &q, 3, "[tokens, heads, head_dim]")?;
        let kv_shape = shape("k", &k, kv_rank, kv_dimensions)?;
        if v.shape() != kv_shape {
            return Err(Failure::new(format_args!(
                "`k` has shape {kv_shape:?}, but `v` {:?}",
                v.shape()
            )));
        }
        Ok(Ragged {
            q_shape: [q_shape[0], q_shape[1], q_shape[2]],
            kv_shape,
            cu_seqlens_q: lengths(CU_SEQLENS_Q, &tensor(CU_SEQLENS_Q)?)?,
            cu_seqlens_k: lengths("cu_seqlens_k", &tensor("cu_seqlens_k")?)?,
            block_table: match &table {
                None => None,
                Some(table) => {
                    let shape = shape("block_table", table, 2, "[sequences, pages]")?;
                    Some((integers("block_table", table)?, shape[1]))
                }
            },
            q: floats("q", &q)?,
            k: floats("k", &k)?,
            v: floats("v", &v)?,
        })
    }

    /// What the GPU kernels take in place of f32: as wide a range, in 16 bits.
    pub fn round_to_bf16(&mut self) {
        for tensor in [&mut self.q, &mut self.k, &mut self.v] {
            if tensor.dtype() == Dtype::F32 {
                let rounded = tensor.to_f32().into_iter().map(bf16::from_f32);
                *tensor = Tensor::Bf16(rounded.collect());
            }
        }
    }

    /// Tensors with elements that are not finite. Pages may hold anything where no sequence has a token.
    pub fn non_finite(&self) -> Vec<String> {
        let tensors = match self.block_table {
            None => vec![("q", &self.q), ("k", &self.k), ("v", &self.v)],
            Some(_) => vec![("q", &self.q)],
        };
        let found = tensors
            .into_iter()
            .map(|(name, tensor)| (name, tensor.non_finite()));
        found
            .filter(|(_, found)| *found != Default::default())
            .map(|(name, found)| {
                format!(
                    "{name} has {} NaN and {} infinite elements: what is computed from them means nothing",
                    found.nan, found.infinite
                )
            })
            .collect()
    }

    pub fn seqlens_q(&self) -> SeqLens<'_> {
        SeqLens::cumulative(&self.cu_seqlens_q)
    }

    pub fn seqlens_k(&self) -> SeqLens<'_> {
        SeqLens::cumulative(&self.cu_seqlens_k)
    }

    /// Queries and keys of each sequence, of lengths that have been checked.
    pub fn lengths(&self) -> impl Iterator<Item = (i32, i32)> {
        let (q, k) = (self.cu_seqlens_q.windows(2), self.cu_seqlens_k.windows(2));
        q.zip(k).map(|(q, k)| (q[1] - q[0], k[1] - k[0]))
    }

    /// The least that the lengths are within.
    pub fn bounds(&self) -> sample_attention::Result<VarlenBounds> {
        let [_, q_heads, head_dim] = self.q_shape;
        let kv_heads = self.kv_shape[self.kv_shape.len() - 2];
        VarlenBounds::causal(1, 1, head_dim, self.q.dtype())
            .with_heads(q_heads, kv_heads)
            .within(self.seqlens_q(), self.seqlens_k())
    }

    pub fn inputs(&self) -> sample_attention::Result<VarlenInputs<'_>> {
        let kv = |tensor| match self.kv_shape[..] {
            [pages, page, heads, head_dim] => view(tensor, [pages, page, heads, head_dim]),
            _ => view(
                tensor,
                [1, self.kv_shape[0], self.kv_shape[1], self.kv_shape[2]],
            ),
        };
        let [tokens, heads, head_dim] = self.q_shape;
        let inputs = VarlenInputs::new(
            view(&self.q, [1, tokens, heads, head_dim])?,
            kv(&self.k)?,
            kv(&self.v)?,
            self.seqlens_q(),
            self.seqlens_k(),
        );
        Ok(match &self.block_table {
            None => inputs,
            Some((table, stride)) => inputs.with_block_table(BlockTable::new(table, *stride)),
        })
    }

    #[cfg(feature = "emulator")]
    pub fn unsigned_seqlens_q(&self) -> Vec<u32> {
        self.cu_seqlens_q.iter().map(|&x| x as u32).collect()
    }

    #[cfg(feature = "emulator")]
    pub fn unsigned_seqlens_k(&self) -> Vec<u32> {
        self.cu_seqlens_k.iter().map(|&x| x as u32).collect()
    }

    /// The table as unsigned numbers, and the entries of a row.
    #[cfg(feature = "emulator")]
    pub fn table(&self) -> Option<(&[u32], u32)> {
        let (table, stride) = self.block_table.as_ref()?;
        Some((bytemuck::cast_slice(table), *stride as u32))
    }
}

fn view(tensor: &Tensor, shape: [usize; 4]) -> sample_attention::Result<TensorView<'_>> {
    match tensor {
        Tensor::F32(data) => TensorView::bshd(data, shape),
        Tensor::F16(data) => TensorView::bshd(data, shape),
        Tensor::Bf16(data) => TensorView::bshd(data, shape),
    }
}

fn invalid(error: &SafeTensorError) -> Failure {
    Failure::new(format_args!("it is not a valid safetensors file: {error}"))
}

fn shape(
    name: &str,
    tensor: &FileTensor<'_>,
    rank: usize,
    dimensions: &str,
) -> Result<Vec<usize>, Failure> {
    let shape = tensor.shape();
    if shape.len() != rank {
        return Err(Failure::new(format_args!(
            "tensor `{name}` has {} dimensions; {dimensions} is needed",
            shape.len()
        )));
    }
    Ok(shape.to_vec())
}

fn lengths(name: &str, tensor: &FileTensor<'_>) -> Result<Vec<i32>, Failure> {
    shape(name, tensor, 1, "[sequences + 1]")?;
    integers(name, tensor)
}

/// 32 bits hold every length and page number that can be right.
fn integers(name: &str, tensor: &FileTensor<'_>) -> Result<Vec<i32>, Failure> {
    let clamped = |x: i64| x.clamp(i32::MIN.into(), i32::MAX.into()) as i32;
    let data = tensor.data();
    let narrow = data.as_chunks::<4>().0.iter().copied();
    Ok(match tensor.dtype() {
        FileDtype::I32 => narrow.map(i32::from_le_bytes).collect(),
        FileDtype::U32 => narrow
            .map(|bytes| clamped(u32::from_le_bytes(bytes).into()))
            .collect(),
        FileDtype::I64 => {
            let wide = data.as_chunks::<8>().0.iter().copied();
            wide.map(|bytes| clamped(i64::from_le_bytes(bytes)))
                .collect()
        }
        other => {
            return Err(Failure::new(format_args!(
                "tensor `{name}` is {other:?}; i32, u32 or i64 is needed"
            )));
        }
    })
}

fn floats(name: &str, tensor: &FileTensor<'_>) -> Result<Tensor, Failure> {
    let data = tensor.data();
    let narrow = data.as_chunks::<2>().0.iter().copied();
    Ok(match tensor.dtype() {
        FileDtype::F32 => {
            let wide = data.as_chunks::<4>().0.iter().copied();
            Tensor::F32(wide.map(f32::from_le_bytes).collect())
        }
        FileDtype::F16 => Tensor::F16(narrow.map(half::f16::from_le_bytes).collect()),
        FileDtype::BF16 => Tensor::Bf16(narrow.map(bf16::from_le_bytes).collect()),
        other => {
            return Err(Failure::new(format_args!(
                "tensor `{name}` is {other:?}; bf16, f16 or f32 is needed"
            )));
        }
    })
}
