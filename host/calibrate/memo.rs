//! What a search has measured, kept in a file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::table::Measured;

const FORMAT: &str = "sample-attention calibration state";
const VERSION: u64 = 1;
/// Measurements are written at most this often, so that a search which is cut short loses no more than that.
const WRITE_EVERY: Duration = Duration::from_secs(2);

/// A state that cannot be read or written, or is another search's.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum MemoError {
    /// The file cannot be read or written.
    #[error("{path}: {why}")]
    File {
        /// The file.
        path: String,
        /// What the system says.
        why: String,
    },
    /// The file holds something else.
    #[error("{path} is not a calibration's state: name another file, or remove it")]
    NotAState {
        /// The file.
        path: String,
    },
    /// The file is of a search for another model, other texts or other candidates.
    #[error(
        "{path} is the state of another calibration (its `{field}` differs): name another file, or remove it"
    )]
    OtherSearch {
        /// The file.
        path: String,
        /// What differs.
        field: &'static str,
    },
}

/// What a search has measured so far. When it is dropped, its file has all of it.
#[derive(Debug, Default)]
pub struct Memo {
    path: Option<PathBuf>,
    /// What the measurements are of: the model and the texts.
    subject: String,
    /// What the candidates are, once a search has told.
    candidates: Option<String>,
    measured: BTreeMap<String, Measured>,
    last_write: Option<Instant>,
    /// Whether the file lacks a measurement.
    lacks_some: bool,
}

impl Memo {
    /// Nothing, and no file.
    pub fn in_memory() -> Self {
        Memo::default()
    }

    /// What `path` holds, if it is there; it is written as the search goes on. `subject` names model and texts, with all that their
    /// measurements depend on: the state of another subject is refused.
    ///
    /// # Errors
    /// Any [`MemoError`].
    pub fn open(path: impl AsRef<Path>, subject: &str) -> Result<Self, MemoError> {
        let path = path.as_ref();
        let mut memo = Memo::in_memory();
        memo.path = Some(path.to_owned());
        memo.subject = subject.to_owned();
        match std::fs::read(path) {
            Ok(bytes) => memo.fill(&bytes)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(memo.file_error(&error)),
        }
        Ok(memo)
    }

    /// Measurements.
    pub fn len(&self) -> usize {
        self.measured.len()
    }

    /// Whether nothing was measured yet.
    pub fn is_empty(&self) -> bool {
        self.measured.is_empty()
    }

    fn name(&self) -> String {
        let path = self.path.as_deref();
        path.map_or(String::new(), |path| path.display().to_string())
    }

    fn file_error(&self, error: &std::io::Error) -> MemoError {
        MemoError::File {
            path: self.name(),
            why: error.to_string(),
        }
    }

    fn fill(&mut self, bytes: &[u8]) -> Result<(), MemoError> {
        let not_a_state = || MemoError::NotAState { path: self.name() };
        let value: Value = serde_json::from_slice(bytes).map_err(|_| not_a_state())?;
        if value["format"] != FORMAT || value["version"] != VERSION {
            return Err(not_a_state());
        }
        if value["subject"] != *self.subject {
            return Err(MemoError::OtherSearch {
                path: self.name(),
                field: "subject",
            });
        }
        let candidates = value["candidates"].as_str().ok_or_else(not_a_state)?;
        let entries = value["measured"].as_object().ok_or_else(not_a_state)?;
        let measured = entries
            .iter()
            .map(|(key, entry)| {
                let number = |at: usize| entry[at].as_f64();
                Some((key.clone(), Measured::new(number(0)?, number(1)?)))
            })
            .collect::<Option<_>>()
            .ok_or_else(not_a_state)?;
        self.candidates = Some(candidates.to_owned());
        self.measured = measured;
        Ok(())
    }

    /// Says what the search's candidates are.
    pub(super) fn of_candidates(&mut self, candidates: &str) -> Result<(), MemoError> {
        match &self.candidates {
            Some(known) if known != candidates => Err(MemoError::OtherSearch {
                path: self.name(),
                field: "candidates",
            }),
            _ => {
                self.candidates = Some(candidates.to_owned());
                Ok(())
            }
        }
    }

    pub(super) fn get(&self, key: &str) -> Option<Measured> {
        self.measured.get(key).copied()
    }

    pub(super) fn insert(&mut self, key: String, measured: Measured) -> Result<(), MemoError> {
        self.measured.insert(key, measured);
        self.lacks_some = true;
        match self.last_write {
            Some(last) if last.elapsed() < WRITE_EVERY => Ok(()),
            _ => self.write(),
        }
    }

    /// Writes the file, if there is one and it lacks something.
    pub(super) fn write(&mut self) -> Result<(), MemoError> {
        let Some(path) = self.path.as_deref().filter(|_| self.lacks_some) else {
            return Ok(());
        };
        let entries = self.measured.iter();
        let measured: Map<String, Value> = entries
            .map(|(key, one)| (key.clone(), json!([one.divergence, one.cost])))
            .collect();
        let state = json!({
            "format": FORMAT,
            "version": VERSION,
            "subject": self.subject,
            "candidates": self.candidates,
            "measured": measured,
        });
        crate::whole_file::write(path, state.to_string().as_bytes())
            .map_err(|error| self.file_error(&error))?;
        self.last_write = Some(Instant::now());
        self.lacks_some = false;
        Ok(())
    }
}

/// A search that ends with an error keeps what it has measured.
impl Drop for Memo {
    fn drop(&mut self) {
        // The error that ended the search is the one to tell.
        let _ = self.write();
    }
}
