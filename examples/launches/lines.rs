//! The conversation: a line in, a line out.

use std::io::{BufRead, Write};

use serde_json::Value;

/// The next line; `None` at the end of the input.
pub fn hear() -> std::io::Result<Option<String>> {
    let mut line = String::new();
    let bytes = std::io::stdin().lock().read_line(&mut line)?;
    Ok((bytes > 0).then_some(line))
}

/// Writes one line.
pub fn say(value: &Value) -> std::io::Result<()> {
    let mut output = std::io::stdout().lock();
    writeln!(output, "{value}")?;
    output.flush()
}
