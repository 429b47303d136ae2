//! Text as tokens: by the folder's tokenizer.json, or bytes.

use std::fs;
use std::path::Path;

use tokenizers::Tokenizer;

use crate::failure::Failure;

pub enum Text {
    Bytes,
    Tokens(Box<Tokenizer>),
}

impl Text {
    /// # Errors
    /// A vocabulary that is not of bytes, without a tokenizer.
    pub fn open(folder: &Path, vocabulary: usize) -> Result<Self, Failure> {
        let path = folder.join("tokenizer.json");
        if path.exists() {
            let tokenizer =
                Tokenizer::from_file(&path).map_err(|error| Failure::of(path.display(), error))?;
            return Ok(Text::Tokens(Box::new(tokenizer)));
        }
        match vocabulary {
            256 => Ok(Text::Bytes),
            _ => Err(Failure::of(
                folder.display(),
                format_args!(
                    "there is no tokenizer.json, and a vocabulary of {vocabulary} is not of bytes"
                ),
            )),
        }
    }

    /// The first `limit` tokens of a file.
    ///
    /// # Errors
    /// A file that cannot be read, is empty, or has fewer tokens.
    pub fn read(&self, path: &Path, limit: Option<usize>) -> Result<Vec<u32>, Failure> {
        let of_file = |error: &dyn std::fmt::Display| Failure::of(path.display(), error);
        let bytes = fs::read(path).map_err(|error| of_file(&error))?;
        let mut tokens: Vec<u32> = match self {
            Text::Bytes => bytes.into_iter().map(u32::from).collect(),
            Text::Tokens(tokenizer) => {
                let text = String::from_utf8(bytes).map_err(|error| of_file(&error))?;
                let encoding = tokenizer
                    .encode(text, true)
                    .map_err(|error| of_file(&error))?;
                encoding.get_ids().to_vec()
            }
        };
        if tokens.is_empty() {
            return Err(of_file(&"the prompt is empty"));
        }
        if let Some(limit) = limit {
            if limit == 0 || limit > tokens.len() {
                return Err(of_file(&format_args!(
                    "--tokens {limit}, and the prompt has {}",
                    tokens.len()
                )));
            }
            tokens.truncate(limit);
        }
        Ok(tokens)
    }

    /// # Errors
    /// The tokenizer's.
    pub fn of(&self, tokens: &[u32]) -> Result<String, Failure> {
        match self {
            Text::Bytes => {
                let bytes: Vec<u8> = tokens.iter().map(|&token| token as u8).collect();
                Ok(String::from_utf8_lossy(&bytes).into_owned())
            }
            Text::Tokens(tokenizer) => tokenizer.decode(tokens, true).map_err(Failure::new),
        }
    }
}
