//! What went wrong, in one line; and the other stream, whose errors are failures too.

use std::io::{ErrorKind, Write};
use std::process::ExitCode;

/// A message for stderr.
#[derive(Debug)]
pub struct Failure(String);

/// Longest message in characters: what a hostile file makes of it must still be one line.
const MAX_CHARS: usize = 600;

impl Failure {
    pub fn new(message: impl std::fmt::Display) -> Self {
        Failure(message.to_string())
    }

    /// Something wrong with `what`: an option, or an option and its file.
    pub fn of(what: impl std::fmt::Display, error: impl std::fmt::Display) -> Self {
        Failure(format!("{what}: {error}"))
    }

    /// The first paragraph of clap's message, on one line.
    pub fn of_options(error: &clap::Error) -> Self {
        let text = error.to_string();
        let paragraph = text.split("\n\n").next().unwrap_or_default();
        let words: Vec<&str> = paragraph.split_whitespace().collect();
        let line = words.join(" ");
        Failure::new(line.strip_prefix("error: ").unwrap_or(&line))
    }

    /// Writes the line; the exit code says that the input was bad.
    pub fn report(self) -> ExitCode {
        say("error", &self.0);
        ExitCode::from(2)
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<sample_attention::Error> for Failure {
    fn from(error: sample_attention::Error) -> Self {
        Failure::new(error)
    }
}

/// Writes a line about something that is no failure, but not as it should be.
pub fn warn(message: &str) {
    say("warning", message);
}

/// A stderr that takes nothing has nobody who reads it.
fn say(kind: &str, message: &str) {
    let _ = writeln!(std::io::stderr(), "{kind}: {}", one_line(message));
}

/// `message` without control characters, cut where it is too long.
pub fn one_line(message: &str) -> String {
    let mut line = String::new();
    for (at, c) in message.chars().enumerate() {
        if at == MAX_CHARS {
            line.push('…');
            break;
        }
        if c.is_control() || c == '\u{2028}' || c == '\u{2029}' {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
    line
}

/// Prints to stdout. A reader that has seen enough is no failure.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(Failure::of("stdout", error)),
        _ => Ok(()),
    }
}
