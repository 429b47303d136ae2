//! `cargo run --release --example squeeze`: the binary `squeeze`, by the name that it has among the repository's examples.

use std::process::ExitCode;

fn main() -> ExitCode {
    sample_attention_squeeze::main()
}
