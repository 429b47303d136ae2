//! `cargo xtask ptx doctor`: what a build would use, and what is missing.

use super::lint::fail_on;
use super::ptxas::Ptxas;
use super::rustc::Compiler;

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
        Err(why) => missing.push(format!("rustc     missing: {why}")),
    }
    match Ptxas::find() {
        Ok(ptxas) => {
            println!("ptxas     {}", ptxas.path.display());
            println!("          {}", ptxas.version);
        }
        Err(why) => missing.push(format!("ptxas     missing: {why}")),
    }
    fail_on(&missing)
}
