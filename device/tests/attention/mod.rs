//! Attention problems for the tests: a case, its data in the emulator's memory, and the check of what
//! comes back against [`oracle`].

#![allow(dead_code, unused_imports, reason = "each test file uses a part of it")]

pub mod batch;
pub mod case;
pub mod oracle;
pub mod run;

pub use case::{Case, Dtype, HeadMask, Kernel, Layout};
pub use run::{check, launch};
