//! What marks a profile's file.

/// Value of the field `format`.
pub const FORMAT: &str = "sample-attention profile";
/// The version that is written, and the only one that is read.
pub const VERSION: u64 = 1;
