//! Profiles as text and as files.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::{Profile, ProfileError, read, write};

/// A head takes some hundred bytes, and large models have some ten thousand heads.
const MAX_FILE_BYTES: u64 = 64 << 20;

impl Profile {
    /// Reads a profile from the text of its file.
    ///
    /// # Errors
    /// What is wrong, and with which head.
    pub fn from_json(text: &str) -> Result<Self, ProfileError> {
        read::profile(text)
    }

    /// The text of the profile's file: a line for each layer and head. The same profile gives the same text.
    pub fn to_json(&self) -> String {
        write::profile(self)
    }

    /// Reads a profile's file.
    ///
    /// # Errors
    /// [`ProfileError::File`], and as [`Profile::from_json`].
    pub fn read(path: impl AsRef<Path>) -> Result<Self, ProfileError> {
        let path = path.as_ref();
        let mut text = Vec::new();
        File::open(path)
            .and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut text))
            .map_err(|error| file_error(path, &error))?;
        if text.len() as u64 > MAX_FILE_BYTES {
            return Err(ProfileError::File {
                path: path.display().to_string(),
                why: "larger than any profile: name a profile's file".to_owned(),
            });
        }
        let text = std::str::from_utf8(&text).map_err(|error| ProfileError::Json {
            why: error.to_string(),
        })?;
        Profile::from_json(text)
    }

    /// Writes the profile's file: wholly, or not at all.
    ///
    /// # Errors
    /// [`ProfileError::File`].
    pub fn write(&self, path: impl AsRef<Path>) -> Result<(), ProfileError> {
        crate::whole_file::write(path.as_ref(), self.to_json().as_bytes())
            .map_err(|error| file_error(path.as_ref(), &error))
    }
}

fn file_error(path: &Path, error: &std::io::Error) -> ProfileError {
    ProfileError::File {
        path: path.display().to_string(),
        why: error.to_string(),
    }
}
