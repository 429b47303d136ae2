//! The text of a run: a fixed context and the queries after it.

use std::ops::Range;

use sample_attention::{Dtype, Inputs, Problem, TensorView};
use sample_attention_inputs::capture::{CARRIED_NAME, Capture, Tensor};
use sample_attention_inputs::synthetic::{Structure, Synthetic};
use sample_attention_prefill::failure::{Failure, one_line};
use sample_attention_prefill::memory;

use crate::args::Request;

/// Q, K and V of one text.
pub struct Input {
    capture: Capture,
    /// Where it comes from, for people.
    pub title: String,
    /// Positions of the fixed context.
    pub fixed: usize,
}

/// Reads or generates what the request names.
pub fn load(request: &Request) -> Result<Input, Failure> {
    let (capture, title) = if let Some(path) = &request.input {
        let blame = |error: &dyn std::fmt::Display| {
            Failure::of(format_args!("--input {}", path.display()), error)
        };
        let capture = Capture::read(path).map_err(|error| blame(&error))?;
        let problem = capture.problem;
        if problem.batch != 1 || problem.q_len != problem.k_len {
            return Err(blame(&format_args!(
                "it has {} sequences, {} queries and {} keys; one text is needed, with a query for every key",
                problem.batch, problem.q_len, problem.k_len
            )));
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        (capture, one_line(&name))
    } else if let Some(tokens) = request.synthetic {
        let problem = Problem::causal(tokens, 128, Dtype::Bf16).with_heads(8, 2);
        memory::check(12 * tokens as u128 * 128 * 2)?;
        let recipe = Synthetic {
            problem,
            structure: Structure::EASY,
            seed: 0,
        };
        let capture = recipe
            .generate()
            .map_err(|error| Failure::of("--synthetic", error))?;
        (capture, "synthetic (not captured from a model)".to_owned())
    } else {
        (Capture::carried(), CARRIED_NAME.to_owned())
    };
    let len = capture.problem.k_len;
    let fixed = request.fixed.unwrap_or(len / 8 * 7);
    if fixed == 0 || fixed >= len {
        return Err(Failure::of(
            format_args!("--fixed {fixed}"),
            format_args!(
                "the text has {len} tokens, and at least one must come after the fixed context"
            ),
        ));
    }
    Ok(Input {
        capture,
        title,
        fixed,
    })
}

impl Input {
    /// The whole text's problem.
    pub fn whole(&self) -> &Problem {
        &self.capture.problem
    }

    /// Queries after the fixed context.
    pub fn questions(&self) -> usize {
        self.whole().k_len - self.fixed
    }

    pub fn q(&self, tokens: Range<usize>) -> Result<TensorView<'_>, Failure> {
        self.tokens(&self.capture.q, self.whole().q_heads, tokens)
    }

    pub fn k(&self, tokens: Range<usize>) -> Result<TensorView<'_>, Failure> {
        self.tokens(&self.capture.k, self.whole().kv_heads, tokens)
    }

    pub fn v(&self, tokens: Range<usize>) -> Result<TensorView<'_>, Failure> {
        self.tokens(&self.capture.v, self.whole().kv_heads, tokens)
    }

    /// Queries at some positions with keys and values of others.
    pub fn inputs(&self, queries: Range<usize>, keys: Range<usize>) -> Result<Inputs<'_>, Failure> {
        Ok(Inputs::new(
            self.q(queries)?,
            self.k(keys.clone())?,
            self.v(keys)?,
        ))
    }

    fn tokens<'a>(
        &self,
        tensor: &'a Tensor,
        heads: usize,
        tokens: Range<usize>,
    ) -> Result<TensorView<'a>, Failure> {
        let (len, dim) = (self.whole().k_len, self.whole().head_dim);
        let shape = [1, heads, tokens.len(), dim];
        let strides = [heads * len * dim, len * dim, dim, 1];
        let start = tokens.start * dim;
        Ok(match tensor {
            Tensor::F32(data) => TensorView::new(&data[start..], shape, strides),
            Tensor::F16(data) => TensorView::new(&data[start..], shape, strides),
            Tensor::Bf16(data) => TensorView::new(&data[start..], shape, strides),
        }?)
    }
}
