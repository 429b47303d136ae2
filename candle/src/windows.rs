//! `window_size_left` and `window_size_right` of FlashAttention, as far as they are supported.

use candle_core::{Result, bail};

/// Whether the two windows are a causal mask (`true`) or none (`false`). A query at position p sees the keys from p − left to
/// p + right; `None` is no limit, and a window that reaches over everything is none either.
///
/// # Errors
/// A window that would hide keys, other than the causal one.
pub(crate) fn causal(
    left: Option<usize>,
    right: Option<usize>,
    max_q: usize,
    max_k: usize,
) -> Result<bool> {
    if let Some(left) = left.filter(|left| left.saturating_add(1) < max_k) {
        bail!(
            "window_size_left = {left} hides some of {max_k} keys, and sliding windows are not supported: use sample_attn with \
             HeadPolicy::Local, whose window is whole blocks of 128, or None"
        )
    }
    match right {
        Some(0) => Ok(true),
        Some(right) if right.saturating_add(1) < max_q && right <= max_k => bail!(
            "window_size_right = {right} is not supported: use Some(0) for a causal mask, or None"
        ),
        _ => Ok(false),
    }
}

#[cfg(test)]
mod tests {
    use super::causal;

    #[test]
    fn windows_that_hide_nothing_are_none() {
        assert!(!causal(None, None, 100, 100).unwrap());
        assert!(causal(None, Some(0), 100, 100).unwrap());
        assert!(causal(Some(99), Some(0), 100, 100).unwrap());
        assert!(causal(Some(usize::MAX), Some(0), 100, 100).unwrap());
        assert!(!causal(None, Some(99), 100, 100).unwrap());
        assert!(!causal(Some(100), Some(usize::MAX), 100, 100).unwrap());
    }

    #[test]
    fn windows_that_hide_keys_are_refused() {
        for (left, right) in [(Some(98), Some(0)), (Some(98), None), (None, Some(98))] {
            assert!(causal(left, right, 100, 100).is_err(), "{left:?} {right:?}");
        }
    }
}
