//! A problem, a mask for each head, and random data.

use sample_attention_device::abi::Sequences;
use sample_attention_device::params::BLOCK;

/// Element types of the inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    Bf16,
    F16,
}

impl Dtype {
    pub fn round(self, x: f32) -> u16 {
        match self {
            Self::Bf16 => half::bf16::from_f32(x).to_bits(),
            Self::F16 => half::f16::from_f32(x).to_bits(),
        }
    }

    pub fn widen(self, bits: u16) -> f32 {
        match self {
            Self::Bf16 => half::bf16::from_bits(bits).to_f32(),
            Self::F16 => half::f16::from_bits(bits).to_f32(),
        }
    }

    /// The nearest number of this type.
    pub fn rounded(self, x: f64) -> f64 {
        f64::from(self.widen(self.round(x as f32)))
    }
}

/// The kernels that keep the contract.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kernel {
    Portable,
    Hopper {
        /// By how much a maximum grows before the output is rescaled.
        rescale_threshold_log2: f32,
    },
}

impl Kernel {
    pub const HOPPER: Self = Self::Hopper {
        rescale_threshold_log2: 8.0,
    };

    /// A causal problem for this kernel.
    pub fn causal(self, q_len: usize, k_len: usize) -> Case {
        Case {
            kernel: self,
            ..Case::causal(q_len, k_len)
        }
    }
}

/// How tensors lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// [batch, head, token, head_dim], contiguous.
    Bhsd,
    /// [batch, token, head, head_dim], contiguous.
    Bshd,
    /// As `Bhsd`, with NaN between the tokens, the heads and the sequences.
    Padded,
}

impl Layout {
    /// Strides of batch, head and token, and elements in all.
    pub fn strides(self, heads: usize, tokens: usize, dim: usize, batch: usize) -> [usize; 4] {
        match self {
            Self::Bhsd => [
                heads * tokens * dim,
                tokens * dim,
                dim,
                batch * heads * tokens * dim,
            ],
            Self::Bshd => [
                heads * tokens * dim,
                dim,
                heads * dim,
                batch * heads * tokens * dim,
            ],
            Self::Padded => {
                let token = dim + 8;
                let head = tokens * token + 16;
                let sequence = heads * head + 24;
                // The last row ends the buffer: nothing behind it may be touched.
                let last = (batch - 1) * sequence + (heads - 1) * head + (tokens - 1) * token;
                [sequence, head, token, last + dim]
            }
        }
    }
}

/// What one query head attends to.
#[derive(Clone, Debug, Default)]
pub struct HeadMask {
    pub dense: bool,
    /// Ascending key blocks by query block.
    pub blocks: Vec<Vec<u32>>,
    /// Ascending keys.
    pub stripes: Vec<u32>,
}

/// A problem with its masks.
#[derive(Clone, Debug)]
pub struct Case {
    pub kernel: Kernel,
    pub batch: usize,
    pub q_heads: usize,
    pub kv_heads: usize,
    pub q_len: usize,
    pub k_len: usize,
    pub head_dim: usize,
    pub causal: bool,
    pub dtype: Dtype,
    pub layout: Layout,
    pub output_f32: bool,
    pub softmax_scale: f32,
    pub sinks: usize,
    /// By batch · q_heads + head. `None`: every head is dense.
    pub masks: Option<Vec<HeadMask>>,
    /// Key tokens whose K, or V, is overwritten, in every sequence: (kv head, key, value).
    pub poisoned_keys: Vec<(usize, usize, f32)>,
    pub poisoned_values: Vec<(usize, usize, f32)>,
}

impl Case {
    fn causal(q_len: usize, k_len: usize) -> Self {
        Self {
            kernel: Kernel::Portable,
            batch: 1,
            q_heads: 1,
            kv_heads: 1,
            q_len,
            k_len,
            head_dim: 64,
            causal: true,
            dtype: Dtype::Bf16,
            layout: Layout::Bhsd,
            output_f32: false,
            softmax_scale: 0.125,
            sinks: 0,
            masks: None,
            poisoned_keys: vec![],
            poisoned_values: vec![],
        }
    }

    pub fn heads(mut self, q_heads: usize, kv_heads: usize) -> Self {
        (self.q_heads, self.kv_heads) = (q_heads, kv_heads);
        self
    }

    pub fn head_dim(mut self, head_dim: usize) -> Self {
        self.head_dim = head_dim;
        self
    }

    pub fn dtype(mut self, dtype: Dtype) -> Self {
        self.dtype = dtype;
        self
    }

    pub fn layout(mut self, layout: Layout) -> Self {
        self.layout = layout;
        self
    }

    pub fn output_f32(mut self) -> Self {
        self.output_f32 = true;
        self
    }

    pub fn not_causal(mut self) -> Self {
        self.causal = false;
        self
    }

    /// One mask for every head.
    pub fn mask(self, mask: HeadMask) -> Self {
        let heads = self.batch * self.q_heads;
        self.masks(vec![mask; heads])
    }

    pub fn masks(mut self, masks: Vec<HeadMask>) -> Self {
        assert_eq!(masks.len(), self.batch * self.q_heads);
        self.masks = Some(masks);
        self
    }

    pub fn sinks(mut self, sinks: usize) -> Self {
        self.sinks = sinks;
        self
    }

    pub fn sequences(&self) -> Sequences {
        let [batch, q_len, k_len] = [self.batch, self.q_len, self.k_len].map(|len| len as u32);
        Sequences::uniform(batch, q_len, k_len, self.causal)
    }

    /// The position of a row; negative where it sees nothing.
    pub fn position(&self, row: usize) -> isize {
        if self.causal {
            (row + self.k_len) as isize - self.q_len as isize
        } else {
            row as isize
        }
    }

    /// The mask's definition.
    pub fn keeps(&self, head: usize, row: usize, key: usize) -> bool {
        let position = self.position(row);
        if self.causal && key as isize > position {
            return false;
        }
        let Some(masks) = &self.masks else {
            return true;
        };
        let mask = &masks[head];
        let block = BLOCK as usize;
        let (query_block, key_block) = (position as usize / block, key / block);
        mask.dense
            || self.causal && query_block == key_block
            || mask.blocks[query_block].contains(&(key_block as u32))
            || mask.stripes.binary_search(&(key as u32)).is_ok()
            || key < self.sinks
    }
}

/// A mask that lists, for each query block, the blocks that `keeps(query block, key block)`.
pub fn listed(case: &Case, keeps: impl Fn(u32, u32) -> bool) -> HeadMask {
    let sequence = case.sequences().get(0);
    let list = |query_block| {
        let end = if case.causal {
            query_block + 1
        } else {
            sequence.key_blocks()
        };
        (0..end).filter(|&key| keeps(query_block, key)).collect()
    };
    HeadMask {
        blocks: (0..sequence.end_query_block()).map(list).collect(),
        ..HeadMask::default()
    }
}

/// Numbers in [-1, 1).
pub fn random(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut next = || {
        state = state
            .wrapping_mul(0x5851_f42d_4c95_7f2d)
            .wrapping_add(0x1405_7b7e_f767_814f);
        (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}
