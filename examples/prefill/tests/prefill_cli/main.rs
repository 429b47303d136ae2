//! The main job as a user meets it: the table, the files, and what happens to bad input.

mod compared;
mod drawn;
mod refused;
mod support;
mod written;
