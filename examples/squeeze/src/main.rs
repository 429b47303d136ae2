//! `squeeze`: Squeezed Attention over a fixed context, from the command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    sample_attention_squeeze::main()
}
