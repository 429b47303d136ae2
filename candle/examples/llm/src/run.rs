//! The command `run`.

use std::time::{Duration, Instant};

use candle_core::{DType, Device};

use crate::args::{ElementType, Options};
use crate::compare::compare;
use crate::config::Config;
use crate::failure::Failure;
use crate::model::{Attention, Model};
use crate::policies::LayerPolicies;
use crate::prefill::{Prefilled, Request, prefill};
use crate::report::{self, Outcome};
use crate::text::Text;
use crate::weights::Weights;

/// # Errors
/// What is wrong with the folder, the prompt or the options.
pub fn run(options: &Options) -> Result<String, Failure> {
    if ![0, 16, 32, 64, 128].contains(&options.page) {
        return Err(Failure::new(format_args!(
            "--page {}: pages have 16, 32, 64 or 128 tokens, and 0 is a cache in one piece",
            options.page
        )));
    }
    let device = device(&options.device)?;
    let dtype = match options.dtype {
        Some(ElementType::F32) => DType::F32,
        Some(ElementType::F16) => DType::F16,
        Some(ElementType::Bf16) => DType::BF16,
        None if device.is_cpu() => DType::F32,
        None => DType::BF16,
    };
    let config = Config::read(&options.model)?;
    let text = Text::open(&options.model, config.vocab_size)?;
    let tokens = text.read(&options.prompt, options.tokens)?;
    if let Some(&token) = tokens
        .iter()
        .find(|&&token| token as usize >= config.vocab_size)
    {
        return Err(Failure::of(
            options.prompt.display(),
            format_args!("token {token} is none of the {}", config.vocab_size),
        ));
    }
    let capacity = tokens.len() + options.generate;
    if let Some(window) = config.sliding_window().filter(|&window| window < capacity) {
        return Err(Failure::new(format_args!(
            "the model has a sliding window of {window} tokens, which is not supported: use at most that many, --generate included"
        )));
    }
    let policies = match &options.profile {
        Some(path) => LayerPolicies::of_profile(path, &config)?,
        None => LayerPolicies::alike(options.policy(), config.num_hidden_layers),
    };
    let weights = Weights::open(&options.model, dtype, &device)?;
    let model = Model::load(config, &weights, capacity, dtype, &device)?;

    let request = |label, policies| Request {
        label,
        tokens: &tokens,
        chunk: match options.chunk {
            0 => tokens.len(),
            chunk => chunk,
        },
        capacity,
        page: options.page,
        policies,
    };
    let dense = prefill(&model, &request("dense", None))?;
    let dense_hidden = dense.hidden.clone();
    let dense_time = dense.time_to_first_token;
    // Its cache goes before the next is made.
    drop(dense);
    let mut sparse = prefill(&model, &request("sparse", Some(&policies)))?;
    let compared = compare(&model, &dense_hidden, &sparse.hidden, &tokens)?;
    let (answer, decoding) = generate(&model, &mut sparse, options.generate)?;
    Ok(report::text(&Outcome {
        options,
        policies: &policies,
        dtype,
        model: &model,
        tokens: tokens.len(),
        dense_time,
        sparse: &sparse,
        compared,
        answer: text.of(&answer)?,
        answer_tokens: answer.len(),
        decoding,
    }))
}

/// The likeliest tokens, one after the other.
fn generate(
    model: &Model,
    prefilled: &mut Prefilled,
    count: usize,
) -> Result<(Vec<u32>, Duration), Failure> {
    let started = Instant::now();
    let mut answer = Vec::with_capacity(count);
    let mut next = prefilled.first;
    while answer.len() < count && !model.config.is_end_of_text(next) {
        answer.push(next);
        if answer.len() == count {
            break;
        }
        let hidden = model.forward(&[next], &mut prefilled.caches, Attention::Dense, |_| {})?;
        next = model.next_token(&hidden)?;
    }
    Ok((answer, started.elapsed()))
}

fn device(name: &str) -> Result<Device, Failure> {
    let of_option =
        |error: &dyn std::fmt::Display| Failure::of(format_args!("--device {name}"), error);
    let ordinal = match name.split_once(':') {
        None if name == "cpu" => return Ok(Device::Cpu),
        None if name == "cuda" => 0,
        Some(("cuda", ordinal)) => ordinal
            .parse()
            .map_err(|_| of_option(&"the number of the GPU is none"))?,
        _ => return Err(of_option(&"use cpu, cuda or cuda:N")),
    };
    if cfg!(not(feature = "cuda")) {
        return Err(of_option(&"the program was built without its feature cuda"));
    }
    Device::new_cuda(ordinal).map_err(|error| of_option(&error))
}
