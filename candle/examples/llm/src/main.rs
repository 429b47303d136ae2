//! `llm`: a language model with SampleAttention, from the command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    sample_attention_llm::main()
}
