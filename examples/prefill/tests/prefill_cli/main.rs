//! The main job as a user meets it: the table, the files, and what happens to bad input.

mod accounted;
mod compared;
mod drawn;
mod profiled;
#[cfg(unix)]
mod published;
mod refused;
mod support;
mod understood;
mod written;
