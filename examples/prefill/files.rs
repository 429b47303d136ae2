//! Output files that appear all together, once everything has succeeded, or not at all.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::failure::Failure;

/// Files that are being written beside where they will be.
pub struct Staged {
    targets: Vec<Target>,
}

struct Target {
    option: &'static str,
    /// As the caller named it.
    named: PathBuf,
    /// The same with symbolic links resolved.
    path: PathBuf,
    temporary: PathBuf,
    stage: Stage,
}

#[derive(PartialEq)]
enum Stage {
    Named,
    Written,
    Published,
}

impl Staged {
    /// Checks that every file, given with its option, can be written and replaces neither another nor what is read.
    pub fn new(files: Vec<(&'static str, &Path)>, read: Option<&Path>) -> Result<Self, Failure> {
        let read = read.and_then(|path| fs::canonicalize(path).ok());
        let mut staged = Staged {
            targets: Vec::new(),
        };
        for (at, (option, named)) in files.into_iter().enumerate() {
            let blame = |error: &dyn std::fmt::Display| {
                Failure::of(format_args!("{option} {}", named.display()), error)
            };
            let path = resolve(named).map_err(|error| blame(&error))?;
            if read.as_ref() == Some(&path) {
                return Err(blame(&"it would replace the input"));
            }
            if let Some(other) = staged.targets.iter().find(|other| other.path == path) {
                return Err(blame(&format_args!("{} names the same file", other.option)));
            }
            let temporary =
                path.with_file_name(format!(".prefill-{}-{at}.tmp", std::process::id()));
            // A full run later is too late to learn that the directory cannot be written.
            File::create_new(&temporary)
                .and_then(|_| fs::remove_file(&temporary))
                .map_err(|error| blame(&format_args!("cannot write there: {error}")))?;
            staged.targets.push(Target {
                option,
                named: named.to_owned(),
                path,
                temporary,
                stage: Stage::Named,
            });
        }
        Ok(staged)
    }

    /// Writes the content of the file that was named `path`.
    pub fn write(
        &mut self,
        path: &Path,
        content: impl FnOnce(&mut dyn Write) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let target = self
            .targets
            .iter_mut()
            .find(|target| target.named == path)
            .ok_or_else(|| Failure::of(path.display(), "not among the files to write"))?;
        let file = File::create_new(&target.temporary).map_err(|error| target.blame(&error))?;
        target.stage = Stage::Written;
        let mut to = BufWriter::with_capacity(1 << 20, file);
        content(&mut to).map_err(|failure| target.blame(&failure))?;
        to.flush().map_err(|error| target.blame(&error))
    }

    /// Moves every file to its place.
    pub fn publish(mut self) -> Result<(), Failure> {
        for target in &mut self.targets {
            fs::rename(&target.temporary, &target.path).map_err(|error| target.blame(&error))?;
            target.stage = Stage::Published;
        }
        self.targets.clear();
        Ok(())
    }
}

impl Target {
    fn blame(&self, error: &dyn std::fmt::Display) -> Failure {
        Failure::of(
            format_args!("{} {}", self.option, self.named.display()),
            error,
        )
    }
}

impl Drop for Staged {
    /// What is still here belongs to a run that failed.
    fn drop(&mut self) {
        for target in &self.targets {
            let _ = match target.stage {
                Stage::Named => Ok(()),
                Stage::Written => fs::remove_file(&target.temporary),
                Stage::Published => fs::remove_file(&target.path),
            };
        }
    }
}

/// Where a file of this name lies or will lie; only regular files may be replaced.
fn resolve(named: &Path) -> io::Result<PathBuf> {
    match fs::metadata(named) {
        Ok(existing) if existing.is_file() => fs::canonicalize(named),
        Ok(existing) if existing.is_dir() => Err(io::Error::other("it is a directory")),
        Ok(_) => Err(io::Error::other("it is not a regular file")),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Err(_) => {
            let name = named
                .file_name()
                .filter(|_| !named.as_os_str().as_encoded_bytes().ends_with(b"/"))
                .ok_or_else(|| io::Error::other("it does not name a file"))?;
            let parent = match named.parent() {
                Some(parent) if parent != Path::new("") => parent,
                _ => Path::new("."),
            };
            let parent = fs::canonicalize(parent)
                .map_err(|error| io::Error::new(error.kind(), format!("its directory: {error}")))?;
            Ok(parent.join(name))
        }
    }
}
