//! The input of a run: read or made up.

use std::path::Path;

use half::bf16;
use sample_attention::{Dtype, Problem};
use sample_attention_inputs::capture::{CARRIED_NAME, Capture, CaptureError, Layout, Tensor};
use sample_attention_inputs::synthetic::Synthetic;

use crate::args::{Backend, Request, Source};
use crate::failure::{Failure, one_line};
use crate::memory;

/// Q, K and V, and what to call them.
pub struct Input {
    pub capture: Capture,
    /// Where they come from, for people.
    pub title: String,
    /// What about it is not as it should be, a line each.
    pub warnings: Vec<String>,
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
    let (mut capture, mut title, mut warnings) = match &request.source {
        Source::Carried => (Capture::carried(), CARRIED_NAME.to_owned(), Vec::new()),
        Source::File { path, layout } => {
            let capture = read(path, *layout)?;
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let doubt = implausible(&capture.problem, *layout);
            (capture, one_line(&name), Vec::from_iter(doubt))
        }
        Source::Synthetic {
            problem,
            structure,
            structure_name,
            seed,
        } => {
            memory::check(elements(problem) * problem.dtype.bytes() as u128)?;
            let recipe = Synthetic {
                problem: *problem,
                structure: *structure,
                seed: *seed,
            };
            let capture = recipe
                .generate()
                .map_err(|error| Failure::of("--synthetic", error))?;
            let title =
                format!("synthetic, {structure_name}, seed {seed} (not captured from a model)");
            (capture, title, Vec::new())
        }
    };
    if capture.problem.dtype == Dtype::F32 && request.backend != Backend::Cpu {
        round_to_bf16(&mut capture);
        title.push_str(", rounded from f32 to bf16");
    }
    warnings.extend(non_finite(&capture));
    Ok(Input {
        capture,
        title,
        warnings,
    })
}

fn read(path: &Path, layout: Layout) -> Result<Capture, Failure> {
    let option = format!("--input {}", path.display());
    let problem = Capture::problem_of(path, layout).map_err(|error| {
        let shapes_differ = matches!(
            error,
            CaptureError::Mismatch { .. } | CaptureError::Problem(_)
        );
        let other = other(layout);
        let other_fits = Capture::problem_of(path, other.0)
            .is_ok_and(|problem| !has_more_heads_than_keys(&problem));
        if shapes_differ && other_fits {
            let hint = format_args!(
                "{error}; as {} the shapes fit: --layout {}",
                other.0.dimensions(),
                other.1
            );
            Failure::of(&option, hint)
        } else {
            Failure::of(&option, error)
        }
    })?;
    // Another order of dimensions is made by copying, one tensor after the other.
    let copies = match layout {
        Layout::Bhsd => 1,
        Layout::Bshd => 2,
    };
    memory::check(copies * elements(&problem) * problem.dtype.bytes() as u128)?;
    Capture::read_as(path, layout).map_err(|error| Failure::of(&option, error))
}

/// The layout that a file has if it has not this one, and its name on the command line.
fn other(layout: Layout) -> (Layout, &'static str) {
    match layout {
        Layout::Bhsd => (Layout::Bshd, "bshd"),
        Layout::Bshd => (Layout::Bhsd, "bhsd"),
    }
}

/// No model has as many heads as a prompt has tokens; a file whose tokens are taken for heads has.
fn has_more_heads_than_keys(problem: &Problem) -> bool {
    problem.q_heads > problem.k_len
}

/// Doubt about the order of the dimensions.
fn implausible(problem: &Problem, layout: Layout) -> Option<String> {
    let (other, name) = other(layout);
    has_more_heads_than_keys(problem).then(|| {
        format!(
            "{} query and {} key/value heads over {} keys: if the file is {}, give --layout {name}",
            problem.q_heads,
            problem.kv_heads,
            problem.k_len,
            other.dimensions(),
        )
    })
}

/// Tensors with elements that are not finite.
fn non_finite(capture: &Capture) -> impl Iterator<Item = String> {
    let tensors = [("q", &capture.q), ("k", &capture.k), ("v", &capture.v)];
    tensors.into_iter().filter_map(|(name, tensor)| {
        let found = tensor.non_finite();
        (found != Default::default()).then(|| {
            format!(
                "{name} has {} NaN and {} infinite of {} elements: what is computed from them means nothing",
                found.nan,
                found.infinite,
                tensor.len(),
            )
        })
    })
}

/// Elements of q, k and v.
fn elements(problem: &Problem) -> u128 {
    [problem.q_shape(), problem.kv_shape(), problem.kv_shape()]
        .iter()
        .map(|shape| shape.iter().map(|&size| size as u128).product::<u128>())
        .sum()
}

/// What the GPU kernels take in place of f32: as wide a range, in 16 bits.
fn round_to_bf16(capture: &mut Capture) {
    capture.problem.dtype = Dtype::Bf16;
    for tensor in [&mut capture.q, &mut capture.k, &mut capture.v] {
        let rounded = tensor.to_f32().into_iter().map(bf16::from_f32).collect();
        *tensor = Tensor::Bf16(rounded);
    }
}
