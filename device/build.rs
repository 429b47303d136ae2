//! Tells the build script of `sample-attention` where these sources are, for rust-cuda to compile them a second time.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let folder = std::env::var("CARGO_MANIFEST_DIR").expect("cargo names the package's folder");
    println!("cargo::metadata=folder={folder}");
}
