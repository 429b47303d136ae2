//! What went wrong, in one line.

use std::fmt::Display;
use std::io::Write;
use std::process::ExitCode;

/// A message for stderr.
#[derive(Debug)]
pub struct Failure(String);

/// Longest message in characters: what a hostile file makes of it must still be one line.
const MAX_CHARS: usize = 600;

impl Failure {
    pub fn new(message: impl Display) -> Self {
        Failure(message.to_string())
    }

    /// Something wrong with `what`: an option or a file.
    pub fn of(what: impl Display, error: impl Display) -> Self {
        Failure(format!("{what}: {error}"))
    }

    /// Writes the line; the exit code says that the input was bad.
    pub fn report(self) -> ExitCode {
        let mut line = String::new();
        for c in self.0.chars().take(MAX_CHARS) {
            if c.is_control() {
                line.extend(c.escape_default());
            } else {
                line.push(c);
            }
        }
        // A stderr that takes nothing has nobody who reads it.
        let _ = writeln!(std::io::stderr(), "error: {line}");
        ExitCode::from(2)
    }
}

impl From<candle_core::Error> for Failure {
    fn from(error: candle_core::Error) -> Self {
        Failure::new(error)
    }
}
