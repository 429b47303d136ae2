//! Problems, and inputs that lie in memory as callers have them.

use half::{bf16, f16};

/// Which 16-bit format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Bf16,
    F16,
}

impl Format {
    pub fn encode(self, x: f32) -> u16 {
        match self {
            Format::Bf16 => bf16::from_f32(x).to_bits(),
            Format::F16 => f16::from_f32(x).to_bits(),
        }
    }

    fn decode(self, bits: u16) -> f64 {
        match self {
            Format::Bf16 => bf16::from_bits(bits).to_f64(),
            Format::F16 => f16::from_bits(bits).to_f64(),
        }
    }
}

/// Which kernel samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sampling {
    Portable,
    Hopper,
}

impl Sampling {
    pub const ALL: [Sampling; 2] = [Sampling::Portable, Sampling::Hopper];
}

/// How a tensor lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// [batch, head, token, head_dim], contiguous.
    HeadMajor,
    /// [batch, token, head, head_dim] with NaN between tokens and around.
    TokenMajorPadded,
}

/// One problem and its policy.
#[derive(Clone, Debug)]
pub struct Case {
    pub batch: usize,
    pub q_heads: usize,
    pub kv_heads: usize,
    pub q_len: usize,
    pub k_len: usize,
    pub head_dim: usize,
    pub format: Format,
    pub layout: Layout,
    pub softmax_scale: f32,
    pub row_stride: usize,
    pub stride_doubles_from: usize,
    pub tail: usize,
    pub tail_stride: usize,
    pub sinks: usize,
    pub window: usize,
    pub coverage: f32,
    pub seed: u64,
    pub sampling: Sampling,
}

impl Case {
    pub fn new(q_len: usize, k_len: usize) -> Self {
        Case {
            batch: 1,
            q_heads: 1,
            kv_heads: 1,
            q_len,
            k_len,
            head_dim: 64,
            format: Format::Bf16,
            layout: Layout::HeadMajor,
            softmax_scale: 0.7,
            row_stride: 16,
            stride_doubles_from: usize::MAX,
            tail: 0,
            tail_stride: 1,
            sinks: 16,
            window: 100,
            coverage: 0.9,
            seed: 1,
            sampling: Sampling::Portable,
        }
    }

    pub fn sampled_by(self, sampling: Sampling) -> Self {
        Case { sampling, ..self }
    }

    pub fn heads(&self) -> usize {
        self.batch * self.q_heads
    }

    pub fn blocks(&self) -> usize {
        self.k_len.div_ceil(128)
    }

    /// The row stride of a position, where blocks are selected: it doubles with every doubling of the position that its segment
    /// begins at, and ends at 64.
    pub fn stride_at(&self, position: usize) -> usize {
        let segment = position / 8192 * 8192;
        let doublings = (0..usize::BITS)
            .filter_map(|doubling| self.stride_doubles_from.checked_mul(1 << doubling))
            .filter(|&from| segment >= from);
        doublings.fold(self.row_stride, |stride, _| {
            stride.max((2 * stride).min(64))
        })
    }

    /// Whether the row at a position is sampled.
    pub fn is_sampled(&self, position: usize, of_blocks: bool) -> bool {
        let stride = if self.tail > 0 && position + self.tail >= self.k_len {
            self.tail_stride
        } else if of_blocks {
            self.stride_at(position)
        } else {
            self.row_stride
        };
        (position + 1).is_multiple_of(stride) || position + 1 == self.k_len
    }

    /// Key blocks of a window.
    pub fn window_blocks(&self) -> usize {
        (self.window - 1).div_ceil(128) + 1
    }
}

/// Strides and place of a tensor, in elements.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub offset: usize,
    pub stride_batch: usize,
    pub stride_head: usize,
    pub stride_token: usize,
    len: usize,
}

impl Place {
    fn new(layout: Layout, [batch, heads, tokens, head_dim]: [usize; 4]) -> Self {
        match layout {
            Layout::HeadMajor => Place {
                offset: 0,
                stride_batch: heads * tokens * head_dim,
                stride_head: tokens * head_dim,
                stride_token: head_dim,
                len: batch * heads * tokens * head_dim,
            },
            Layout::TokenMajorPadded => {
                let stride_token = heads * head_dim + 8;
                let stride_batch = tokens * stride_token + 64;
                Place {
                    offset: 24,
                    stride_batch,
                    stride_head: head_dim,
                    stride_token,
                    len: 24 + batch * stride_batch,
                }
            }
        }
    }

    pub fn token(&self, batch: usize, head: usize, token: usize) -> usize {
        self.offset
            + batch * self.stride_batch
            + head * self.stride_head
            + token * self.stride_token
    }
}

/// Queries and keys in memory; all that is not theirs is NaN.
pub struct Inputs {
    pub q: Vec<u16>,
    pub k: Vec<u16>,
    pub q_place: Place,
    pub k_place: Place,
    pub format: Format,
    pub head_dim: usize,
}

impl Inputs {
    pub fn new(case: &Case) -> Self {
        let shape = [case.batch, case.q_heads, case.q_len, case.head_dim];
        let q_place = Place::new(case.layout, shape);
        let k_shape = [case.batch, case.kv_heads, case.k_len, case.head_dim];
        let k_place = Place::new(case.layout, k_shape);
        // Scores spread the same for both head dims.
        let gain = (64.0 / case.head_dim as f32).sqrt();
        Inputs {
            q: fill(case, q_place, shape, gain, case.seed),
            k: fill(case, k_place, k_shape, 1.0, case.seed + 1000),
            q_place,
            k_place,
            format: case.format,
            head_dim: case.head_dim,
        }
    }

    pub fn query(&self, batch: usize, head: usize, row: usize) -> Vec<f64> {
        self.row(&self.q, self.q_place.token(batch, head, row))
    }

    pub fn key(&self, batch: usize, head: usize, key: usize) -> Vec<f64> {
        self.row(&self.k, self.k_place.token(batch, head, key))
    }

    fn row(&self, data: &[u16], at: usize) -> Vec<f64> {
        let row = &data[at..at + self.head_dim];
        row.iter().map(|&bits| self.format.decode(bits)).collect()
    }
}

fn fill(
    case: &Case,
    place: Place,
    [batch, heads, tokens, head_dim]: [usize; 4],
    gain: f32,
    seed: u64,
) -> Vec<u16> {
    let mut random = Random(seed);
    let mut data = vec![case.format.encode(f32::NAN); place.len];
    for b in 0..batch {
        for h in 0..heads {
            for t in 0..tokens {
                let at = place.token(b, h, t);
                for x in &mut data[at..at + head_dim] {
                    *x = case.format.encode(gain * random.signed());
                }
            }
        }
    }
    data
}

/// A small generator: the tests' inputs are the same on every machine.
pub struct Random(pub u64);

impl Random {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// In [-1, 1).
    pub fn signed(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    }
}
