//! Judging errors: the right one, in words that name what is wrong and what to do.

use sample_attention::{Error, Result};

/// Panics unless `result` is an error that `is_expected` and whose text holds all of `words`.
///
/// # Panics
/// As it says.
pub fn assert_refused<T>(result: Result<T>, is_expected: impl Fn(&Error) -> bool, words: &[&str]) {
    let error = match result {
        Ok(_) => panic!("accepted what should be refused with {words:?}"),
        Err(error) => error,
    };
    assert!(is_expected(&error), "{error:?} is not the expected error");
    let text = error.to_string();
    for word in words {
        assert!(text.contains(word), "`{text}` does not say `{word}`");
    }
    assert!(!text.contains('\n'), "more than one line: {text}");
}

/// `refused!(result, Error::Variant { .. }, "word", "word")`: see [`assert_refused`].
#[macro_export]
macro_rules! refused {
    ($result:expr, $pattern:pat, $($word:expr),+ $(,)?) => {
        $crate::refused::assert_refused($result, |error| matches!(error, $pattern), &[$($word),+])
    };
}
