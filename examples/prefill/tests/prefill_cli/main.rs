//! The main job as a user meets it: the table, the files, and what happens to bad input.

mod accounted;
mod compared;
mod drawn;
mod planned;
mod profiled;
#[cfg(unix)]
mod published;
mod ragged;
mod refused;
mod support;
mod understood;
mod written;
