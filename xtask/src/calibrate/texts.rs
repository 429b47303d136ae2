//! What a calibration reads: the first half of a text, with questions written into it. The other half is held out.

use crate::quality::retrieval::{Case, Place};

/// Seeds of the texts with questions: none of those that `cargo xtask quality` asks by.
const FIRST_SEED: u64 = 1000;

/// Where the held-out half begins.
pub fn held_out_from(text: &[u8]) -> usize {
    text.len() / 2
}

/// `count` texts of `len` bytes each, with questions at the end and in the middle by turns.
pub fn with_questions(text: &[u8], len: usize, count: u64) -> Result<Vec<Vec<u8>>, String> {
    let first_half = &text[..held_out_from(text)];
    let of = |index: u64| {
        let place = Place::ALL[index as usize % 2];
        Case::new(first_half, len, FIRST_SEED + index, place).map(|case| case.bytes)
    };
    (0..count).map(of).collect()
}

/// What was read, for the profile.
pub fn in_words(name: &str, text: &[u8], lengths: &[usize], count: u64) -> String {
    let list: Vec<String> = lengths.iter().map(usize::to_string).collect();
    format!(
        "the first {} of {} bytes of {name}: {count} texts each of {} bytes, with twelve questions at the end or in the middle by turns (seeds from {FIRST_SEED})",
        held_out_from(text),
        text.len(),
        list.join(" and "),
    )
}
