//! Streams: the caller's, of whichever library, or one made here.

use std::ffi::c_void;
use std::marker::PhantomData;

/// A stream that somebody else owns: cust's, or the pointer (`CUstream`, `cudaStream_t`) that any other library has.
///
/// Launches go into it in order, and come back at once. Null is the legacy default stream, which cannot be captured.
#[derive(Clone, Copy, Debug)]
pub struct StreamRef<'a> {
    raw: *mut c_void,
    owner: PhantomData<&'a ()>,
}

impl StreamRef<'_> {
    /// The stream behind a driver's pointer.
    ///
    /// # Safety
    /// It is a stream of the device that it will be used with, and lives as long as the reference.
    pub unsafe fn from_raw(stream: *mut c_void) -> Self {
        StreamRef {
            raw: stream,
            owner: PhantomData,
        }
    }

    /// The driver's pointer.
    pub fn as_raw(self) -> *mut c_void {
        self.raw
    }
}

#[cfg(feature = "cuda")]
impl<'a> From<&'a cust::stream::Stream> for StreamRef<'a> {
    fn from(stream: &'a cust::stream::Stream) -> Self {
        StreamRef {
            raw: stream.as_inner().cast(),
            owner: PhantomData,
        }
    }
}
