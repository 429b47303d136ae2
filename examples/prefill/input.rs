//! The input of a run: read or made up.

use half::bf16;
use sample_attention::{Dtype, Problem};
use testkit::capture::{Capture, CaptureError, Tensor};
use testkit::synthetic::Synthetic;

use crate::args::{Backend, Request, Source};
use crate::failure::{Failure, one_line};
use crate::memory;

/// Q, K and V, and what to call them.
pub struct Input {
    pub capture: Capture,
    /// Where they come from, for people.
    pub title: String,
}

impl Input {
    pub fn problem(&self) -> &Problem {
        &self.capture.problem
    }

    /// What the file says about itself under `key`, short enough to print.
    pub fn note(&self, key: &str) -> Option<String> {
        let text = one_line(self.capture.metadata.get(key)?);
        (text.len() <= 40).then_some(text)
    }

    /// Name of a query head: the model's own number for it, where the file gives one.
    pub fn head_name(&self, q_head: usize) -> String {
        let numbers = self
            .note("q_heads")
            .filter(|text| text.split(',').count() == self.problem().q_heads);
        let own = numbers
            .as_deref()
            .and_then(|text| text.split(',').nth(q_head)?.trim().parse::<usize>().ok());
        own.unwrap_or(q_head).to_string()
    }
}

/// Reads or generates what the request names.
pub fn load(request: &Request) -> Result<Input, Failure> {
    match &request.source {
        Source::File(path) => {
            let blame = |error: CaptureError| {
                Failure::of(format_args!("--input {}", path.display()), error)
            };
            let mut capture = Capture::read(path).map_err(blame)?;
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let mut title = one_line(&name);
            if capture.problem.dtype == Dtype::F32 && request.backend != Backend::Cpu {
                round_to_bf16(&mut capture);
                title.push_str(", rounded from f32 to bf16");
            }
            Ok(Input { capture, title })
        }
        Source::Synthetic {
            problem,
            structure,
            structure_name,
            seed,
        } => {
            let elements: u128 = [problem.q_shape(), problem.kv_shape(), problem.kv_shape()]
                .iter()
                .map(|shape| shape.iter().map(|&size| size as u128).product::<u128>())
                .sum();
            memory::check(2 * elements)?;
            let recipe = Synthetic {
                problem: *problem,
                structure: *structure,
                seed: *seed,
            };
            let capture = recipe
                .generate()
                .map_err(|error| Failure::of("--synthetic", error))?;
            Ok(Input {
                capture,
                title: format!(
                    "synthetic, {structure_name}, seed {seed} (not captured from a model)"
                ),
            })
        }
    }
}

/// What the GPU kernels take in place of f32: as wide a range, in 16 bits.
fn round_to_bf16(capture: &mut Capture) {
    capture.problem.dtype = Dtype::Bf16;
    for tensor in [&mut capture.q, &mut capture.k, &mut capture.v] {
        let rounded = tensor.to_f32().into_iter().map(bf16::from_f32).collect();
        *tensor = Tensor::Bf16(rounded);
    }
}
