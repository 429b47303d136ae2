//! Squeezed Attention: indices, look-up and attention, beside the f64 oracle.

mod attention;
mod errors;
mod files;
mod index;
mod lookup;
mod support;
