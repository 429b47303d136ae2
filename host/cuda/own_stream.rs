//! Streams that were made here, as borrowed ones. Apart, because devices make the former and take the latter.

use super::{Stream, StreamRef};

impl<'a> From<&'a Stream<'_>> for StreamRef<'a> {
    fn from(stream: &'a Stream<'_>) -> Self {
        // SAFETY: a stream of its device, which the reference keeps alive.
        unsafe { StreamRef::from_raw(stream.as_raw()) }
    }
}
