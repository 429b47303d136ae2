//! Output files that appear all together, once everything has succeeded, or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use tempfile::{Builder, NamedTempFile, TempPath};

use crate::failure::Failure;

/// Files that are being written beside where they will be. Dropped before [`Staged::keep`], or ended by a signal, it leaves
/// every path as it was. A process has one at a time.
pub struct Staged(());

/// What the run, its signal handler and its last allocation work on. Held only while files are created, moved and removed,
/// never while one is written, so that a signal never waits.
static TARGETS: Mutex<Vec<Target>> = Mutex::new(Vec::new());

struct Target {
    option: &'static str,
    /// As the caller named it.
    named: PathBuf,
    /// The same with symbolic links resolved.
    path: PathBuf,
    /// The content, until it is published.
    temporary: Option<TempPath>,
    /// What lay at `path` before.
    backup: Option<TempPath>,
    published: bool,
}

impl Staged {
    /// Checks that every file, given with its option, can be written and replaces neither another nor what is read.
    pub fn new(
        files: Vec<(&'static str, &Path)>,
        read: &[(&'static str, &Path)],
    ) -> Result<Self, Failure> {
        let read: Vec<(&str, PathBuf)> = read
            .iter()
            .filter_map(|(option, path)| Some((*option, fs::canonicalize(path).ok()?)))
            .collect();
        let staged = Staged(());
        #[cfg(unix)]
        if !files.is_empty() {
            crate::signals::on_termination(abandon)?;
        }
        for (option, named) in files {
            let mut targets = lock();
            let blame = |error: &dyn std::fmt::Display| blame(option, named, error);
            let path = resolve(named).map_err(|error| blame(&error))?;
            if let Some((option, _)) = read.iter().find(|read| read.1 == path) {
                let what = option.trim_start_matches("--");
                return Err(blame(&format_args!("it would replace the {what}")));
            }
            if let Some(other) = targets.iter().find(|other| other.path == path) {
                return Err(blame(&format_args!("{} names the same file", other.option)));
            }
            let target = Target {
                option,
                named: named.to_owned(),
                path,
                temporary: None,
                backup: None,
                published: false,
            };
            // A full run later is too late to learn that the directory cannot be written.
            target
                .create()
                .and_then(NamedTempFile::close)
                .map_err(|error| blame(&format_args!("cannot write there: {error}")))?;
            targets.push(target);
        }
        Ok(staged)
    }

    /// Writes the content of the file that was named `path`.
    pub fn write(
        &mut self,
        path: &Path,
        content: impl FnOnce(&mut dyn Write) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let (file, option) = self.open(path)?;
        let mut to = BufWriter::with_capacity(1 << 20, file);
        content(&mut to).map_err(|failure| blame(option, path, &failure))?;
        to.flush().map_err(|error| blame(option, path, &error))
    }

    /// The temporary file of the file that was named `path`, and its option.
    fn open(&self, path: &Path) -> Result<(File, &'static str), Failure> {
        let mut targets = lock();
        let target = targets
            .iter_mut()
            .find(|target| target.named == path)
            .ok_or_else(|| Failure::of(path.display(), "not among the files to write"))?;
        let created = target.create().and_then(|file| {
            if let Ok(existing) = fs::metadata(&target.path) {
                file.as_file().set_permissions(existing.permissions())?;
            }
            Ok(file)
        });
        let (file, temporary) = created.map_err(|error| target.blame(&error))?.into_parts();
        target.temporary = Some(temporary);
        Ok((file, target.option))
    }

    /// Moves every file to its place. Until [`Staged::keep`], what they replaced can come back.
    pub fn publish(&mut self) -> Result<(), Failure> {
        let mut targets = lock();
        let published = targets.iter_mut().try_for_each(Target::publish);
        if published.is_err() {
            undo(&mut targets);
        }
        published
    }

    /// The published files stay.
    pub fn keep(self) {
        // Dropping a backup removes it.
        lock().clear();
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        undo(&mut lock());
    }
}

impl Target {
    fn blame(&self, error: &dyn std::fmt::Display) -> Failure {
        blame(self.option, &self.named, error)
    }

    /// An empty file in the same folder, with a name that nothing has.
    fn create(&self) -> io::Result<NamedTempFile> {
        let mut builder = Builder::new();
        builder.prefix(PREFIX).suffix(".tmp");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            // As for any new file, the umask takes its part away.
            builder.permissions(fs::Permissions::from_mode(0o666));
        }
        builder.tempfile_in(self.folder())
    }

    fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("/"))
    }

    fn publish(&mut self) -> Result<(), Failure> {
        let Some(temporary) = self.temporary.take() else {
            return Ok(());
        };
        // Whatever came to lie there during the run may be replaced only if it could have been before.
        resolve(&self.path).map_err(|error| self.blame(&error))?;
        if self.path.exists() {
            self.backup = Some(self.back_up().map_err(|error| self.blame(&error))?);
        }
        temporary
            .persist(&self.path)
            .map_err(|failed| self.blame(&failed.error))?;
        self.published = true;
        Ok(())
    }

    /// Another name for what lies at the path: a second link, or where there are none, its only name.
    fn back_up(&self) -> io::Result<TempPath> {
        let mut builder = Builder::new();
        builder.prefix(PREFIX).suffix(".old");
        let linked = builder.make_in(self.folder(), |backup| fs::hard_link(&self.path, backup));
        let backup = match linked {
            Ok(backup) => backup,
            Err(_) => builder.make_in(self.folder(), |backup| fs::rename(&self.path, backup))?,
        };
        Ok(backup.into_temp_path())
    }

    /// Leaves the path as it was before the run.
    fn undo(&mut self) {
        self.temporary = None;
        // Nobody is left to hear of a failure here. Where both names are links of one file, renaming does nothing, and
        // dropping the backup removes the second.
        let _ = match self.backup.take() {
            Some(backup) => fs::rename(&backup, &self.path),
            None if self.published => fs::remove_file(&self.path),
            None => Ok(()),
        };
        self.published = false;
    }
}

const PREFIX: &str = ".prefill-";

fn undo(targets: &mut Vec<Target>) {
    targets.iter_mut().rev().for_each(Target::undo);
    targets.clear();
}

fn lock() -> MutexGuard<'static, Vec<Target>> {
    TARGETS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Leaves every path as it was before the run, in a process that is about to end.
#[cfg(unix)]
fn abandon() {
    let mut targets = lock();
    undo(&mut targets);
    // Stays locked: the run goes on until the process ends, and must not create another file.
    std::mem::forget(targets);
}

/// The same where this thread may be the one that holds the files.
pub fn abandon_if_possible() {
    for _ in 0..100 {
        match TARGETS.try_lock() {
            Ok(mut targets) => {
                undo(&mut targets);
                return std::mem::forget(targets);
            }
            Err(TryLockError::Poisoned(_)) => return,
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

fn blame(option: &str, named: &Path, error: &dyn std::fmt::Display) -> Failure {
    Failure::of(format_args!("{option} {}", named.display()), error)
}

/// Where a file of this name lies or will lie; only regular files that can be written may be replaced.
fn resolve(named: &Path) -> io::Result<PathBuf> {
    match fs::metadata(named) {
        Ok(existing) if existing.is_dir() => Err(io::Error::other("it is a directory")),
        Ok(existing) if !existing.is_file() => Err(io::Error::other("it is not a regular file")),
        // Root may write what nobody may: the mode is asked first.
        Ok(existing) if existing.permissions().readonly() => {
            Err(io::Error::other("the file that is there is read-only"))
        }
        Ok(_) => {
            OpenOptions::new().write(true).open(named)?;
            fs::canonicalize(named)
        }
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Err(_) => {
            if let Ok(target) = fs::read_link(named) {
                return Err(io::Error::other(format!(
                    "it is a link to {}, which does not exist",
                    target.display()
                )));
            }
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
