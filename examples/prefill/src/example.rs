//! `cargo run --release --example prefill`: the binary `prefill`, by the name that it has among the repository's examples.

use std::process::ExitCode;

fn main() -> ExitCode {
    sample_attention_prefill::main()
}
