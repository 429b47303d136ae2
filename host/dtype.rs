//! Element types, and the limits of head dimension and scale.

/// Element type of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Dtype {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// bfloat16.
    Bf16,
}

impl Dtype {
    /// Bytes of an element.
    pub const fn bytes(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::Bf16 => 2,
        }
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Dtype::F32 => "f32",
            Dtype::F16 => "f16",
            Dtype::Bf16 => "bf16",
        })
    }
}

/// The widest supported head.
pub const MAX_HEAD_DIM: usize = 256;

/// The largest magnitude of [`Problem::softmax_scale`](crate::Problem::softmax_scale). It is multiplied into the queries before they
/// meet the keys, and more would take ordinary queries out of f32's range.
pub const MAX_SCALE: f32 = 1e30;
