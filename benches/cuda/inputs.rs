//! Inputs that are quickly made, whatever their size.

use half::bf16;
use rayon::prelude::*;
use sample_attention::Problem;
use testkit::random::Random;

/// What attention finds in them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Structure {
    /// Noise: attention is spread over all keys, and nothing can be left out.
    Uniform,
    /// Noise, and one direction that all tokens share, turned by rotary embedding: attention falls off with the distance, and
    /// little but the window is kept.
    Local,
}

impl Structure {
    pub const ALL: [Structure; 2] = [Structure::Uniform, Structure::Local];

    pub fn name(self) -> &'static str {
        match self {
            Structure::Uniform => "uniform",
            Structure::Local => "local",
        }
    }
}

/// What `Local` gives a query's own token over a far one, in nats.
const LOCAL_NATS: f32 = 24.0;

/// How far that reaches, in tokens: the period of the lowest frequency is some six times as long.
const LOCAL_REACH: f32 = 32.0;

/// Q, K and V, each [1, heads, length, head_dim].
pub fn make(problem: &Problem, structure: Structure) -> [Vec<bf16>; 3] {
    let direction = match structure {
        Structure::Uniform => Vec::new(),
        Structure::Local => turned(problem.k_len, problem.head_dim),
    };
    [
        rows(
            1,
            problem.q_heads,
            problem.head_dim,
            problem.q_len,
            &direction,
        ),
        rows(
            2,
            problem.kv_heads,
            problem.head_dim,
            problem.k_len,
            &direction,
        ),
        rows(3, problem.kv_heads, problem.head_dim, problem.k_len, &[]),
    ]
}

/// Noise, plus `added` [length, head_dim] in every head, where there is any.
fn rows(seed: u64, heads: usize, head_dim: usize, len: usize, added: &[f32]) -> Vec<bf16> {
    let mut values = vec![bf16::ZERO; heads * len * head_dim];
    values
        .par_chunks_mut(head_dim)
        .enumerate()
        .for_each(|(row, values)| {
            let mut random = Random::new(seed << 40 | row as u64);
            let added = added.get(row % len * head_dim..).unwrap_or_default();
            for (pair, values) in values.chunks_mut(2).enumerate() {
                let bits = random.bits().to_le_bytes();
                for (i, value) in values.iter_mut().enumerate() {
                    let noise = nearly_normal(&bits[4 * i..4 * i + 4]);
                    *value = bf16::from_f32(noise + added.get(2 * pair + i).unwrap_or(&0.0));
                }
            }
        });
    values
}

/// The sum of four uniform bytes, with mean 0 and variance 1.
fn nearly_normal(bytes: &[u8]) -> f32 {
    const MEAN: f32 = 510.0;
    const DEVIATION: f32 = 147.8;
    let sum: u32 = bytes.iter().map(|&byte| u32::from(byte)).sum();
    (sum as f32 - MEAN) / DEVIATION
}

/// One vector, turned by rotary embedding in the half-split form: [length, head_dim].
fn turned(len: usize, head_dim: usize) -> Vec<f32> {
    let half = head_dim / 2;
    // |v|² / √head_dim is LOCAL_NATS; each pair of components has an equal share.
    let amplitude = (LOCAL_NATS * (head_dim as f32).sqrt() / half as f32).sqrt();
    // The high frequencies alone: they cancel out beyond the reach.
    let frequency = |pair: usize| LOCAL_REACH.powf(-(pair as f32) / (half - 1) as f32);
    let mut vectors = vec![0.0; len * head_dim];
    vectors
        .par_chunks_mut(head_dim)
        .enumerate()
        .for_each(|(position, vector)| {
            for pair in 0..half {
                let angle = position as f32 * frequency(pair);
                vector[pair] = amplitude * angle.cos();
                vector[pair + half] = amplitude * angle.sin();
            }
        });
    vectors
}
