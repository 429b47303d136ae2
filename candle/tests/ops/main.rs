//! The ops on CPU tensors: against the f64 oracle, candle-nn's attention and the library's own plans.

mod dense;
mod packed;
mod readme;
mod refused;
mod sparse;
mod tensors;
mod workspace;
