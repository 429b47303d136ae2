//! The forward pass against a naive one in f64, and the real model where it is at hand.

use std::env;
use std::io::Write;
use std::path::{Path, PathBuf};

use half::bf16;
use sample_attention::{Fallback, Policy};

use super::attention::{By, Planned, RowCoverage};
use super::measure::{Comparison, Reference, Stretch};
use super::model::Model;
use super::progress::Bar;
use super::weights::{Config, Matrix, VOCABULARY, Weights};

const TINY: Config = Config {
    layers: 2,
    model_dim: 16,
    q_heads: 4,
    kv_heads: 2,
    head_dim: 8,
    ffn_dim: 24,
    rope_theta: 100.0,
    norm_epsilon: 1e-5,
};

/// The names and sizes of a model's tensors.
fn tensors(config: &Config) -> Vec<(String, usize, usize)> {
    let Config {
        model_dim, ffn_dim, ..
    } = *config;
    let (q_dim, kv_dim) = (
        config.q_heads * config.head_dim,
        config.kv_heads * config.head_dim,
    );
    let layer = |layer: usize| {
        [
            ("n1", 1, model_dim),
            ("n2", 1, model_dim),
            ("wq", q_dim, model_dim),
            ("wk", kv_dim, model_dim),
            ("wv", kv_dim, model_dim),
            ("wo", model_dim, q_dim),
            ("w1", ffn_dim, model_dim),
            ("w2", model_dim, ffn_dim),
            ("w3", ffn_dim, model_dim),
        ]
        .map(|(name, outputs, inputs)| (format!("blocks.{layer}.{name}.weight"), outputs, inputs))
    };
    let whole = [
        ("emb", VOCABULARY, model_dim),
        ("nf", 1, model_dim),
        ("head", VOCABULARY, model_dim),
    ];
    let whole = whole.map(|(name, outputs, inputs)| (format!("{name}.weight"), outputs, inputs));
    (0..config.layers).flat_map(layer).chain(whole).collect()
}

/// Numbers in [-0.5, 0.5) from a linear congruential generator.
fn random(seed: &mut u64) -> f32 {
    *seed = seed
        .wrapping_mul(6364136223846793005)
        .wrapping_add(1442695040888963407);
    (*seed >> 40) as f32 / (1 << 24) as f32 - 0.5
}

/// The tiny model's tensors, of a size that makes attention and gates matter.
fn tiny_tensors() -> Vec<(String, Matrix)> {
    let mut seed = 7;
    tensors(&TINY)
        .into_iter()
        .map(|(name, outputs, inputs)| {
            let data = (0..outputs * inputs)
                .map(|_| 2.0 * random(&mut seed))
                .collect();
            (
                name,
                Matrix {
                    outputs,
                    inputs,
                    data,
                },
            )
        })
        .collect()
}

pub(crate) fn tiny_model() -> Model {
    let mut weights = Weights::default();
    for (name, matrix) in tiny_tensors() {
        weights.insert(&name, matrix);
    }
    Model::new(TINY, weights).unwrap()
}

fn dense_logits(model: &Model, bytes: &[u8]) -> Vec<f32> {
    let watch = |_| -> Box<dyn sample_attention::Progress> { Box::new(()) };
    let mut dense = Planned::new(By::Dense, RowCoverage::Skipped, &watch);
    model.forward(bytes, &mut dense).unwrap()
}

/// The formulas, row by row in f64. Only q, k and v are rounded, to bf16, because the model says so.
struct Naive {
    tensors: Vec<(String, Matrix)>,
}

impl Naive {
    fn weight(&self, name: &str) -> &Matrix {
        let named = |(tensor, _): &&(String, Matrix)| *tensor == format!("{name}.weight");
        &self.tensors.iter().find(named).unwrap().1
    }

    fn times(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let rows = self.weight(name).data.chunks_exact(x.len());
        rows.map(|row| row.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum())
            .collect()
    }

    fn norm(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        let root = (mean + f64::from(TINY.norm_epsilon)).sqrt();
        let weight = &self.weight(name).data;
        x.iter()
            .zip(weight)
            .map(|(x, w)| x / root * f64::from(*w))
            .collect()
    }

    fn rotated(mut x: Vec<f64>, position: usize) -> Vec<f64> {
        let half = TINY.head_dim / 2;
        for head in x.chunks_exact_mut(TINY.head_dim) {
            for i in 0..half {
                let angle =
                    position as f64 / f64::from(TINY.rope_theta).powf(i as f64 / half as f64);
                let (a, b) = (head[i], head[i + half]);
                head[i] = a * angle.cos() - b * angle.sin();
                head[i + half] = b * angle.cos() + a * angle.sin();
            }
        }
        x
    }

    fn rounded(x: Vec<f64>) -> Vec<f64> {
        x.into_iter().map(|x| bf16::from_f64(x).to_f64()).collect()
    }

    fn logits(&self, bytes: &[u8]) -> Vec<Vec<f64>> {
        let dim = TINY.head_dim;
        let embedding = &self.weight("emb").data;
        let embed = |&byte: &u8| {
            let row = usize::from(byte) * TINY.model_dim;
            embedding[row..row + TINY.model_dim]
                .iter()
                .map(|&x| f64::from(x))
                .collect()
        };
        let mut x: Vec<Vec<f64>> = bytes.iter().map(embed).collect();
        for layer in 0..TINY.layers {
            let name = |tensor: &str| format!("blocks.{layer}.{tensor}");
            let normed: Vec<_> = x.iter().map(|x| self.norm(&name("n1"), x)).collect();
            let turned = |tensor: &str| -> Vec<Vec<f64>> {
                let rows = normed
                    .iter()
                    .map(|x| self.times(&name(tensor), x))
                    .enumerate();
                rows.map(|(position, x)| Self::rounded(Self::rotated(x, position)))
                    .collect()
            };
            let (q, k) = (turned("wq"), turned("wk"));
            let v: Vec<_> = normed
                .iter()
                .map(|x| Self::rounded(self.times(&name("wv"), x)))
                .collect();
            for (i, x) in x.iter_mut().enumerate() {
                let mut o = Vec::new();
                for head in 0..TINY.q_heads {
                    let own = head * dim..(head + 1) * dim;
                    let shared = head / (TINY.q_heads / TINY.kv_heads);
                    let shared = shared * dim..(shared + 1) * dim;
                    let score = |j: usize| {
                        let dot = q[i][own.clone()]
                            .iter()
                            .zip(&k[j][shared.clone()])
                            .map(|(a, b)| a * b);
                        (dot.sum::<f64>() / (dim as f64).sqrt()).exp()
                    };
                    let scores: Vec<f64> = (0..=i).map(score).collect();
                    let sum: f64 = scores.iter().sum();
                    o.extend(
                        shared.map(|d| (0..=i).map(|j| scores[j] / sum * v[j][d]).sum::<f64>()),
                    );
                }
                let added = self.times(&name("wo"), &o);
                x.iter_mut().zip(added).for_each(|(x, added)| *x += added);
                let normed = self.norm(&name("n2"), x);
                let up = self.times(&name("w3"), &normed);
                let gate = self.times(&name("w1"), &normed);
                let gated: Vec<f64> = gate
                    .iter()
                    .zip(up)
                    .map(|(g, up)| g / (1.0 + (-g).exp()) * up)
                    .collect();
                let added = self.times(&name("w2"), &gated);
                x.iter_mut().zip(added).for_each(|(x, added)| *x += added);
            }
        }
        x.iter()
            .map(|x| self.times("head", &self.norm("nf", x)))
            .collect()
    }
}

#[test]
fn a_tiny_models_forward_pass_is_the_formula() {
    let bytes: Vec<u8> = (0..150u32).map(|i| (i * i % 251) as u8).collect();
    let expected = Naive {
        tensors: tiny_tensors(),
    }
    .logits(&bytes);
    let logits = dense_logits(&tiny_model(), &bytes);
    let scale = expected
        .iter()
        .flatten()
        .fold(0f64, |max, x| max.max(x.abs()));
    assert!(scale > 1.0, "{scale}");
    for (position, (row, expected)) in logits.chunks_exact(VOCABULARY).zip(&expected).enumerate() {
        for (byte, (&x, expected)) in row.iter().zip(expected).enumerate() {
            // q, k and v that fall on the other side of a bf16 rounding boundary in f32 account for nearly all of it.
            let error = (f64::from(x) - expected).abs() / scale;
            assert!(
                error < 3e-3,
                "position {position}, byte {byte}: {x} for {expected}"
            );
        }
    }
}

#[test]
fn later_bytes_change_no_earlier_prediction() {
    let model = tiny_model();
    let bytes: Vec<u8> = (0..200).map(|i| (i % 7) as u8).collect();
    let mut changed = bytes.clone();
    changed[150] = 99;
    let (before, after) = (dense_logits(&model, &bytes), dense_logits(&model, &changed));
    assert_eq!(before[..150 * VOCABULARY], after[..150 * VOCABULARY]);
    assert_ne!(before[150 * VOCABULARY..], after[150 * VOCABULARY..]);
}

#[test]
fn a_model_without_one_of_its_tensors_is_refused() {
    let mut weights = Weights::default();
    for (name, matrix) in tiny_tensors()
        .into_iter()
        .filter(|(name, _)| !name.contains("1.wv"))
    {
        weights.insert(&name, matrix);
    }
    let why = Model::new(TINY, weights).err().unwrap();
    assert!(why.contains("blocks.1.wv.weight"), "{why}");
}

/// The directory of the real model, or a line on standard error that the harness does not swallow.
fn real_model() -> Option<PathBuf> {
    let skip = |why: &str| {
        let _ = writeln!(std::io::stderr(), "SKIPPED the real model's quality: {why}");
        None
    };
    if cfg!(debug_assertions) {
        return skip("it takes minutes without optimisation; run with --release");
    }
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/lm");
    let directory = env::var_os("SAMPLE_ATTENTION_LM").map_or(beside, PathBuf::from);
    match directory.join("config.json").exists() {
        true => Some(directory),
        false => skip("set SAMPLE_ATTENTION_LM to its directory"),
    }
}

#[test]
fn the_real_model_stays_close_to_dense() {
    let Some(directory) = real_model() else {
        return;
    };
    let model = super::load(&directory).unwrap();
    let text = std::fs::read(directory.join("text.txt")).unwrap();
    let bar = Bar::new(2 * model.config().layers);
    let stretch = Stretch::of(&text, 0, 1024).unwrap();
    let reference = Reference::measure(&model, stretch, &bar).unwrap();
    // By an independent forward pass in numpy.
    assert!(
        (reference.loss - NUMPY_LOSS).abs() < 1e-4,
        "{}",
        reference.loss
    );
    let policy = Policy::default().with_fallback(Fallback::Never);
    let sparse = Comparison::measure(
        &model,
        By::Policy(policy),
        &reference,
        RowCoverage::Measured,
        &bar,
    )
    .unwrap();
    assert!(sparse.divergence < 0.006, "{}", sparse.divergence);
    assert!(sparse.density() < 0.75, "{}", sparse.density());
    assert!(
        sparse.row_coverage().unwrap() > 0.96,
        "{:?}",
        sparse.row_coverage()
    );
}

/// Bits per byte of the first 1024 bytes with dense attention.
const NUMPY_LOSS: f64 = 0.539_960;
