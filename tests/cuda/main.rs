//! The pipeline on a GPU. Every test that needs one says so and passes where there is none.
//!
//! The binary may be copied to a machine that has a GPU and no cargo: it takes libtest's arguments, and reads `data/` in the
//! directory in which it is started.

mod agreement;
mod devices;
mod given;
mod large;
mod long;
mod poison;
mod refusals;
mod shapes;
mod streams;
mod support;
mod tensor_maps;
