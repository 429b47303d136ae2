//! `prefill`: SampleAttention over one prefill, from the command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    sample_attention_prefill::main()
}
