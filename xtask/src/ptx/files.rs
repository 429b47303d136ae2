//! Writing several files so that a failure leaves the old ones.

use std::fs;
use std::io;
use std::path::PathBuf;

/// Writes every file beside its place, then moves all of them into place.
///
/// Nothing is touched before everything is on disk; a reader sees each file old or new, never in part.
pub fn write_all(files: &[(PathBuf, String)]) -> Result<(), String> {
    let staged: Vec<_> = files
        .iter()
        .map(|(path, _)| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            path.with_file_name(format!(".{name}.{}", std::process::id()))
        })
        .collect();
    let result = stage_and_move(files, &staged);
    if result.is_err() {
        for path in &staged {
            // Those that were moved, or never written, are not there.
            let _ = fs::remove_file(path);
        }
    }
    result
}

fn stage_and_move(files: &[(PathBuf, String)], staged: &[PathBuf]) -> Result<(), String> {
    for ((path, contents), staged) in files.iter().zip(staged) {
        let write = || -> io::Result<()> {
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder)?;
            }
            fs::write(staged, contents)
        };
        write().map_err(|error| format!("{}: {error}", path.display()))?;
    }
    for ((path, _), staged) in files.iter().zip(staged) {
        fs::rename(staged, path).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ptx::testing::Scratch;

    #[test]
    fn files_are_replaced_and_nothing_else_is_left() {
        let scratch = Scratch::new("files");
        scratch.write("ptx/a.ptx", "old");
        let folder = scratch.path().join("ptx");
        let files = [
            (folder.join("a.ptx"), "new".to_owned()),
            (folder.join("b.ptx"), "b".to_owned()),
        ];
        write_all(&files).unwrap();
        assert_eq!(fs::read_to_string(folder.join("a.ptx")).unwrap(), "new");
        assert_eq!(fs::read_dir(folder).unwrap().count(), 2);
    }

    #[test]
    fn a_failure_leaves_the_old_files_and_no_others() {
        let scratch = Scratch::new("files");
        scratch.write("ptx/a.ptx", "old");
        scratch.write("blocked", "a file where a folder is needed");
        let files = [
            (scratch.path().join("ptx/a.ptx"), "new".to_owned()),
            (scratch.path().join("blocked/b.ptx"), "b".to_owned()),
        ];
        let error = write_all(&files).unwrap_err();
        assert!(error.contains("blocked"), "{error}");
        let folder = scratch.path().join("ptx");
        assert_eq!(fs::read_to_string(folder.join("a.ptx")).unwrap(), "old");
        assert_eq!(fs::read_dir(folder).unwrap().count(), 1);
    }
}
