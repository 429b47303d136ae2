//! The safetensors file of results.

use std::borrow::Cow;
use std::io::Write;

use safetensors::tensor::{Dtype, View};
use sample_attention::{BLOCK, Problem};

use crate::compute::Outcome;
use crate::failure::Failure;
use crate::input::Input;

/// Marks the places of a head's stripes that it does not use.
const NO_STRIPE: i32 = -1;

/// Writes `o`, `lse`, `stripes`, `stripe_count` and `blocks`.
pub fn write(to: &mut dyn Write, input: &Input, outcome: &Outcome) -> Result<(), Failure> {
    let problem = input.problem();
    let Problem {
        batch,
        q_heads,
        q_len,
        head_dim,
        ..
    } = *problem;
    let masks = Masks::new(problem, outcome);
    let side = problem.k_len.div_ceil(BLOCK);
    let tensors = [
        (
            "o",
            Tensor::f32(vec![batch, q_heads, q_len, head_dim], &outcome.o),
        ),
        (
            "lse",
            Tensor::f32(vec![batch, q_heads, q_len], &outcome.lse),
        ),
        (
            "stripes",
            Tensor::i32(vec![batch, q_heads, masks.longest], &masks.stripes),
        ),
        (
            "stripe_count",
            Tensor::i32(vec![batch, q_heads], &masks.counts),
        ),
        (
            "blocks",
            Tensor {
                dtype: Dtype::U8,
                shape: vec![batch, q_heads, side, side],
                data: Cow::Borrowed(&masks.blocks),
            },
        ),
    ];
    let bytes = safetensors::serialize(tensors, None).map_err(Failure::new)?;
    to.write_all(&bytes).map_err(Failure::new)
}

/// What every head kept, as tensors. Heads that ran dense keep every causal block and have no stripes.
pub struct Masks {
    /// [batch, q_heads, longest].
    pub stripes: Vec<i32>,
    /// Most stripes of any head; 0 where none has any.
    pub longest: usize,
    /// [batch, q_heads].
    pub counts: Vec<i32>,
    /// [batch, q_heads, query blocks, key blocks], 1 where kept; both are counted from key position 0, and query blocks
    /// that hold no query keep nothing.
    pub blocks: Vec<u8>,
}

impl Masks {
    pub fn new(problem: &Problem, outcome: &Outcome) -> Self {
        let heads = problem.batch * problem.q_heads;
        let side = problem.k_len.div_ceil(BLOCK);
        let first = problem.k_len.saturating_sub(problem.q_len) / BLOCK;
        let mut blocks = vec![0; heads * side * side];
        let mut lists = Vec::with_capacity(heads);
        for (head, kept) in blocks.chunks_mut(side * side).enumerate() {
            let selection = outcome
                .selection
                .as_ref()
                .map(|selection| selection.head(head / problem.q_heads, head % problem.q_heads))
                .filter(|selection| !selection.is_dense());
            for query_block in first..side {
                let row = &mut kept[query_block * side..(query_block + 1) * side];
                match &selection {
                    Some(selection) => {
                        for key_block in selection.blocks(query_block) {
                            row[key_block] = 1;
                        }
                    }
                    None => row[..=query_block].fill(1),
                }
            }
            lists.push(selection.map_or(&[][..], |selection| selection.stripes()));
        }
        let longest = lists.iter().map(|list| list.len()).max().unwrap_or(0);
        let mut stripes = Vec::with_capacity(heads * longest);
        for list in &lists {
            stripes.extend(list.iter().map(|&key| key as i32));
            stripes.resize(stripes.len() + longest - list.len(), NO_STRIPE);
        }
        Masks {
            stripes,
            longest,
            counts: lists.iter().map(|list| list.len() as i32).collect(),
            blocks,
        }
    }
}

struct Tensor<'a> {
    dtype: Dtype,
    shape: Vec<usize>,
    data: Cow<'a, [u8]>,
}

impl<'a> Tensor<'a> {
    fn f32(shape: Vec<usize>, values: &'a [f32]) -> Self {
        let data = if cfg!(target_endian = "little") {
            Cow::Borrowed(bytemuck::cast_slice(values))
        } else {
            values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect()
        };
        Tensor {
            dtype: Dtype::F32,
            shape,
            data,
        }
    }

    fn i32(shape: Vec<usize>, values: &[i32]) -> Self {
        Tensor {
            dtype: Dtype::I32,
            shape,
            data: values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect(),
        }
    }
}

impl View for Tensor<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.data)
    }

    fn data_len(&self) -> usize {
        self.data.len()
    }
}
