//! `cargo xtask ptx doctor`: what a build would use, and what is missing.

use super::ptxas::{self, Ptxas};
use super::rustc::{self, Compiler};

/// Prints what was found; fails with what is missing and the command that installs it.
pub fn doctor() -> Result<(), String> {
    let mut missing = Vec::new();
    match Compiler::find() {
        Ok(compiler) => {
            println!("rustc     {}", compiler.rustc.display());
            println!("          {}", compiler.version);
            let sources = compiler.sysroot.join("lib/rustlib/src/rust");
            println!("rust-src  {}", sources.display());
            println!("cargo     {}", compiler.cargo.display());
        }
        Err(why) => missing.push(format!(
            "rustc is missing: {why}\ninstall one:\n    {}",
            rustc::REMEDY
        )),
    }
    match Ptxas::find() {
        Ok(ptxas) => {
            println!("ptxas     {}", ptxas.path.display());
            println!("          {}", ptxas.version);
        }
        Err(why) => missing.push(format!(
            "ptxas is missing: {why}\ninstall it:\n    {}",
            ptxas::REMEDY
        )),
    }
    super::lint::fail_on(&missing)
}
