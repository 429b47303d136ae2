//! What tests, benches, examples and chores share: captured and synthetic inputs, an independent f64 oracle, and one test
//! runner that every backend answers to.

pub mod fuzz;
pub mod lists;
pub mod oracle;
pub mod product;
pub mod random;
pub mod refused;
pub mod runner;
pub mod tensor;

pub use sample_attention_inputs::{capture, synthetic};
