//! What a host knows of a kernel.

#[cfg(not(feature = "emulator"))]
use std::marker::PhantomData;

/// A kernel by name: what [`entry!`](crate::entry) publishes, a CUDA executor looks up and the emulator launches.
pub struct Kernel<P> {
    name: &'static str,
    #[cfg(feature = "emulator")]
    body: fn(&P),
    #[cfg(not(feature = "emulator"))]
    params: PhantomData<fn(&P)>,
}

impl<P> Clone for Kernel<P> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<P> Copy for Kernel<P> {}

impl<P> std::fmt::Debug for Kernel<P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

impl<P> Kernel<P> {
    /// The kernel `body` under the name of its PTX entry.
    #[cfg(feature = "emulator")]
    pub const fn new(name: &'static str, body: fn(&P)) -> Self {
        Self { name, body }
    }

    /// The kernel under the name of its PTX entry. Its body serves for the parameters' type alone.
    #[cfg(not(feature = "emulator"))]
    pub const fn new(name: &'static str, _body: fn(&P)) -> Self {
        Self {
            name,
            params: PhantomData,
        }
    }

    /// The name of the PTX entry.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// What it runs.
    #[cfg(feature = "emulator")]
    pub(crate) const fn body(&self) -> fn(&P) {
        self.body
    }

    /// The same kernel, of a parameter whose bytes begin with a `P`.
    ///
    /// # Safety
    /// Every `B` that it is launched with begins with the bytes of a `P`, and is aligned as a `P` is.
    #[cfg(feature = "emulator")]
    pub unsafe fn of_bytes<B>(self) -> Kernel<B> {
        Kernel {
            name: self.name,
            // SAFETY: references to sized types are passed alike, and the caller promises what they lead to.
            body: unsafe { std::mem::transmute::<fn(&P), fn(&B)>(self.body) },
        }
    }
}
